"""Covariance of the minibatch gradient, pushed forward to the outputs."""

from sgdsde.losses.expectations import GaussianMoments, gaussian_loss, gaussian_moments
from sgdsde.noise.covariance import block_diagonal, output_noise, residual_covariance
from sgdsde.noise.example_blocks import ExampleBlocks
from sgdsde.noise.gradient_noise import GradientNoise
from sgdsde.noise.ito import ito_term
from sgdsde.noise.sampler import noise_direction

__all__ = [
    "ExampleBlocks",
    "GaussianMoments",
    "GradientNoise",
    "block_diagonal",
    "gaussian_loss",
    "gaussian_moments",
    "ito_term",
    "noise_direction",
    "output_noise",
    "residual_covariance",
]
