"""What is seen of regimes and confusion in networks, at the sizes of docs/regimes.md; seeded, with generous windows."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.fig25_sparse_recovery import largest_good
from experiments.fig28_gradient_confusion import infinite, network, sphere
from experiments.fig30_rich_networks import nuclear_norm, student
from experiments.frame import Progress
from sgdsde import Problem
from sgdsde.regimes import gradient_confusion


def cosines(kind: str, width: int, depth: int, seeds: int = 4) -> tuple[float, float]:
    """Mean over networks of the lowest and of the standard deviation of the cosines of 60 points on the sphere."""
    from torch import nn

    x, y = sphere()
    found = [
        gradient_confusion(Problem(network(kind, width, depth, seed), x, y, loss=nn.MSELoss()), output_gradient=-y)
        for seed in range(seeds)
    ]
    return float(np.mean([each.cosine_min for each in found])), float(np.mean([each.cosine_std for each in found]))


@pytest.mark.parametrize(("depth", "lowest", "spread"), [(1, -0.39, 0.18), (16, -0.34, 0.31), (64, -0.29, 0.28)])
def test_depth_lowers_the_extreme_of_confusion_at_infinite_width(depth: int, lowest: float, spread: float) -> None:
    x, y = sphere()
    assert infinite(network("mlp", 8, depth, 0), x, y) == pytest.approx((lowest, spread), abs=0.03)


@pytest.mark.slow
def test_depth_confuses_and_width_cures_at_finite_width() -> None:
    """Windows of 0.1 around what other draws gave; the stable residual network is flat in depth at width 256."""
    for width, depth, lowest, spread in (
        (16, 1, -0.59, 0.21),
        (256, 1, -0.46, 0.18),
        (16, 16, -0.96, 0.48),
        (256, 16, -0.51, 0.31),
    ):
        found = cosines("mlp", width, depth)
        assert found[0] == pytest.approx(lowest, abs=0.1)
        assert found[1] == pytest.approx(spread, abs=0.1)
    assert abs(cosines("stable", 256, 64)[0] - cosines("stable", 256, 1)[0]) < 0.08


@pytest.mark.slow
def test_a_relu_network_learns_the_teacher_at_small_scales_only() -> None:
    """3 draws: test error over the variance .04 at 0.1, .15 at 1, .21 at 100, within a factor of 1.6."""
    for scale, wanted in ((0.1, 0.04), (1.0, 0.15), (100.0, 0.21)):
        found = np.mean([student(scale, seed, 20_000)[0] for seed in range(3)])
        assert wanted / 1.6 < found < 1.6 * wanted


@pytest.mark.slow
@pytest.mark.parametrize(("width", "wanted"), [(40, (0.23, 0.46, 0.73, 0.94)), (160, (0.30, 0.56, 0.82, 0.97))])
def test_the_regime_of_a_factorization_follows_scale_squared_times_width(width: int, wanted: tuple[float, ...]) -> None:
    """Excess nuclear norm over that of the kernel regime at scale^2 width = .03, .1, .3, 1; 2 draws, within .06."""
    largest = np.mean([nuclear_norm(width, (100 / width) ** 0.5, seed) - 1 for seed in range(2)])
    for size, share in zip((0.03, 0.1, 0.3, 1.0), wanted):
        found = np.mean([nuclear_norm(width, (size / width) ** 0.5, seed) - 1 for seed in range(2)])
        assert found / largest == pytest.approx(share, abs=0.06)


@pytest.mark.slow
def test_more_examples_need_no_smaller_scale() -> None:
    """log10 of the largest scale that recovers 5 entries of 200: -1.75, -1.47, -1.12, -.89 at 60, 80, 120, 160."""
    found = largest_good("laptop", Progress("test"))
    median = dict(zip(found["sizes"].tolist(), np.nanmedian(found["largest_good"], 1)))
    for n, wanted in ((60, -1.75), (80, -1.47), (120, -1.12), (160, -0.89)):
        assert median[n] == pytest.approx(wanted, abs=0.3)
    assert np.all(np.diff(list(median.values())) > 0)
