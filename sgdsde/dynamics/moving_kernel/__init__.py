"""Minibatch SGD of networks that learn features: the mean path of the network and the noise around it."""

from sgdsde.dynamics.moving_kernel.kernel_refresh import KernelDriftWarning, NearLimitWarning, Refresh
from sgdsde.dynamics.moving_kernel.noise_induced_drift import NoiseFeedback
from sgdsde.dynamics.moving_kernel.predictor import MovingKernel

__all__ = ["KernelDriftWarning", "MovingKernel", "NearLimitWarning", "NoiseFeedback", "Refresh"]
