"""One call for the expected loss: which way it takes, what it says of it, and what a budget does."""

from __future__ import annotations

import re

import pytest
import torch

import sgdsde
from sgdsde import SGD, MeasurementWarning, Problem, answer, answering, predict, run_ensemble
from sgdsde.advice import Advice
from sgdsde.dynamics import GradientDescent
from tests.problems import LARGER, mlp_problem

RECORD = [0, 4, 12]


@pytest.fixture(scope="module")
def lazy() -> Problem:
    """A network so wide that a run costs more than the theory of its few examples."""
    generator = torch.Generator().manual_seed(0)
    model = sgdsde.networks.MLP(2, 1024, 1, dtype=torch.float64, generator=generator)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    return Problem(model, x, torch.sin(x[:, :1]), loss=torch.nn.MSELoss())


def test_a_prediction_where_it_is_cheap_and_good(lazy):
    problem, sgd = lazy, SGD(0.02, 3)
    made = answer(problem, sgd, 12, record=RECORD)
    assert made.origin == "predicted"
    assert made.n_runs == 0
    torch.testing.assert_close(
        made.train_loss.mean, predict(sgdsde.linearize(problem), sgd, 12, record=RECORD).train_loss.mean
    )
    truth = run_ensemble(problem, sgd, 12, 64, record=RECORD).train_loss
    assert float((made.train_loss.mean / truth.mean - 1).abs().max()) < 0.05
    assert "predicted, without a run: error to expect" in made.obtained
    assert "the kernel moves by" in made.obtained
    assert 0 <= made.effort["expected_error"] <= 0.02


def test_runs_where_the_kernel_moves(lazy):
    problem, sgd = lazy, SGD(0.02, 3)
    made = answer(problem, sgd, 12, record=RECORD, tolerance=0.001, seed=3)
    assert made.origin == "measured"
    assert made.effort["expected_error"] <= 0.00101


def test_runs_where_theory_costs_more():
    problem, sgd = mlp_problem(n_train=40), SGD(0.1, 2)
    made = answer(problem, sgd, 12, record=RECORD, tolerance=0.1)
    assert made.origin == "measured"
    assert "a prediction takes the operations of" in made.obtained
    truth = run_ensemble(problem, sgd, 12, 512, record=RECORD, seed=77)
    for side, band in made.losses.items():
        assert float((band.mean / truth.losses[side].mean - 1).abs().max()) < 0.1
    assert made.effort["expected_error"] <= 0.1


def test_a_budget_that_ends_first_says_what_was_reached(monkeypatch):
    monkeypatch.setattr(answering, "plain_seconds", lambda *_: 1e-9)  # so that the first batch takes all of it
    with pytest.warns(MeasurementWarning) as caught:
        made = answer(mlp_problem(n_train=40), SGD(0.1, 2), 12, record=RECORD, tolerance=0.001, budget=6)
    said = " ".join(str(warning.message) for warning in caught)
    assert re.search(r"is [\d.]+ % at the worst step after 6 runs, above the target .* raise budget=6, or toler", said)
    assert made.n_runs == 6
    assert made.effort["expected_error"] > 0.001


def test_more_than_the_budget_is_said():
    with pytest.warns(MeasurementWarning, match=r"the answer cost [\d.e+]+ plain runs, above the budget of 4"):
        answer(mlp_problem(n_train=40), SGD(0.1, 2), 2, record=[0, 2], tolerance=0.5, budget=4)


def test_advice_is_followed():
    problem, sgd = LARGER.problem(), SGD(0.1, 4)
    theory = Advice("predict", GradientDescent(), None, 0.2, (0.1, 0.4), 1.0, "it was asked for")
    made = answer(problem, sgd, 12, record=RECORD, advice=theory)
    assert (made.origin, made.dynamics) == ("predicted", "GradientDescent()")
    assert made.obtained.endswith("it was asked for")
    runs = answer(
        problem, sgd, 12, record=RECORD, tolerance=0.5, advice=Advice("measure", None, 20, 0.1, (0, 0.1), 1.0)
    )
    assert (runs.origin, runs.n_runs) == ("measured", 20)
    between = answer(mlp_problem(n_train=16), SGD(0.06, 2), 24, advice=Advice("surface", None, 8, 0.1, (0, 0.1), 1.0))
    assert between.origin == "interpolated"
    assert between.effort["expected_error"] == 0.1


def test_a_diagnosis_can_be_followed():
    problem, sgd = mlp_problem(n_train=16), SGD(0.06, 2)
    found = sgdsde.diagnose(problem, sgd, 24, tolerance=0.5)
    made = answer(problem, sgd, 24, tolerance=0.5, record=[0, 24], advice=found.for_answer)
    assert made.origin == ("measured" if found.n_runs is not None else "predicted")
    assert found.n_runs is None or made.n_runs == found.n_runs
    assert found.sentence in made.obtained


def test_past_the_limit_it_measures(lazy):
    problem = lazy
    sgd = SGD(1.2 * sgdsde.stability.max_lr(problem, 3), 3)
    made = answer(problem, sgd, 12, record=RECORD, tolerance=2.0)
    assert made.origin == "measured"
    assert "past the limit" in made.obtained


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"budget": 3}, ValueError, "budget must be at least 4 runs, which tell their spread, got 3 runs"),
        ({"tolerance": 0}, ValueError, "tolerance must be positive"),
        ({"advice": "measure"}, TypeError, "advice must be an Advice, got str"),
    ],
)
def test_bad_words_are_refused(words, error, message):
    with pytest.raises(error, match=message):
        answer(mlp_problem(), SGD(0.1, 2), 3, **words)
