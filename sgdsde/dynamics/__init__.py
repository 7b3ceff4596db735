"""Dynamics: how the law of the outputs evolves during training."""

from sgdsde.dynamics.base import Covariance, Dynamics, OutputLaw
from sgdsde.dynamics.gradient_descent import GradientDescent
from sgdsde.dynamics.gradient_flow import GradientFlow
from sgdsde.dynamics.moment_equations import MomentEquations
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck

__all__ = [
    "Covariance",
    "Dynamics",
    "GradientDescent",
    "GradientFlow",
    "MomentEquations",
    "MomentRecursion",
    "OrnsteinUhlenbeck",
    "OutputLaw",
]
