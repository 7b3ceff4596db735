"""Law: the empirical tangent kernel of a finite network tends to the analytic one like width^-1/2."""

import math

import pytest
import torch

from sgdsde import empirical_ntk, meanfield
from sgdsde.networks import CNN, MLP, ConvResNet, ResNet

DENSE, IMAGES = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).double(), (3, 2, 4, 4)
FAMILIES = {
    "MLP": lambda width, **options: MLP(5, width, 1, depth=3, sigma_b=0.3, **options),
    "ResNet": lambda width, **options: ResNet(5, width, 1, depth=3, scaling="stable", sigma_b=0.3, **options),
    "CNN": lambda width, **options: CNN(2, 4, width, 1, depth=2, sigma_b=0.3, **options),
    "pool": lambda width, **options: CNN(2, 4, width, 1, depth=2, readout="pool", **options),
    "ConvResNet": lambda width, **options: ConvResNet(2, 4, width, 1, depth=2, activation="erf", **options),
}


def distances(make, width, x, n_seeds):
    """Relative Frobenius distances to the analytic kernel, one for each seed."""
    exact = meanfield.analytic_ntk(x, None, make(1))
    found = []
    for seed in range(n_seeds):
        network = make(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found.append(float((empirical_ntk(network, x) - exact).norm() / exact.norm()))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mean_of_many_kernels_is_the_analytic_one(family):
    # Per seed the distance is d ~ width^-1/2; the mean of 12 independent kernels lies within 4 d / sqrt(12) of its
    # expectation, and that within O(1/width) of the limit.
    x = (
        DENSE
        if family in ("MLP", "ResNet")
        else torch.randn(IMAGES, generator=torch.Generator().manual_seed(2)).double()
    )
    make, width = FAMILIES[family], 48
    exact = meanfield.analytic_ntk(x, None, make(1))
    kernels = torch.stack(
        [
            empirical_ntk(make(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), x)
            for seed in range(12)
        ]
    )
    spread = float((kernels - kernels.mean(0)).square().sum((1, 2)).mean().sqrt())
    off = float((kernels.mean(0) - exact).norm())
    assert off < 4 * spread / math.sqrt(12) + float(exact.norm()) / width
    wrong = meanfield.analytic_ntk(x, None, make(1)) * 1.5
    assert float((kernels.mean(0) - wrong).norm()) > 4 * spread / math.sqrt(12) + float(exact.norm()) / width


def test_the_distance_falls_like_the_square_root_of_the_width():
    # 12 seeds give each mean distance to about 15 %: the exponent over a factor of 16 to 0.08, three of them allowed.
    make = FAMILIES["MLP"]
    narrow, wide = (sum(distances(make, width, DENSE, 12)) for width in (32, 512))
    assert math.log(wide / narrow) / math.log(16) == pytest.approx(-0.5, abs=0.24)
