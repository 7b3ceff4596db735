"""Integrators of sample paths, for ``SDEPaths``."""

from sgdsde.dynamics.paths.integrators.euler_maruyama import EulerMaruyama
from sgdsde.dynamics.paths.integrators.exponential_euler import ExponentialEuler
from sgdsde.dynamics.paths.integrators.frozen_noise import FrozenNoise
from sgdsde.dynamics.paths.integrators.integrator import BlockDraws, Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.dynamics.paths.integrators.sdeint_adapter import SDEInt
from sgdsde.dynamics.paths.integrators.weak_order2 import WeakOrder2

__all__ = [
    "BlockDraws",
    "Draws",
    "EulerMaruyama",
    "ExponentialEuler",
    "FrozenNoise",
    "Integrator",
    "Outputs",
    "PathGroup",
    "PathSetup",
    "SDEInt",
    "WeakOrder2",
]
