"""Claim: the order of the examples and the order of the outputs mean nothing: relabelling permutes every law."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import Dynamics, GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from tests.problems import AFFINE, LINEAR, Case
from tests.settings import chosen

WORDS = chosen("plain", "without replacement", "momentum, decay", "label noise")


def relabelled(problem: sgdsde.Problem, examples: Tensor, outputs: Tensor) -> sgdsde.Problem:
    return sgdsde.Problem(
        problem.model,
        problem.x_train[examples][:, outputs],
        problem.y_train[examples][:, outputs],
        loss=nn.MSELoss(),
        x_test=problem.x_test[:, outputs],
        y_test=problem.y_test[:, outputs],
    )


def orders(case: Case) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randperm(case.n_train, generator=generator), torch.arange(case.n_outputs).flip(0)


def laws(problem: sgdsde.Problem, sgd: sgdsde.SGD, dynamics: Dynamics) -> list[sgdsde.dynamics.OutputLaw]:
    return list(dynamics.evolve(sgdsde.linearize(problem), sgd, (0, 1, 4, 20)))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_moments_are_relabelled(case: Case, words: dict) -> None:
    problem, sgd = case.problem(), sgdsde.SGD(0.1, 3, **words)
    examples, outputs = orders(case)
    places = (examples[:, None] * case.n_outputs + outputs).flatten()
    test_places = (torch.arange(case.n_test)[:, None] * case.n_outputs + outputs).flatten()
    pairs = zip(
        laws(problem, sgd, MomentRecursion()), laws(relabelled(problem, examples, outputs), sgd, MomentRecursion())
    )
    for law, other in pairs:
        torch.testing.assert_close(other.mean, law.mean[examples][:, outputs], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(other.test_mean, law.test_mean[:, outputs], rtol=1e-11, atol=1e-12)
        for mine, theirs, at in (
            (law.covariance, other.covariance, places),
            (law.test_covariance, other.test_covariance, test_places),
        ):
            torch.testing.assert_close(theirs.to_dense(), mine.to_dense()[at][:, at], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dynamics", [GradientFlow(), OrnsteinUhlenbeck(freeze="init")], ids=repr)
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_losses_do_not_change(case: Case, dynamics: Dynamics) -> None:
    problem, sgd = case.problem(), sgdsde.SGD(0.1, 3)
    predictions = [
        sgdsde.predict(source, sgd, 40, dynamics=dynamics) for source in (problem, relabelled(problem, *orders(case)))
    ]
    for side in ("train_loss", "test_loss"):
        first, second = (getattr(predicted, side) for predicted in predictions)
        torch.testing.assert_close(second.mean, first.mean, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(second.std, first.std, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_stability_limits_do_not_change(case: Case) -> None:
    problem = case.problem()
    first, second = (sgdsde.stability.max_lr(source, 2) for source in (problem, relabelled(problem, *orders(case))))
    assert second == pytest.approx(first, rel=1e-8)
