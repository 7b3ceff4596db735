"""What bands say of their runs: moments, quantiles, one run, equal runs, runs that are not finite."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from scipy import stats

from sgdsde import LossBand, OutputBand

GENERATOR = torch.Generator().manual_seed(0)


def draws(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64)


def test_moments_and_quantiles_of_samples_are_exact():
    samples = draws(11, 3)
    band = LossBand.from_samples(samples)
    np.testing.assert_allclose(band.mean, samples.numpy().mean(0), rtol=1e-14)
    np.testing.assert_allclose(band.std, samples.numpy().std(0, ddof=1), rtol=1e-13)
    torch.testing.assert_close(band.standard_error, band.std / 11**0.5)
    for rank, q in ((0, 0.0), (5, 0.5), (10, 1.0), (2, 3 / 11)):
        torch.testing.assert_close(band.quantile(q), samples.sort(0).values[rank], rtol=0, atol=0)
    assert band.has_samples


def test_quantiles_stay_finite_while_enough_runs_are():
    samples = torch.arange(10.0).repeat(2, 1).T
    samples[7:, 1] = torch.tensor([math.inf, math.nan, math.inf])
    band = LossBand.from_samples(samples)
    assert band.mean.tolist() == [4.5, math.inf]
    assert band.std[1] == math.inf
    assert band.quantile(0.5).tolist() == [4, 4]
    assert band.quantile(0.7).tolist() == [6, 6]
    assert band.quantile(0.71).tolist() == [7, math.inf]


def test_one_run_has_no_spread_to_tell():
    band = LossBand.from_samples(draws(1, 3))
    assert band.std.isnan().all()
    assert band.standard_error.isnan().all()
    assert torch.equal(band.quantile(0.3), band.mean)
    assert OutputBand.from_samples(draws(1, 3, 2, 1)).std.isnan().all()


def test_equal_runs_have_no_spread_at_all():
    band = LossBand.from_samples((draws(1, 3) / 3).repeat(7, 1))
    assert (band.std == 0).all()


def test_quantiles_of_moments_are_those_of_a_gamma_law():
    mean, std = torch.tensor([[2.0, 0.5, 1.0], [0.4, 0.6, 0.0]], dtype=torch.float64)
    band = LossBand(mean, std, torch.zeros(3))
    assert not band.has_samples
    for q in (0.025, 0.5, 0.975):
        values = band.quantile(q)
        law = [stats.gamma(a=(m / s) ** 2, scale=s**2 / m) for m, s in ((2.0, 0.4), (0.5, 0.6))]
        np.testing.assert_allclose(values[:2], [part.ppf(q) for part in law], rtol=1e-12)
        assert values[2] == 1.0
    assert law[0].mean() == pytest.approx(2.0)
    assert law[0].std() == pytest.approx(0.4)


def test_quantiles_of_infinite_moments_are_infinite():
    band = LossBand(torch.tensor([math.inf]).double(), torch.tensor([math.inf]).double(), torch.zeros(1))
    assert band.quantile(0.5).tolist() == [math.inf]


@pytest.mark.parametrize(("q", "message"), [(1.5, "q must be in [0, 1], got 1.5"), (math.nan, "q must be finite")])
def test_a_quantile_lies_between_zero_and_one(q, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LossBand.from_samples(draws(3, 2)).quantile(q)
