"""The spread over runs: standard deviations, their error, and the runs that a mean needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.bands import LossBand
from tests.problems import mlp_problem
from tests.unit.questions import one_weight
from tests.unit.questions.test_steps_to import curve, trajectory


def test_the_numbers_are_those_of_the_samples(tmp_path) -> None:
    samples = torch.from_numpy(np.random.default_rng(3).gamma(4.0, size=(30, 3)))
    found = sgdsde.spread_over_runs(trajectory([0, 1, 2], LossBand.from_samples(samples)))
    array = samples.numpy()
    assert found.relative_std.numpy() == pytest.approx(array.std(0, ddof=1) / array.mean(0), rel=1e-12)
    left_out = np.array([np.delete(array, i, 0).std(0, ddof=1) / np.delete(array, i, 0).mean(0) for i in range(30)])
    jackknife = np.sqrt(29 / 30 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    assert found.relative_std_error.numpy() == pytest.approx(jackknife, rel=1e-9)
    assert found.at() == found.at(2)
    assert found.plot(tmp_path / "spread.png").get_ylabel().startswith("standard deviation over runs")


def test_that_many_runs_give_the_mean_and_fewer_do_not() -> None:
    """Means over ``runs_needed`` draws are within the error 19 times of 20; over a quarter of them they are not.

    4000 means each; the miss rate of an exact 95 % interval is 0.0455, its standard error 0.0033.
    """
    rng, error = np.random.default_rng(4), 0.05
    samples = torch.from_numpy(rng.gamma(8.0, size=(5000, 1)) / 8)
    needed = sgdsde.spread_over_runs(trajectory([0], LossBand.from_samples(samples))).runs_needed(error)
    assert needed == pytest.approx(4 * (1 / 8) / error**2, rel=0.1)
    missed = [(abs(rng.gamma(8.0, size=(4000, n)).mean(1) / 8 - 1) > error).mean() for n in (needed, needed // 4)]
    assert 0.03 < missed[0] < 0.062
    assert missed[1] > 0.2


def test_a_difference_that_can_be_told_shrinks_with_the_root_of_the_runs() -> None:
    found = sgdsde.spread_over_runs(curve([0, 1], [2.0, 1.0], std=0.1))
    assert found.smallest_difference(1) == pytest.approx(2 * 2**0.5 * 0.1)
    assert found.smallest_difference(16) == pytest.approx(found.smallest_difference(1) / 4)
    assert found.runs_needed(0.1) == 4


def test_predicted_and_measured_spread_agree() -> None:
    """1200 runs; 4 standard errors of their relative standard deviation are allowed, about 12 % of it."""
    linear, sgd = sgdsde.linearize(mlp_problem(n_train=24)), sgdsde.SGD(0.05, 2)
    predicted = sgdsde.spread_over_runs(sgdsde.predict(linear, sgd, 20, record=[0, 20]))
    measured = sgdsde.spread_over_runs(sgdsde.run_ensemble(linear, sgd, 20, 1200, record=[0, 20]))
    assert predicted.at() > 0.01
    assert abs(predicted.at() - measured.at()) < 4 * float(measured.relative_std_error[-1])
    halved = sgdsde.spread_over_runs(sgdsde.predict(linear, sgdsde.SGD(0.05, 4), 20, record=[0, 20]))
    assert abs(halved.at() - measured.at()) > 4 * float(measured.relative_std_error[-1])  # of twice the batch


def test_no_noise_is_not_sold_as_certainty() -> None:
    found = sgdsde.predict(one_weight.problem(), sgdsde.SGD(0.1, 2), 5, dynamics=sgdsde.dynamics.GradientFlow())
    assert "no spread to tell" in str(sgdsde.spread_over_runs(found))
    assert sgdsde.spread_over_runs(found).runs_needed(0.05) == 1


def test_bad_input_is_refused() -> None:
    one = trajectory([0, 1], LossBand.from_samples(torch.ones(1, 2).double()))
    with pytest.raises(ValueError, match="two runs at least"):
        sgdsde.spread_over_runs(one)
    with pytest.raises(ValueError, match="gives a spread"):
        sgdsde.spread_over_runs(curve([0, 1], [2.0, 1.0], std=math.nan))
    found = sgdsde.spread_over_runs(curve([0, 2], [2.0, 1.0], std=0.1))
    with pytest.raises(ValueError, match="a recorded step, got 1"):
        found.at(1)
    with pytest.raises(ValueError, match="relative_error must be positive"):
        found.runs_needed(0.0)
    diverged = torch.tensor([[2.0, math.inf], [2.0, 1.0], [2.0, 1.0]]).double()
    with pytest.raises(ValueError, match="before the loss diverges"):
        sgdsde.spread_over_runs(trajectory([0, 1], LossBand.from_samples(diverged))).runs_needed(0.05)
    with pytest.raises(TypeError, match="a Trajectory"):
        sgdsde.spread_over_runs(None)  # type: ignore[arg-type]
