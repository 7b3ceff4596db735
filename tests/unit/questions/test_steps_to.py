"""How long until the loss is below a number: crossings of curves, of runs, and of laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sgdsde
from sgdsde.bands import LossBand
from sgdsde.questions.crossing import first_below
from tests.problems import mlp_problem
from tests.unit.questions import one_weight


def trajectory(steps: list[int], band: LossBand, **words: object) -> sgdsde.Trajectory:
    n_runs = 0 if band.samples is None else len(band.samples)
    return sgdsde.Trajectory(
        steps=torch.tensor(steps),
        times=0.1 * torch.tensor(steps).double(),
        train_loss=band,
        test_loss=None,
        train_outputs=None,
        test_outputs=None,
        n_runs=n_runs,
        dynamics="measured: by hand" if n_runs else "by hand",
        problem_digest="none",
        diverged_at=torch.full((n_runs,), steps[-1] + 1),
        **words,
    )


def curve(steps: list[int], values: list[float] | np.ndarray, std: float = 0.0) -> sgdsde.Trajectory:
    mean = torch.tensor(np.array(values), dtype=torch.float64)
    return trajectory(steps, LossBand(mean, std * mean, torch.zeros_like(mean)))


@pytest.fixture(scope="module")
def runs() -> sgdsde.Trajectory:
    """60 runs of the linearized model, every step recorded; many fluctuate around their last level."""
    sgd = sgdsde.SGD(0.25, 2)
    return sgdsde.run_ensemble(sgdsde.linearize(one_weight.problem()), sgd, 40, 60, record=range(41))


@pytest.mark.parametrize("level", [0.9, 0.5, 0.123, 0.0201])
def test_an_exponential_is_exact_between_recorded_steps(level: float) -> None:
    sparse, every = [0, 3, 10, 31, 40], np.exp(-np.arange(41) / 10)
    expected = int(np.argmax(every < level))
    found = sgdsde.steps_to(curve(sparse, every[sparse]), loss=level)
    assert found.step == expected
    assert found.of_mean is not None
    assert found.of_mean.after < expected <= found.of_mean.by
    assert sgdsde.steps_to(curve(list(range(41)), every), loss=level).of_mean == first_below(
        np.arange(41), every, level
    )


def test_below_is_strict() -> None:
    assert first_below(np.array([0, 4, 8]), np.array([4.0, 2.0, 1.0]), 2.0).step == 5
    assert first_below(np.array([0, 1, 2]), np.array([4.0, 2.0, 1.0]), 2.0).step == 2


def test_an_infinite_loss_before_is_no_line() -> None:
    found = first_below(np.array([0, 4, 8]), np.array([4.0, math.inf, 1.0]), 2.0)
    assert (found.step, found.after, found.by) == (8, 4, 8)


def test_a_loss_that_is_low_from_the_start_says_so() -> None:
    found = sgdsde.steps_to(curve([0, 5], [0.1, 0.05]), loss=0.2)
    assert found.step == 0
    assert "already at step 0" in found.sentence


@pytest.mark.parametrize("level", [2.0, 1.4, 1.145])
def test_every_run_is_looked_up_by_itself(runs: sgdsde.Trajectory, level: float) -> None:
    samples = runs.train_loss.samples
    assert samples is not None
    found = sgdsde.steps_to(runs, loss=level)
    slow = []
    for run in samples.tolist():
        arrived = [step for step, loss in enumerate(run) if loss < level]
        slow.append(arrived[0] if arrived else 41)
    assert found.run_steps is not None
    assert found.run_steps.tolist() == slow
    for q in (0.1, 0.5, 0.9, 0.99):
        wanted = sorted(slow)[math.ceil(q * 60 - 1e-9) - 1]
        assert found.quantile(q) == (None if wanted == 41 else wanted)
    assert found.share == sum(step < 41 for step in slow) / 60
    assert found.share_by(5) == sum(step <= 5 for step in slow) / 60


def test_runs_that_do_not_arrive_are_censored_not_dropped() -> None:
    samples = torch.tensor([[4.0, 1.0, 0.5]] * 6 + [[4.0, 3.0, 2.0]] * 4, dtype=torch.float64)
    found = sgdsde.steps_to(trajectory([0, 1, 2], LossBand.from_samples(samples)), loss=0.9)
    assert (found.quantile(0.5), found.quantile(0.6), found.quantile(0.61)) == (2, 2, None)
    assert found.share == 0.6
    assert "60 % arrive within the record, the others later or never" in found.sentence
    assert found.step is None  # the mean of the last losses is 1.1
    low, high = found.share_interval or (0, 0)
    exact = stats.binomtest(6, 10).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), rel=1e-9)


def test_a_run_that_diverges_makes_the_mean_infinite_not_the_others_late() -> None:
    samples = torch.tensor([[4.0, 1.0, 0.5]] * 9 + [[4.0, 9.0, math.inf]], dtype=torch.float64)
    measured = trajectory([0, 1, 2], LossBand.from_samples(samples))
    measured.diverged_at[-1] = 2
    found = sgdsde.steps_to(measured, loss=0.9)
    assert found.step is None
    assert found.quantile(0.9) == 2
    assert "1 runs diverged" in str(found)


def test_the_law_of_a_prediction_bounds_the_steps_of_runs() -> None:
    """2000 runs of the linearized model; the share that has arrived is never below that of the law.

    The law at each step is taken as a Gamma law. Where the runs fluctuate around the level they arrive
    earlier: the bound must not be tight there, or it would be no bound but a coincidence.
    """
    linear, sgd = sgdsde.linearize(mlp_problem(n_train=24)), sgdsde.SGD(0.12, 2)
    predicted = sgdsde.predict(linear, sgd, 40, record=range(41), dynamics=sgdsde.dynamics.MomentRecursion())
    measured = sgdsde.run_ensemble(linear, sgd, 40, 2000, record=range(41))
    level = float(predicted.train_loss.mean[12])
    law, runs = (sgdsde.steps_to(one, loss=level) for one in (predicted, measured))
    for q in (0.25, 0.5, 0.75):
        late, seen = law.quantile(q), runs.quantile(q)
        assert late is not None
        assert seen is not None
        assert seen <= late + 1
    for step in (8, 12, 20):
        assert runs.share_by(step) > law.share_by(step) - 0.06  # 2000 runs: 3 standard errors are 0.034
    assert runs.share_by(40) > law.share_by(40) + 0.02


def test_the_error_of_a_mean_becomes_an_interval_of_steps() -> None:
    steps, mean = list(range(11)), torch.linspace(10, 0.5, 11, dtype=torch.float64)
    exact = LossBand(mean, torch.zeros(11).double(), torch.zeros(11).double())
    noisy = LossBand(mean, torch.zeros(11).double(), torch.full((11,), 0.6).double())
    assert sgdsde.steps_to(trajectory(steps, exact), loss=4.0).interval == (7, 7)
    found = sgdsde.steps_to(trajectory(steps, noisy), loss=4.0)
    low, high = mean - 1.2, mean + 1.2
    assert found.interval == (int((low < 4).int().argmax()), int((high < 4).int().argmax()))
    estimated = trajectory(steps, exact, estimated_error=torch.full((11,), 0.3).double())
    assert sgdsde.steps_to(estimated, loss=4.0).interval == (5, 8)


def test_a_prediction_past_the_limit_answers_nothing() -> None:
    words = str(
        sgdsde.steps_to(trajectory([0, 1], curve([0, 1], [2.0, 1.0]).train_loss, mean_square_limit=0.1), loss=1.5)
    )
    assert "not at all" in words
    assert "past the mean-square limit 0.1" in words


def test_never_reached_says_so_and_what_was_seen() -> None:
    falling = sgdsde.steps_to(curve([0, 10, 20, 30], [4, 3, 2, 1]), loss=0.5)
    assert falling.step is None
    assert "is not below 0.5 at any of the 30 steps; the smallest is 1, at step 30" in falling.sentence
    assert "still falls" in str(falling)
    assert "nearly stopped falling" in str(sgdsde.steps_to(curve([0, 10, 20, 30], [4, 1, 1, 1]), loss=0.5))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"loss": 0.0}, "loss must be positive"),
        ({"loss": math.nan}, "loss must be finite"),
        ({"loss": 1.0, "side": "test"}, "without a test set"),
        ({"loss": 1.0, "side": "both"}, "'train' or 'test'"),
    ],
)
def test_bad_input_is_refused(words: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgdsde.steps_to(curve([0, 1], [2.0, 1.0]), **words)
    with pytest.raises(TypeError, match="a Trajectory"):
        sgdsde.steps_to([2.0, 1.0], loss=1.0)  # type: ignore[arg-type]


def test_the_picture_shows_level_and_arrival(runs: sgdsde.Trajectory, tmp_path) -> None:
    axes = sgdsde.steps_to(runs, loss=1.4).plot(tmp_path / "steps.png")
    assert {"loss 1.4", "the mean arrives"} <= {line.get_label() for line in axes.get_lines()}
    assert (tmp_path / "steps.png").stat().st_size > 0
