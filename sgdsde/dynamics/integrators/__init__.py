"""Integrators of sample paths, for ``SDEPaths``."""

from sgdsde.dynamics.integrators.base import BlockDraws, Draws, Integrator, PathGroup, PathSetup
from sgdsde.dynamics.integrators.euler_maruyama import EulerMaruyama
from sgdsde.dynamics.integrators.exponential_euler import ExponentialEuler
from sgdsde.dynamics.integrators.sdeint_adapter import SDEInt

__all__ = [
    "BlockDraws",
    "Draws",
    "EulerMaruyama",
    "ExponentialEuler",
    "Integrator",
    "PathGroup",
    "PathSetup",
    "SDEInt",
]
