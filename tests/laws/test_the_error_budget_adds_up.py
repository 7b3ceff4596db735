"""Claim: the terms of an error budget add up to measured - predicted for any dynamics; zero where they must be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import dynamics
from sgdsde.dynamics import Dynamics
from tests.problems import BY_NAME, LARGER, classification_problem, mlp_problem
from tests.settings import SETTINGS
from tests.statistics import threshold

ADDED_UP = 1e-12
"""Of the first loss: rounding."""

IID = [
    *(dynamics.MomentRecursion(), dynamics.MomentEquations(1), dynamics.MomentEquations(2)),
    *(dynamics.OrnsteinUhlenbeck(), dynamics.OrnsteinUhlenbeck(freeze="init")),
    *(dynamics.GradientDescent(), dynamics.GradientFlow(), dynamics.MovingKernel()),
    *(dynamics.SDEPaths(64), dynamics.SDEPaths(64, dynamics.ExponentialEuler())),
    dynamics.SDEPaths(64, dynamics.EulerMaruyama(substeps=3)),
]
NONZERO = {
    "MomentRecursion()": set(),
    "MomentEquations(order=1, rtol=1e-07)": {"discretization"},
    "MomentEquations(order=2, rtol=1e-07)": {"discretization"},
    "OrnsteinUhlenbeck(freeze='mean_path', rtol=1e-10)": {"discretization", "frozen_noise"},
    "OrnsteinUhlenbeck(freeze='init', rtol=1e-10)": {"discretization", "frozen_noise"},
    "GradientDescent()": {"closure"},
    "GradientFlow()": {"discretization", "closure"},
}
"""Beside linearization and monte_carlo, which every measurement has."""


def added_up(budget: sgdsde.ErrorBudget) -> bool:
    return all(
        bool((sum(term.value for term in curve.terms.values()) - curve.gap).abs().max() <= ADDED_UP * curve.measured[0])
        and torch.equal(curve.gap, curve.measured - curve.predicted)
        for curve in budget.curves.values()
    )


@pytest.mark.parametrize("theory", IID, ids=range(len(IID)))
def test_it_adds_up_whatever_predicts(theory: Dynamics) -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    budget = sgdsde.error_budget(problem, sgd, 6, 5, dynamics=theory, seed=3)
    assert added_up(budget)
    predicted = sgdsde.predict(problem, sgd, 6, dynamics=theory)
    measured = sgdsde.run_ensemble(problem, sgd, 6, 5, seed=3)
    assert torch.equal(budget.test.measured, measured.test_loss.mean)
    torch.testing.assert_close(budget.test.predicted, predicted.test_loss.mean, rtol=1e-12, atol=0)
    expected = NONZERO.get(repr(theory))
    if expected is not None:
        found = {name for name, term in budget.terms.items() if not term.is_zero}
        assert found == expected | {"linearization", "monte_carlo"}


WORDS = [
    (dynamics.MomentRecursion(), SETTINGS["nesterov, decay"]),
    (dynamics.MomentEquations(1), SETTINGS["label noise, momentum"]),
    (dynamics.OrnsteinUhlenbeck(), SETTINGS["momentum, decay"]),
    (dynamics.MovingKernel(), SETTINGS["momentum"] | {"lr": lambda k: 0.1 / (1 + k)}),
    (dynamics.MomentRecursion(), SETTINGS["shuffled"]),
    (dynamics.GradientFlow(), SETTINGS["shuffled"]),
    (dynamics.MovingKernel(), SETTINGS["shuffled"]),
    (None, SETTINGS["without replacement"] | {"batch_size": 7}),
]


@pytest.mark.parametrize(("theory", "words"), WORDS, ids=range(len(WORDS)))
def test_it_adds_up_however_it_is_trained(theory: Dynamics | None, words: dict) -> None:
    sgd = sgdsde.SGD(**{"lr": 0.1, "batch_size": 3} | words)
    assert added_up(sgdsde.error_budget(mlp_problem(), sgd, 6, 5, dynamics=theory, n_reference=64))


@pytest.mark.parametrize("words", [{}, {"sampling": "shuffled"}], ids=["i.i.d.", "shuffled"])
def test_it_adds_up_for_cross_entropy(words: dict) -> None:
    for theory in (
        *(dynamics.GradientDescent(), dynamics.MovingKernel()),
        *([] if words else [dynamics.SDEPaths(64), dynamics.GaussianClosure(), None]),
    ):
        sgd = sgdsde.SGD(0.1, 3, **words)
        assert added_up(sgdsde.error_budget(classification_problem(), sgd, 5, 4, dynamics=theory, n_reference=64))


class Halved(Dynamics):
    """A theory that nobody knows: half of the step."""

    def evolve(self, linearization, sgd, record, *, progress=None):
        half = sgdsde.SGD(sgd.lr / 2, sgd.batch_size)
        return dynamics.MomentRecursion().evolve(linearization, half, record)


def test_what_is_not_known_of_a_theory_is_in_closure() -> None:
    budget = sgdsde.error_budget(mlp_problem(), sgdsde.SGD(0.1, 3), 6, 4, dynamics=Halved())
    assert added_up(budget)
    assert not budget.terms["closure"].is_zero
    assert budget.terms["frozen_noise"].note == "0: not told apart for Halved; see closure"


@pytest.mark.parametrize(
    "theory", [None, dynamics.MomentEquations(1), dynamics.OrnsteinUhlenbeck(), dynamics.SDEPaths(64)]
)
def test_what_a_truncated_kernel_leaves_out_is_in_closure(theory: Dynamics | None) -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    whole = sgdsde.linearize(problem)
    few = whole.truncate(3, tail="frozen")
    full, truncated = (sgdsde.error_budget(at, sgd, 6, 5, dynamics=theory) for at in (whole, few))
    assert added_up(truncated)
    for name in ("linearization", "monte_carlo", "non_gaussian", "discretization", "frozen_noise"):
        torch.testing.assert_close(full.terms[name].value, truncated.terms[name].value, rtol=1e-9, atol=1e-12)
    moved = full.train.predicted - truncated.train.predicted
    change = truncated.terms["closure"].value - full.terms["closure"].value
    torch.testing.assert_close(change, moved, rtol=1e-9, atol=1e-12)
    assert isinstance(theory, dynamics.SDEPaths) or float(moved.abs().max()) > 1e-3


# ------------------------------------------------------------------------------------- zero where it must be


@pytest.mark.parametrize("theory", IID, ids=range(len(IID)))
def test_a_linear_model_has_no_linearization_error(theory: Dynamics) -> None:
    problem = BY_NAME["two outputs, null space"].problem()
    budget = sgdsde.error_budget(problem, sgdsde.SGD(0.2, 2), 5, 4, dynamics=theory)
    for curve in budget.curves.values():
        for name in ("linearization", "kernel_motion"):
            assert float(curve.terms[name].value.abs().max()) < 1e-12
            assert float(curve.terms[name].standard_error.max()) < 1e-12


def test_a_linear_model_has_none_in_shuffled_epochs_either() -> None:
    problem = BY_NAME["two outputs, null space"].problem()
    sgd, theory = sgdsde.SGD(0.2, 2, sampling="shuffled"), dynamics.MovingKernel()
    budget = sgdsde.error_budget(problem, sgd, 5, 4, dynamics=theory, n_reference=64)
    assert added_up(budget)
    for name in ("linearization", "kernel_motion"):
        assert float(budget.terms[name].value.abs().max()) < 1e-12
    assert float(budget.terms["closure"].value.abs().max()) > 1e-4


def linear_classifier() -> sgdsde.Problem:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 3, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (9,), generator=generator)
    model = (lambda params, x: x @ params["theta"], {"theta": torch.zeros(5, dtype=torch.float64)})
    return sgdsde.Problem(model, x[:6], y[:6], loss=nn.CrossEntropyLoss(), x_test=x[6:], y_test=y[6:])


@pytest.mark.parametrize("build", [mlp_problem, classification_problem, linear_classifier])
def test_whole_batches_have_no_noise_terms(build: object) -> None:
    problem = build()
    whole = sgdsde.SGD(0.1, problem.n_train, sampling="without_replacement", momentum=0.5)
    squared = isinstance(problem.loss, nn.MSELoss)
    for theory in (None, dynamics.OrnsteinUhlenbeck() if squared else dynamics.GradientDescent()):
        budget = sgdsde.error_budget(problem, whole, 5, 3, dynamics=theory)
        for curve in budget.curves.values():
            assert float(curve.terms["monte_carlo"].value.abs().max()) < 1e-12
            assert curve.terms["non_gaussian"].is_zero
            assert curve.terms["frozen_noise"].is_zero
            if not isinstance(theory, dynamics.OrnsteinUhlenbeck):
                assert float(curve.terms["closure"].value.abs().max()) < 1e-12


def test_steps_and_first_row() -> None:
    budget = sgdsde.error_budget(mlp_problem(), sgdsde.SGD(0.1, 3), 6, 5, record=[0, 6])
    assert budget.steps.tolist() == [0, 6]
    assert float(budget.gap[0].abs()) < 1e-12
    assert all(float(term.value[0].abs()) < 1e-12 for term in budget.terms.values())


# ---------------------------------------------------------------------------- what the standard errors say


def test_terms_of_sampled_references_lie_within_their_standard_errors() -> None:
    """On a linear problem where the expectation is known: its sampled estimate, by the shuffled budget's own way."""
    problem = LARGER.problem()
    linearization = sgdsde.linearize(problem)
    lr = 0.3 * sgdsde.stability.max_lr(linearization, 4)
    budget = sgdsde.error_budget(problem, sgdsde.SGD(lr, 4), 20, 200, dynamics=dynamics.SDEPaths(2000), record=[5, 20])
    limit = threshold(2 * 2 * 2)
    for curve in budget.curves.values():
        for name in ("monte_carlo", "closure"):
            term = curve.terms[name]
            assert bool((term.standard_error > 0).all())
            assert float((term.value / term.standard_error).abs().max()) < limit


def test_a_batch_off_by_two_shows_in_closure() -> None:
    """The negative control of the test before: the chain of another batch size is not the expectation."""

    class Doubled(Dynamics):
        def evolve(self, linearization, sgd, record, *, progress=None):
            doubled = sgdsde.SGD(sgd.lr, 2 * sgd.batch_size)
            return dynamics.SDEPaths(2000).evolve(linearization, doubled, record, progress=progress)

    problem = LARGER.problem()
    lr = 0.3 * sgdsde.stability.max_lr(problem, 4)
    term = sgdsde.error_budget(problem, sgdsde.SGD(lr, 4), 20, 8, dynamics=Doubled(), record=[5, 20]).terms["closure"]
    assert float((term.value / term.standard_error).abs().min()) > 2 * threshold(8)


def test_noise_that_is_not_gaussian_is_seen_under_cross_entropy() -> None:
    """Single examples of a classifier without bias: batches of one against Gaussian noise, far beyond chance."""
    budget = sgdsde.error_budget(linear_classifier(), sgdsde.SGD(2.0, 1), 6, 8, n_reference=4000, record=[6])
    term = budget.terms["non_gaussian"]
    assert float((term.value / term.standard_error).abs()[0]) > 5
    calm = sgdsde.error_budget(linear_classifier(), sgdsde.SGD(0.02, 3), 6, 8, n_reference=4000, record=[6])
    term = calm.terms["non_gaussian"]
    assert float((term.value / term.standard_error).abs()[0]) < threshold(1)


def test_the_error_of_paired_runs_is_that_of_the_differences() -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    term = sgdsde.error_budget(problem, sgd, 6, 12, record=[6]).terms["linearization"]
    real = sgdsde.run_ensemble(problem, sgd, 6, 12, record=[6]).train_loss.samples
    linear = sgdsde.run_ensemble(sgdsde.linearize(problem), sgd, 6, 12, record=[6]).train_loss.samples
    difference: Tensor = real - linear
    torch.testing.assert_close(term.value, difference.mean(0), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(term.standard_error, difference.std(0) / 12**0.5, rtol=1e-9, atol=0)
