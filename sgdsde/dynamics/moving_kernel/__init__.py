"""Minibatch SGD of networks that learn features: the mean path of the network and the noise around it."""

from sgdsde.dynamics.moving_kernel.feedback import NoiseFeedback
from sgdsde.dynamics.moving_kernel.predictor import MovingKernel
from sgdsde.dynamics.moving_kernel.refresh import KernelDriftWarning, NearLimitWarning, Refresh

__all__ = ["KernelDriftWarning", "MovingKernel", "NearLimitWarning", "NoiseFeedback", "Refresh"]
