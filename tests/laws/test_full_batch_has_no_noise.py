"""Claim: with B = n without replacement SGD is gradient descent, predicted and measured, with spread exactly 0."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import GradientDescent, MomentRecursion, OrnsteinUhlenbeck
from tests.oracles import torch_optimizer
from tests.problems import LINEAR, Case, conv_problem, mlp_problem
from tests.settings import chosen

ROUNDING = 1e-14
RECORD = (0, 1, 2, 5, 30)
WORDS = chosen("plain", "momentum", "nesterov, decay", "falling lr")


def full_batch(n: int, words: dict) -> sgdsde.SGD:
    return sgdsde.SGD(**{"lr": 0.2, "batch_size": n, "sampling": "without_replacement", **words})


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_the_moment_recursion_is_gradient_descent(case: Case, words: dict) -> None:
    linearization, sgd = sgdsde.linearize(case.problem()), full_batch(case.n_train, words)
    laws = MomentRecursion().evolve(linearization, sgd, RECORD)
    paths = GradientDescent().evolve(linearization, sgd, RECORD)
    for law, path in zip(laws, paths, strict=True):
        torch.testing.assert_close(law.mean, path.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(law.test_mean, path.test_mean, rtol=1e-13, atol=1e-13)
        assert bool((law.covariance.to_dense() == 0).all())
        assert bool((law.test_covariance.to_dense() == 0).all())


@pytest.mark.parametrize("dynamics", [MomentRecursion(), OrnsteinUhlenbeck(freeze="init")], ids=repr)
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_no_predicted_spread_at_all(case: Case, dynamics: sgdsde.dynamics.Dynamics) -> None:
    predicted = sgdsde.predict(
        case.problem(), full_batch(case.n_train, {}), 30, dynamics=dynamics, observe=("loss", "outputs")
    )
    for spread in (
        predicted.train_loss.std,
        predicted.test_loss.std,
        predicted.train_outputs.std,
        predicted.test_outputs.std,
    ):
        assert bool((spread == 0).all())


def gradient_descent(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int) -> Tensor:
    """Losses of a full-batch torch loop, [n_steps + 1]."""
    model = copy.deepcopy(problem.model)
    optimizer = torch_optimizer(list(model.parameters()), sgd)
    losses = []
    for k in range(n_steps + 1):
        optimizer.param_groups[0]["lr"] = sgd.lr_at(k)
        optimizer.zero_grad()
        loss = problem.loss(model(problem.x_train), problem.y_train)
        losses.append(loss.detach())
        loss.backward()
        optimizer.step()
    return torch.stack(losses)


def assert_no_spread(band) -> None:
    """Batched products may round each run otherwise, so runs agree to rounding and not bit for bit."""
    assert bool((band.std <= ROUNDING * band.mean.abs().max()).all())


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_every_real_run_is_gradient_descent(build, words: dict) -> None:
    problem = build()
    sgd = full_batch(problem.n_train, words)
    measured = sgdsde.run_ensemble(problem, sgd, 12, 5, record=range(13))
    oracle = gradient_descent(problem, sgd, 12)
    torch.testing.assert_close(measured.train_loss.samples, oracle.expand(5, -1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_every_linearized_run_is_gradient_descent_without_spread(case: Case) -> None:
    linearization, sgd = sgdsde.linearize(case.problem()), full_batch(case.n_train, {})
    measured = sgdsde.run_ensemble(linearization, sgd, 30, 70, record=RECORD, observe=("loss", "outputs"))
    predicted = sgdsde.predict(linearization, sgd, 30, dynamics=GradientDescent(), record=RECORD)
    for side in ("train_loss", "test_loss"):
        band = getattr(measured, side)
        torch.testing.assert_close(band.mean, getattr(predicted, side).mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(band.samples, band.samples[:1].expand_as(band.samples), rtol=ROUNDING, atol=0)
        assert_no_spread(band)
    assert_no_spread(measured.train_outputs)


@pytest.mark.parametrize("sampling", ["without_replacement", "shuffled"])
@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_real_runs_have_no_spread(build, sampling: str) -> None:
    problem = build()
    sgd = full_batch(problem.n_train, {"sampling": sampling})
    measured = sgdsde.run_ensemble(problem, sgd, 12, 5, observe=("loss", "outputs"))
    for band in (measured.train_loss, measured.test_loss, measured.train_outputs, measured.test_outputs):
        assert_no_spread(band)


def test_one_example_less_has_spread() -> None:
    case = LINEAR[0]
    sgd = sgdsde.SGD(0.2, case.n_train - 1, sampling="without_replacement")
    predicted = sgdsde.predict(case.problem(), sgd, 5)
    measured = sgdsde.run_ensemble(case.problem(), sgd, 5, 16)
    assert float(predicted.train_loss.std[-1]) > 1e-6
    assert float(measured.train_loss.std[-1]) > 1e-6
