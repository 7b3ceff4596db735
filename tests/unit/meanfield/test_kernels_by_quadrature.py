"""Kernels of infinite width against the recursion written out, expectations by quadrature in two dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special

from sgdsde import meanfield
from sgdsde.networks import MLP, ResNet

POINTS = np.linspace(-9, 9, 361)
WEIGHTS = np.exp(-(POINTS**2) / 2) / np.exp(-(POINTS**2) / 2).sum()
"""The trapezoidal rule, which converges exponentially for what is analytic in a strip."""


def expectation(function, uu: float, uv: float, vv: float) -> float:
    """E function(u) function(v) for (u, v) of this covariance."""
    u = math.sqrt(uu) * POINTS[:, None]
    v = uv / math.sqrt(uu) * POINTS[:, None] + math.sqrt(max(vv - uv**2 / uu, 0.0)) * POINTS[None, :]
    return float(WEIGHTS @ (function(u) * function(v)) @ WEIGHTS)


def slope(z: np.ndarray) -> np.ndarray:
    """Derivative of erf."""
    return 2 / math.sqrt(math.pi) * np.exp(-(z**2))


def kernels(x: np.ndarray, network: MLP | ResNet, scales: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Sigma and K of an erf network, entry by entry: one block for each scale, and the read-out."""
    sw2, sb2, n = network.sigma_w**2, network.sigma_b**2, len(x)
    sigma = sb2 + sw2 * x @ x.T / x.shape[1]
    ntk = sigma
    for scale in [*scales, None]:
        new, moved = np.empty((n, n)), np.empty((n, n))
        for i in range(n):
            for j in range(n):
                covariance = sigma[i, i], sigma[i, j], sigma[j, j]
                new[i, j] = sb2 + sw2 * expectation(special.erf, *covariance)
                moved[i, j] = ntk[i, j] * sw2 * expectation(slope, *covariance) + new[i, j]
        is_residual = isinstance(network, ResNet) and scale is not None
        sigma = sigma + scale**2 * new if is_residual else new
        ntk = ntk + scale**2 * moved if is_residual else moved
    return sigma, ntk


WORDS = {"activation": "erf", "sigma_w": 1.1, "sigma_b": 0.7}


@pytest.mark.parametrize(
    ("network", "scales"),
    [
        (MLP(3, 1, 1, depth=3, **WORDS), [1.0, 1.0]),
        (ResNet(3, 1, 1, depth=3, scaling="decreasing", **WORDS), [2**-0.5, 3**-0.5]),
    ],
    ids=["MLP", "ResNet"],
)
@pytest.mark.parametrize("examples_at_once", [1, 2, 4])
def test_they_are_the_recursion_with_biases(network, scales, examples_at_once):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[3] = -1.2 * x[0]
    sigma, ntk = (torch.from_numpy(kernel) for kernel in kernels(x.numpy(), network, scales))
    memory = 8 * 8 * torch.get_num_threads() * examples_at_once**2
    itself = meanfield.analytic_kernels(x, None, network, memory=memory)
    between = meanfield.analytic_kernels(x[:3], x[1:], network, memory=memory)
    for found, rows, columns in ((itself, slice(None), slice(None)), (between, slice(0, 3), slice(1, None))):
        torch.testing.assert_close(found.nngp, sigma[rows, columns], rtol=0, atol=1e-8)
        torch.testing.assert_close(found.ntk, ntk[rows, columns], rtol=0, atol=1e-8)
