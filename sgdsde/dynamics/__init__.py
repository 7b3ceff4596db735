"""Dynamics: how the law of the outputs evolves during training."""

from sgdsde.dynamics.dynamics import Dynamics
from sgdsde.dynamics.gaussian_closure import ClosureWarning, GaussianClosure
from sgdsde.dynamics.gradient_descent import GradientDescent
from sgdsde.dynamics.gradient_flow import GradientFlow
from sgdsde.dynamics.linearized_sgd import LinearizedSGD
from sgdsde.dynamics.modal_moments import ClosureRangeWarning, ModalMoments
from sgdsde.dynamics.moment_equations import MomentEquations
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.moments.reduced.prediction import ReducedLaws, ReducedModelWarning
from sgdsde.dynamics.moments.truncation_bound import truncation_error
from sgdsde.dynamics.moving_kernel import MovingKernel, NoiseFeedback
from sgdsde.dynamics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.dynamics.paths.integrators import (
    EulerMaruyama,
    ExponentialEuler,
    FrozenNoise,
    Integrator,
    SDEInt,
    WeakOrder2,
)
from sgdsde.dynamics.paths.ito_term import ItoTerm
from sgdsde.dynamics.reduced_moments import ReducedMoments
from sgdsde.dynamics.sde_paths import SDEPaths
from sgdsde.dynamics.shared_kernel import TracedRecursion
from sgdsde.dynamics.volterra import Volterra

__all__ = [
    "ClosureRangeWarning",
    "ClosureWarning",
    "Covariance",
    "Dynamics",
    "EulerMaruyama",
    "ExponentialEuler",
    "FrozenNoise",
    "GaussianClosure",
    "GradientDescent",
    "GradientFlow",
    "Integrator",
    "ItoTerm",
    "LinearizedSGD",
    "ModalMoments",
    "MomentEquations",
    "MomentRecursion",
    "MovingKernel",
    "NoiseFeedback",
    "OrnsteinUhlenbeck",
    "OutputLaw",
    "ReducedLaws",
    "ReducedModelWarning",
    "ReducedMoments",
    "SDEInt",
    "SDEPaths",
    "TracedRecursion",
    "Volterra",
    "WeakOrder2",
    "truncation_error",
]
