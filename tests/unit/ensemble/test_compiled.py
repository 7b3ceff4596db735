"""Ensembles whose gradients torch.compile makes: the same runs, or said and stepped without it."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.stepper import Compiled, Vmapped
from tests.architectures import Wrapped

SGD = sgdsde.SGD(0.05, 4, momentum=0.5)


def residual_problem(loss: nn.Module | None = None, *, dtype: torch.dtype = torch.float64) -> sgdsde.Problem:
    """A network that is no stack of layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(3, 3), nn.Linear(3, 2)
    x = torch.linspace(-1, 1, 27).view(9, 3)
    model = Wrapped(lambda m, x: m.last(x + torch.tanh(m.first(x))), first=first, last=last).to(dtype)
    y = torch.arange(9) % 2 if isinstance(loss, nn.CrossEntropyLoss) else torch.sin(5 * x[:, :2]).to(dtype)
    return sgdsde.Problem(model, x.to(dtype), y, loss=loss or nn.MSELoss())


def final_losses(problem: sgdsde.Problem, **words: Any) -> Tensor:
    return sgdsde.run_ensemble(problem, SGD, 6, 3, **words).train_loss.samples


Gradients = Callable[..., tuple[dict[str, Tensor], Tensor]]


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Gradients], Gradients]], None]:
    """Puts something else in place of torch.compile."""

    def put(compile_: Callable[[Gradients], Gradients]) -> None:
        monkeypatch.setattr(torch, "compile", lambda function, **words: compile_(function))

    return put


def test_networks_beyond_stacks_are_compiled_and_stacks_are_not(by_hand: Any) -> None:
    by_hand(lambda function: function)
    problem = residual_problem()
    assert type(RealLearner(problem, compiled=True).stepper) is Compiled
    assert type(RealLearner(problem).stepper) is Vmapped
    assert not isinstance(RealLearner(sgdsde.Problem(
        nn.Linear(3, 2).double(), problem.x_train, problem.y_train, loss=nn.MSELoss()
    ), compiled=True).stepper, Vmapped)  # fmt: skip
    torch.testing.assert_close(final_losses(problem, compiled=True), final_losses(problem), rtol=1e-12, atol=0)


def test_what_was_compiled_takes_the_steps(by_hand: Any) -> None:
    calls = []

    def counting(function: Gradients) -> Gradients:
        def call(*args: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            calls.append(args)
            return function(*args)

        return call

    by_hand(counting)
    final_losses(residual_problem(), compiled=True)
    assert len(calls) == 6


@pytest.mark.parametrize("wrong", ["gradients", "losses", "fails"])
def test_wrong_or_failing_code_is_said_and_not_used(wrong: str, by_hand: Any, caplog: pytest.LogCaptureFixture) -> None:
    problem, calls = residual_problem(), []

    def compile_(function: Gradients) -> Gradients:
        def call(*args: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            calls.append(args)
            if wrong == "fails":
                raise RuntimeError("no C++ compiler\nand a long story")
            gradients, losses = function(*args)
            last = gradients | {"last.bias": 1.001 * gradients["last.bias"]}
            return (last, losses) if wrong == "gradients" else (gradients, losses + 1e-6)

        return call

    by_hand(compile_)
    with caplog.at_level(logging.WARNING, logger="sgdsde"):
        found = final_losses(problem, compiled=True)
    assert torch.equal(found, final_losses(problem))
    assert len(calls) == 1
    expected = "RuntimeError: no C++ compiler" if wrong == "fails" else "are not those of the model"
    assert [record.message.endswith(expected) for record in caplog.records] == [True]


def test_code_of_each_batch_size_is_checked_and_of_runs_that_diverged_the_others_are(
    by_hand: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong for batches of one only, the last of an epoch of nine; and of three runs one has no gradient."""

    def compile_(function: Gradients) -> Gradients:
        def call(state: dict[str, Tensor], x: Tensor, *rest: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            gradients, losses = function(state, x, *rest)
            return (gradients, losses) if x.shape[1] > 1 else ({k: 2 * v for k, v in gradients.items()}, losses)

        return call

    by_hand(compile_)
    problem, sgd = residual_problem(), sgdsde.SGD(0.05, 4, sampling="shuffled")
    with caplog.at_level(logging.WARNING, logger="sgdsde"):
        found = sgdsde.run_ensemble(problem, sgd, 6, 3, compiled=True).train_loss.samples
    assert ["are not those of the model" in record.message for record in caplog.records] == [True]
    torch.testing.assert_close(found, sgdsde.run_ensemble(problem, sgd, 6, 3).train_loss.samples, rtol=1e-12, atol=0)
    caplog.clear()
    learner = RealLearner(problem, compiled=True)
    state, x, y = (
        learner.start(3),
        problem.x_train[:8].view(2, 4, 3)[[0, 1, 0]],
        problem.y_train[:8].view(2, 4, 2)[[0, 1, 0]],
    )
    state["last.bias"][1] = torch.nan
    gradients, losses = learner.stepper.gradient(state, x, y, None)
    assert losses.isfinite().tolist() == [True, False, True]
    assert gradients["last.bias"].isfinite().all(1).tolist() == [True, False, True]
    assert not caplog.records
    assert learner.stepper._compiled is not None


def test_a_linearization_has_nothing_to_compile() -> None:
    with pytest.raises(ValueError, match="compiled must be used with a Problem, got True for a Linearization; omit"):
        sgdsde.run_ensemble(sgdsde.linearize(residual_problem()), SGD, 2, 2, compiled=True)


def test_a_checkpoint_of_compiled_runs_is_not_one_of_others(tmp_path: Any, by_hand: Any) -> None:
    by_hand(lambda function: function)
    final_losses(residual_problem(), compiled=True, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="steps"):
        final_losses(residual_problem(), checkpoint=tmp_path)


def assert_followed(problem: sgdsde.Problem, caplog: pytest.LogCaptureFixture, sizes: range) -> None:
    """Torch follows what the steps do, which is all of compiling but making code of it."""
    with caplog.at_level(logging.WARNING, logger="sgdsde"):
        for size in sizes:
            sgd = sgdsde.SGD(0.05, size)
            found = sgdsde.run_ensemble(problem, sgd, 2, 2, compiled=True).train_loss.samples
            expected = sgdsde.run_ensemble(problem, sgd, 2, 2).train_loss.samples
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not caplog.records


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.usefixtures("followed")
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.HuberLoss()], ids=["cross-entropy", "Huber"])
def test_torch_follows_losses(loss: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    assert_followed(residual_problem(loss), caplog, range(3, 4))


@pytest.mark.usefixtures("followed")
def test_what_torch_cannot_follow_is_said(caplog: pytest.LogCaptureFixture) -> None:
    problem = residual_problem()

    def broken(m: Any, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return m.last(x + torch.tanh(m.first(x)))

    problem = dataclasses.replace(problem, model=Wrapped(broken, first=problem.model.first, last=problem.model.last))
    with caplog.at_level(logging.WARNING, logger="sgdsde"):
        found = final_losses(problem, compiled=True)
    assert ["steps are not compiled" in record.message for record in caplog.records] == [True]
    torch.testing.assert_close(found, final_losses(residual_problem()), rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("followed")
def test_torch_follows_as_many_ensembles_as_there_are(caplog: pytest.LogCaptureFixture) -> None:
    """Left alone it follows one piece of code eight times in a process."""
    assert_followed(residual_problem(), caplog, range(1, 11))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(delta=0.3)], ids=["squared error", "Huber"])
def test_torch_compiles_the_same_runs(loss: nn.Module, dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    problem = residual_problem(loss, dtype=dtype)
    rtol = 1e-4 if dtype == torch.float32 else 1e-12
    with caplog.at_level(logging.WARNING, logger="sgdsde"):
        found = final_losses(problem, compiled=True)
        amplified = sgdsde.run_ensemble(
            problem, sgdsde.SGD(0.05, 4), 4, 3, compiled=True, variant=sgdsde.SVAG(2)
        ).train_loss.samples
    assert not caplog.records
    torch.testing.assert_close(found, final_losses(problem), rtol=rtol, atol=0)
    plain = sgdsde.run_ensemble(problem, sgdsde.SGD(0.05, 4), 4, 3, variant=sgdsde.SVAG(2)).train_loss.samples
    torch.testing.assert_close(amplified, plain, rtol=rtol, atol=0)
