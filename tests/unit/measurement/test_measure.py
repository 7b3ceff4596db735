"""Measurements of a mean loss: their runs, their certainty on problems of known mean, and their warnings."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy import stats

import sgdsde
from sgdsde import SGD, Linearization, MeasurementWarning, compare, linearize, measure, predict, run_ensemble
from sgdsde.measurement.control import LinearizedControl
from sgdsde.measurement.estimate import NORMAL, plain_mean, widening
from sgdsde.measurement.operations import Operations, forward_operations
from sgdsde.measurement.runs import batch_seed, samples
from tests.problems import BY_NAME, LARGER, classification_problem, mlp_problem

RECORD = [0, 1, 4, 12]


def test_the_runs_are_those_of_run_ensemble():
    problem, sgd = mlp_problem(), SGD(0.1, 2, momentum=0.5)
    made = measure(problem, sgd, 12, target=0.06, record=RECORD, seed=5, observe=("loss", "accuracy", "outputs"))
    assert made.n_runs > 8
    first = run_ensemble(problem, sgd, 12, 8, seed=5, record=RECORD, observe=("loss", "accuracy", "outputs"))
    assert torch.equal(made.train_loss.samples[:8], first.train_loss.samples)
    assert torch.equal(made.test_outputs.samples[:8], first.test_outputs.samples)
    second = run_ensemble(problem, sgd, 12, 24, seed=batch_seed(5, 1), record=RECORD)
    count = min(made.n_runs, 32) - 8
    torch.testing.assert_close(made.test_loss.samples[8 : 8 + count], second.test_loss.samples[:count])
    torch.testing.assert_close(made.train_loss.mean, made.train_loss.samples.mean(0))
    assert (made.origin, len(made.diverged_at)) == ("measured", made.n_runs)
    assert compare(made, first).verdict in (sgdsde.Verdict.AGREES, sgdsde.Verdict.WITHIN_NOISE)


def test_it_stops_where_the_target_is_reached_and_says_what_it_did():
    problem, sgd = mlp_problem(), SGD(0.1, 2)
    made = measure(problem, sgd, 12, target=0.05, record=RECORD, control="never")
    relative = [widening(made.n_runs - 1) * band.standard_error / band.mean for band in made.losses.values()]
    reached = float(torch.cat(relative).max())
    assert reached == pytest.approx(made.effort["relative_standard_error"])
    assert reached <= 0.05
    assert made.effort["cost_in_runs"] > 0
    assert f"measured: {made.n_runs} real runs, standard error {100 * reached:.2g} % at the worst step" in made.obtained
    assert measure(problem, sgd, 12, target=0.5, record=RECORD).n_runs == 8


def test_a_cap_that_ends_it_is_said_with_the_error_reached():
    with pytest.warns(
        MeasurementWarning, match=r"is [\d.]+ % at the worst step after 10 runs, above the target of 0.1 %"
    ):
        made = measure(mlp_problem(), SGD(0.1, 2), 12, target=0.001, max_runs=10, record=RECORD)
    assert made.n_runs == 10
    assert made.effort["relative_standard_error"] > 0.001


@pytest.mark.slow
def test_intervals_hold_the_mean_in_repeated_measurements():
    """60 measurements of a mean that is known exactly, stopped by their own spread: at least 50 intervals hold it.

    Were the coverage 93 %, fewer would at a chance of 5e-3; were it 70 %, as many would at a chance of 1e-2.
    """
    problem, sgd = LARGER.problem(), SGD(0.1, 4)
    exact = predict(problem, sgd, 4, record=[0, 4]).test_loss.mean
    held = torch.zeros(2)
    runs = []
    for seed in range(60):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MeasurementWarning)
            made = measure(problem, sgd, 4, target=0.01, record=[0, 4], seed=seed, control="never")
        reach = NORMAL * widening(made.n_runs - 1) * made.test_loss.standard_error
        held += (made.test_loss.mean - exact).abs() <= reach + 1e-12
        runs.append(made.n_runs)
    assert len(set(runs)) > 5  # it does stop by chance
    assert bool((held >= 50).all()), held


def test_a_linear_model_is_its_own_control():
    problem, sgd = BY_NAME["two outputs, null space"].problem(), SGD(0.1, 2)
    made = measure(problem, sgd, 12, target=1e-6, record=RECORD, control="always")
    exact = predict(problem, sgd, 12, record=RECORD)
    assert made.n_runs == 8
    torch.testing.assert_close(made.train_loss.mean, exact.train_loss.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(made.test_loss.mean, exact.test_loss.mean, rtol=1e-9, atol=0)
    assert made.effort["runs_saved"] > 1000
    assert "as control, which saved" in made.obtained


@pytest.mark.parametrize(
    ("problem", "sgd"),
    [
        (mlp_problem(), SGD(0.05, 2, momentum=0.5)),
        (mlp_problem(), SGD(0.05, 2, sampling="shuffled", weight_decay=0.1)),
        (classification_problem(), SGD(0.1, 2)),
    ],
    ids=["exact expectation", "shuffled", "cross-entropy"],
)
def test_a_control_changes_the_error_and_not_the_mean(problem, sgd, monkeypatch):
    """Controlled and plain means of independent runs agree within 4 standard errors over 8 numbers: chance 5e-4."""
    monkeypatch.setattr("sgdsde.measurement.control.SAMPLED_RUNS", 256)
    with pytest.warns(MeasurementWarning, match="above the target"):
        made = measure(problem, sgd, 12, target=1e-4, max_runs=48, record=RECORD, control="always", seed=1)
    truth = run_ensemble(problem, sgd, 12, 300, record=RECORD, seed=2)
    for side, band in made.losses.items():
        other = truth.losses[side]
        error = torch.hypot(band.standard_error, other.standard_error)[1:]
        assert float(((band.mean - other.mean)[1:] / error).abs().max()) < stats.norm.isf(5e-4 / 16)
        assert bool((band.standard_error <= 1.1 * band.std / 48**0.5).all())
    assert made.effort["runs_saved"] > 48


@pytest.mark.parametrize(("theory", "taken"), [(0.0, True), (1e12, False)])
def test_the_control_is_taken_where_it_costs_less(theory, taken, monkeypatch):
    monkeypatch.setattr(Operations, "of", classmethod(lambda cls, *_: cls(run=1e6, linear_run=1e3, theory=theory)))
    made = measure(LARGER.problem(), SGD(0.1, 4), 12, target=0.01, record=RECORD)
    assert ("as control" in made.obtained) == taken
    assert (made.n_runs == 8) == taken


def test_a_control_that_explains_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(Operations, "of", classmethod(lambda cls, *_: cls(run=1e6, linear_run=1e6, theory=0.0)))
    monkeypatch.setattr(LinearizedControl, "mean", lambda control, side: plain_mean(samples(control.runs.parts, side)))
    made = measure(mlp_problem(), SGD(0.1, 2), 12, target=0.05, record=RECORD)
    assert "as control" not in made.obtained
    assert made.effort["runs_saved"] == 0


def test_operations_are_counted_by_hand():
    problem, sgd = mlp_problem(n_train=7), SGD(0.1, 2)
    products, weights = 2 * (3 * 5 + 5 * 4 + 4 * 2), 3 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2
    forward = products + 2 * weights
    found = Operations.of(problem, sgd, 12, 4)
    assert forward_operations(problem) == forward
    assert found.run == forward * (3 * 2 * 12 + 4 * (7 + 4))
    assert found.linear_run == 2 * (14 + 8) * 14 * 12
    shuffled = Operations.of(problem, SGD(0.1, 2, sampling="shuffled"), 12, 4)
    assert shuffled.theory > 1024 * shuffled.linear_run


def test_runs_that_diverge_are_counted():
    with pytest.warns(MeasurementWarning, match="8 of 8 runs diverged, the first at step") as caught:
        made = measure(mlp_problem(), SGD(50.0, 2), 200, record=[0, 100, 200])
    assert made.n_runs == 8
    assert bool(torch.isinf(made.train_loss.mean[1:]).all())
    assert "standard errors hold for the steps before" in str(caught[0].message)


def test_a_run_that_dominates_is_named():
    """Beyond the mean-square limit but within that of full batches the loss has a tail without variance."""
    problem = BY_NAME["one output"].problem()
    lr = 1.6 * sgdsde.stability.max_lr(problem, 1)
    with pytest.warns(MeasurementWarning, match=r"run \d+ makes \d+ % of the variance of the (train|test) loss"):
        measure(problem, SGD(lr, 1), 60, target=0.3, record=[0, 60], max_runs=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 0}, "target must be positive"),
        ({"max_runs": 0}, "max_runs must be at least 1"),
        ({"min_runs": 3}, "min_runs must be at least 4"),
        ({"control": "linear"}, "control must be one of 'auto', 'always', 'never'"),
    ],
)
def test_bad_words_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        measure(mlp_problem(), SGD(0.1, 2), 3, **change)


def test_a_linearization_is_refused_with_what_takes_it():
    linearization: Linearization = linearize(mlp_problem())
    with pytest.raises(TypeError, match=r"must be a Problem, got Linearization; .* run_ensemble"):
        measure(linearization, SGD(0.1, 2), 3)
