"""The law of a network at initialization: its entries, and its output variance against mean-field maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sgdsde import networks
from sgdsde.networks import CNN, MLP

F64 = torch.float64
# Two-sided error rate of every statistical assertion here; fewer than 40 are made, so the file fails by chance once
# in more than 10^5 seeds. The seeds are fixed beforehand.
ERROR_RATE = 2e-7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_normal(entries: torch.Tensor, std: float) -> None:
    """Mean 0, the given standard deviation, and a normal shape, each at the stated error rate."""
    n = entries.numel()
    z_mean = float(entries.mean()) / (std / math.sqrt(n))
    low, high = stats.chi2.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], n)
    chi2 = float((entries.double() ** 2).sum()) / std**2
    assert abs(z_mean) < stats.norm.isf(ERROR_RATE / 2), f"z={z_mean:.2f} for a mean of 0, n={n}"
    assert low < chi2 < high, f"sum of squares / std^2 = {chi2:.1f}, expected in [{low:.1f}, {high:.1f}]"
    p_value = stats.kstest(entries.flatten().double().numpy() / std, "norm").pvalue
    assert p_value > ERROR_RATE, f"Kolmogorov-Smirnov p={p_value:.1e}"


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_initial_entries_have_the_stated_law(parametrization):
    mlp = MLP(50, 300, 40, depth=2, sigma_w=1.7, sigma_b=0.3, parametrization=parametrization, generator=generator(1))
    cnn = CNN(3, 5, 80, 40, depth=2, sigma_w=1.7, sigma_b=0.3, parametrization=parametrization, generator=generator(2))
    fan_in = {mlp.hidden[0]: 50, mlp.hidden[1]: 300, mlp.read_out: 300}
    fan_in |= {cnn.hidden[0]: 3 * 9, cnn.hidden[1]: 80 * 9, cnn.read_out: 80 * 25}
    unit = parametrization == "ntk"
    for layer, inputs in fan_in.items():
        assert_normal(layer.weight.detach(), 1.0 if unit else 1.7 / math.sqrt(inputs))
    biases = torch.cat([layer.bias.detach() for layer in fan_in])
    assert_normal(biases, 1.0 if unit else 0.3)


def test_the_statistical_check_rejects_a_scale_two_percent_off():
    entries = torch.randn(300, 300, dtype=F64, generator=generator(3))
    assert_normal(entries, 1.0)
    with pytest.raises(AssertionError, match="sum of squares"):
        assert_normal(entries, 1.02)
    uniform = (torch.rand(300, 300, dtype=F64, generator=generator(3)) - 0.5) * math.sqrt(12)
    with pytest.raises(AssertionError, match="Kolmogorov"):
        assert_normal(uniform, 1.0)


def expected_square(function, variance: float) -> float:
    """E function(sqrt(variance) Z)^2 by Gauss-Legendre on both sides of 0, where an activation may have a kink."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = torch.as_tensor(6 * (nodes + 1))
    density = torch.as_tensor(6 * weights) * torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return sum(float((density * function(sign * math.sqrt(variance) * z) ** 2).sum()) for sign in (1, -1))


def squared_outputs(network, x: torch.Tensor, n_networks: int) -> torch.Tensor:
    """The mean squared output of each of several independent networks.

    Outputs of one network share their hidden layers, so a whole network is one draw.
    """
    with torch.no_grad():
        return torch.stack([(network(seed)(x) ** 2).mean() for seed in range(n_networks)]).double()


def student_t(draws: torch.Tensor, predicted: float) -> float:
    return float((draws.mean() - predicted) / (draws.std() / math.sqrt(len(draws))))


@pytest.mark.parametrize(
    ("activation", "parametrization", "sigma_w"), [("relu", "ntk", 1.7), ("tanh", "standard", 1.0)]
)
def test_output_variance_follows_the_mean_field_variance_map(activation, parametrization, sigma_w):
    # sigma_w is far from 1.41 and 1.7, where the maps of these activations would leave the variance where it is.
    sigma_b, n_networks = 0.3, 24
    x = torch.randn(1, 7, generator=generator(8))
    phi = networks.ACTIVATIONS[activation]
    q = sigma_b**2 + sigma_w**2 * float((x**2).mean())
    for _ in range(2):
        q = sigma_b**2 + sigma_w**2 * expected_square(phi, q)

    def network(seed: int) -> nn.Module:
        words = {"activation": activation, "parametrization": parametrization}
        words |= {"sigma_w": sigma_w, "sigma_b": sigma_b, "generator": generator(100 + seed)}
        return MLP(7, 2000, 500, depth=2, **words)

    draws = squared_outputs(network, x, n_networks)
    limit = stats.t.isf(ERROR_RATE / 2, n_networks - 1)
    assert abs(student_t(draws, q)) < limit
    # Negative controls, rejected by the same statistic: the first layer's variance, and a variance 15 percent off.
    first_layer = sigma_b**2 + sigma_w**2 * float((x**2).mean())
    for wrong in (first_layer, 0.85 * q, 1.15 * q):
        assert abs(student_t(draws, wrong)) > limit


@pytest.mark.parametrize("readout", ["flatten", "pool"])
def test_convolution_variance_follows_the_patch_average(readout):
    """Depth 1, where the mean over networks is exact at any width: enumerated over positions and their patches."""
    sigma_w, sigma_b, size, n_networks = 1.4, 0.3, 3, 100
    x = torch.randn(1, 2, size, size, dtype=F64, generator=generator(5))
    covariance = np.zeros((size**2, size**2))
    for a in range(size**2):
        for b in range(size**2):
            total = 0.0
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    pixels = [(p // size + i, p % size + j) for p in (a, b)]
                    if all(0 <= r < size and 0 <= c < size for r, c in pixels):
                        (r, c), (s, d) = pixels
                        total += float((x[0, :, r, c] * x[0, :, s, d]).mean())
            covariance[a, b] = sigma_b**2 + sigma_w**2 / 9 * total
    # E relu(u) relu(v) for a Gaussian pair, the arc-cosine kernel.
    std = np.sqrt(np.diag(covariance))
    correlation = np.clip(covariance / np.outer(std, std), -1, 1)
    angle = np.arccos(correlation)
    moment = np.outer(std, std) * (np.sin(angle) + (math.pi - angle) * correlation) / (2 * math.pi)
    predicted = sigma_b**2 + sigma_w**2 * (np.diag(moment).mean() if readout == "flatten" else moment.mean())

    def network(seed: int) -> nn.Module:
        words = {"sigma_w": sigma_w, "sigma_b": sigma_b, "dtype": F64, "generator": generator(200 + seed)}
        return CNN(2, size, 200, 200, readout=readout, **words)

    draws = squared_outputs(network, x, n_networks)
    limit = stats.t.isf(ERROR_RATE / 2, n_networks - 1)
    assert abs(student_t(draws, predicted)) < limit
    other = sigma_b**2 + sigma_w**2 * (moment.mean() if readout == "flatten" else np.diag(moment).mean())
    assert abs(student_t(draws, other)) > limit
