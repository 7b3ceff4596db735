"""Estimates of a mean loss: against their formulas, and their intervals against thousands of samples of known mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sgdsde.measurement.estimate import NORMAL, chance_of_share, controlled_mean, dominated, plain_mean, widening

REPEATS, RUNS, MEAN = 4000, 12, 3.0
"""Each column is a measurement of its own."""


def drawn(correlation: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Generator]:
    """Losses [RUNS, REPEATS] of mean 3 and spread 0.5, and a control of mean 1 and spread 2."""
    stream = torch.Generator().manual_seed(seed)
    c = torch.randn(RUNS, REPEATS, generator=stream, dtype=torch.float64)
    rest = torch.randn(RUNS, REPEATS, generator=stream, dtype=torch.float64)
    y = MEAN + 0.5 * (correlation * c + (1 - correlation**2) ** 0.5 * rest)
    return y, 1 + 2 * c, stream


def coverage(found) -> float:
    return float(((found.mean - MEAN).abs() <= NORMAL * found.widened).double().mean())


ERROR = float(stats.norm.isf(0.5e-4)) * (0.95 * 0.05 / REPEATS) ** 0.5
"""Of a coverage of 95 %, at a chance of 1e-4."""


def test_the_plain_mean_is_the_sample_mean():
    y = drawn(0)[0]
    found = plain_mean(y)
    np.testing.assert_allclose(found.mean, y.numpy().mean(0))
    np.testing.assert_allclose(found.standard_error, stats.sem(y.numpy()))
    np.testing.assert_allclose(
        found.relative, found.standard_error * stats.t.ppf(0.975, RUNS - 1) / 1.959964 / found.mean
    )
    assert widening(0) == np.inf


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95, -0.8])
def test_intervals_hold_the_mean_as_often_as_they_say(correlation):
    y, c, _ = drawn(correlation)
    known, zero = torch.ones(REPEATS).double(), torch.zeros(REPEATS).double()
    assert abs(coverage(plain_mean(y)) - 0.95) <= ERROR
    found = controlled_mean(y, c, known, zero)
    assert abs(coverage(found) - 0.95) <= ERROR
    gain = (RUNS - 2) / (RUNS - 3) * (1 - correlation**2)  # of the variance, for normal numbers
    assert float(found.mean.var() / plain_mean(y).mean.var()) == pytest.approx(gain, rel=0.15)


@pytest.mark.parametrize("error", [0.2, 0.6])
def test_what_is_not_known_of_the_control_counts(error):
    y, c, stream = drawn(0.95)
    known = 1 + error * torch.randn(REPEATS, generator=stream, dtype=torch.float64)
    told = torch.full((REPEATS,), error, dtype=torch.float64)
    found = controlled_mean(y, c, known, told)
    assert coverage(found) >= 0.95 - 0.01 - ERROR  # b is estimated: 94 to 95 %
    assert float(found.mean.var()) < float(plain_mean(y).mean.var())
    assert coverage(controlled_mean(y, c, known, torch.zeros_like(told))) < 0.9  # the error left out


def test_a_control_that_explains_everything_leaves_no_error():
    _, c, _ = drawn(0)
    found = controlled_mean(4 - 0.5 * c, c, torch.ones(REPEATS).double(), torch.zeros(REPEATS).double())
    torch.testing.assert_close(found.mean, torch.full((REPEATS,), 3.5, dtype=torch.float64))
    assert float(found.standard_error.max()) < 1e-12


def test_steps_where_the_control_says_nothing_are_plain():
    y, c, _ = drawn(0.9)
    c[:, 0], c[3, 1] = 1.0, torch.inf
    found = controlled_mean(y, c, torch.ones(REPEATS).double(), torch.zeros(REPEATS).double())
    torch.testing.assert_close(found.mean[:2], y.mean(0)[:2])
    torch.testing.assert_close(found.standard_error[:2], plain_mean(y).standard_error[:2])
    assert bool((found.standard_error[2:] < plain_mean(y).standard_error[2:]).double().mean() > 0.9)


def test_one_run_that_dominates_is_found_and_its_chance_bounded():
    y = drawn(0)[0][:, :50].clone()
    assert dominated(torch.ones(3, 4, dtype=torch.float64))[0] == 0
    y[7, 30] = 100.0
    share, run, column = dominated(y)
    assert (run, column) == (7, 30)
    assert share == pytest.approx(11 / 12, rel=0.01)  # (R - 1) / R is the most there is
    assert chance_of_share(share, RUNS) < 1e-9
    samples = drawn(0, seed=1)[0]
    spread = (samples - samples.mean(0)).square()
    shares = (spread.max(0).values / spread.sum(0)).numpy()
    for level in (0.5, 0.4):  # Bonferroni's bound is nearly sharp in the tail
        assert chance_of_share(level, RUNS) == pytest.approx((shares > level).mean(), rel=0.35)
