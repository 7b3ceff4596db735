"""Dynamics: how the law of the outputs evolves during training."""

from sgdsde.dynamics.base import Covariance, Dynamics, OutputLaw
from sgdsde.dynamics.gaussian_closure import ClosureWarning, GaussianClosure
from sgdsde.dynamics.gradient_descent import GradientDescent
from sgdsde.dynamics.gradient_flow import GradientFlow
from sgdsde.dynamics.integrators import EulerMaruyama, ExponentialEuler, Integrator, SDEInt
from sgdsde.dynamics.ito_term import ItoTerm
from sgdsde.dynamics.moment_equations import MomentEquations
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.moving_kernel import MovingKernel, NoiseFeedback
from sgdsde.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from sgdsde.dynamics.paths import SDEPaths
from sgdsde.dynamics.traced import TracedRecursion
from sgdsde.dynamics.truncation import truncation_error

__all__ = [
    "ClosureWarning",
    "Covariance",
    "Dynamics",
    "EulerMaruyama",
    "ExponentialEuler",
    "GaussianClosure",
    "GradientDescent",
    "GradientFlow",
    "Integrator",
    "ItoTerm",
    "MomentEquations",
    "MomentRecursion",
    "MovingKernel",
    "NoiseFeedback",
    "OrnsteinUhlenbeck",
    "OutputLaw",
    "SDEInt",
    "SDEPaths",
    "TracedRecursion",
    "truncation_error",
]
