"""Integrators of sample paths, for ``SDEPaths``."""

from sgdsde.dynamics.paths.integrators.euler_maruyama import EulerMaruyama
from sgdsde.dynamics.paths.integrators.exponential_euler import ExponentialEuler
from sgdsde.dynamics.paths.integrators.integrator import BlockDraws, Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.dynamics.paths.integrators.sdeint_adapter import SDEInt

__all__ = [
    "BlockDraws",
    "Draws",
    "EulerMaruyama",
    "ExponentialEuler",
    "Integrator",
    "Outputs",
    "PathGroup",
    "PathSetup",
    "SDEInt",
]
