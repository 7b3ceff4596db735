"""Claim: the assertion behind every statistical test raises false alarms as rarely as it says, and sees errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.statistics import assert_mean_is, threshold, z_scores


def alarms(shift: float, *, rate: float, experiments: int = 1000, samples: int = 400, numbers: int = 20) -> int:
    """Of experiments whose true means are 0, how often ``shift`` is refuted; normal samples, correlated columns."""
    rng = np.random.default_rng(0)
    count = 0
    for _ in range(experiments):
        values = rng.normal(size=(samples, numbers)) + 0.5 * rng.normal(size=(samples, 1))
        try:
            assert_mean_is(torch.full((numbers,), shift).double(), torch.from_numpy(values), error_rate=rate)
        except AssertionError:
            count += 1
    return count


def test_false_alarms_are_as_rare_as_stated() -> None:
    """1000 experiments at a rate of 0.05: more than the binomial law allows at 1e-6 refutes the rate."""
    assert alarms(0.0, rate=0.05) <= stats.binom.isf(1e-6, 1000, 0.05)


def test_a_shift_of_six_standard_errors_is_seen() -> None:
    assert alarms(6 * 1.25**0.5 / 20, rate=1e-4, experiments=100) >= 98


def test_thresholds_share_the_error_rate() -> None:
    assert threshold(1, 0.05) == pytest.approx(1.959964, abs=1e-6)
    assert threshold(50, 1e-4) == pytest.approx(float(stats.norm.isf(1e-6)))


def test_samples_without_spread_must_be_equal() -> None:
    constant = torch.full((5, 2), 3.0, dtype=torch.float64)
    assert_mean_is(torch.tensor([3.0, 3.0 + 1e-12]).double(), constant)
    with pytest.raises(AssertionError, match="z = inf"):
        assert_mean_is(torch.tensor([3.0, 3.001]).double(), constant)


def test_a_failure_says_where_and_how_far() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 3)))
    z, estimate, error = z_scores(torch.tensor([0.0, 9.0, 0.0]).double(), values)
    assert float(z[1]) == pytest.approx(float((estimate[1] - 9) / error[1]))
    with pytest.raises(AssertionError, match=r"loss at \(1,\): z = -\d+.*standard error 0\.\d+, predicted 9"):
        assert_mean_is(torch.tensor([0.0, 9.0, 0.0]).double(), values, what="loss")


def test_not_a_number_is_never_agreement() -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(100, 2)))
    with pytest.raises(AssertionError):
        assert_mean_is(torch.tensor([0.0, torch.nan]).double(), values)
    values[3, 0] = torch.nan
    with pytest.raises(AssertionError):
        assert_mean_is(torch.zeros(2).double(), values)
