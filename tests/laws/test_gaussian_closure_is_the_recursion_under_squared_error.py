"""Claim: under squared error the Gaussian closure is ``MomentRecursion``, to rounding, for every word of SGD.

And for any loss: without noise it is full-batch descent, and a model whose loss no noise moves has no spread.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics import GaussianClosure, GradientDescent, MomentRecursion
from tests.problems import AFFINE, LINEAR, classification_problem
from tests.settings import SETTINGS, chosen

WORDS = chosen(
    "plain",
    "without replacement",
    "momentum",
    "momentum, dampening, decay",
    "nesterov, decay",
    "decay",
    "falling lr, growing batch",
    "label noise, momentum",
) | {
    "single examples": {"batch_size": 1},
    "all examples": {"batch_size": 4, "sampling": "without_replacement"},
}
CASES = {case.name: case for case in (*LINEAR, *AFFINE)}


def as_squares(problem: sgdsde.Problem) -> sgdsde.Problem:
    """The same problem under a function that the library does not know as squared error."""
    return sgdsde.Problem(
        problem.model,
        problem.x_train,
        problem.y_train,
        loss=lambda f, y: (f - y).square().mean(),
        x_test=problem.x_test,
        y_test=problem.y_test,
    )


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("case", ["two outputs, null space", "one output, duplicated input",
                                  "two outputs, constant part"])  # fmt: skip
def test_closure_is_the_recursion(case: str, words: str) -> None:
    linearization = sgdsde.linearize(CASES[case].problem())
    sgd = sgdsde.SGD(**({"lr": 0.2, "batch_size": 2} | WORDS[words]))
    asked = {"record": (0, 1, 2, 5, 20), "observe": ("loss", "outputs")}
    exact = sgdsde.predict(linearization, sgd, 20, dynamics=MomentRecursion(), **asked)
    closure = sgdsde.predict(linearization, sgd, 20, dynamics=GaussianClosure(), **asked)
    for side in ("train", "test"):
        for what, atol in (("loss", 1e-13), ("outputs", 1e-7)):  # a std is the root of a rounded variance
            one, other = (getattr(result, f"{side}_{what}") for result in (exact, closure))
            torch.testing.assert_close(other.mean, one.mean, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(other.std, one.std, rtol=1e-8, atol=atol)


SHUFFLED = chosen("plain", "momentum, decay", "label noise") | {
    "drop last": {"batch_size": 3, "drop_last": True},
    "nesterov": {"batch_size": 3} | SETTINGS["nesterov"],
}


@pytest.mark.parametrize("name", SHUFFLED)
def test_shuffled_epochs_are_those_of_the_recursion(name: str) -> None:
    """With the recursion's starts of epochs taken together, as the closure takes them."""
    linearization = sgdsde.linearize(CASES["two outputs, constant part"].problem())
    sgd = sgdsde.SGD(**({"lr": 0.2, "batch_size": 2, "sampling": "shuffled"} | SHUFFLED[name]))
    exact = sgdsde.predict(linearization, sgd, 11, dynamics=MomentRecursion(epoch_starts=0), record=range(12))
    closure = sgdsde.predict(linearization, sgd, 11, dynamics=GaussianClosure(), record=range(12))
    torch.testing.assert_close(closure.train_loss.mean, exact.train_loss.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(closure.test_loss.mean, exact.test_loss.mean, rtol=1e-10, atol=0)
    independent = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
    other = sgdsde.predict(linearization, independent, 11, dynamics=GaussianClosure(), record=range(12))
    apart = float((other.train_loss.mean / exact.train_loss.mean - 1).abs().max())
    assert apart < 1e-10 if name == "drop last" else apart > 1e-3, "epochs of one batch are fresh batches"


def test_squares_by_automatic_differentiation_are_squares() -> None:
    problem, sgd = CASES["two outputs"].problem(), sgdsde.SGD(0.2, 2, momentum=0.5)
    exact = sgdsde.predict(problem, sgd, 12)
    general = sgdsde.predict(as_squares(problem), sgd, 12, dynamics=GaussianClosure())
    torch.testing.assert_close(general.train_loss.mean, exact.train_loss.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(general.test_loss.mean, exact.test_loss.mean, rtol=1e-9, atol=0)
    fewer = dataclasses.replace(sgd, batch_size=4)
    other = sgdsde.predict(as_squares(problem), fewer, 12, dynamics=GaussianClosure())
    assert float((other.train_loss.mean / exact.train_loss.mean - 1).abs().max()) > 0.01


@pytest.mark.parametrize("words", ["plain", "nesterov, decay", "momentum, dampening, decay"])
def test_all_examples_are_full_batch_descent(words: str) -> None:
    problem = classification_problem()
    words = {"lr": 0.5, "batch_size": problem.n_train, "sampling": "without_replacement"} | WORDS[words]
    words["batch_size"] = problem.n_train
    asked = {"record": (0, 1, 7), "observe": ("loss", "outputs", "accuracy")}
    closure, descent = (
        sgdsde.predict(problem, sgdsde.SGD(**words), 7, dynamics=theory, **asked)
        for theory in (GaussianClosure(), GradientDescent())
    )
    torch.testing.assert_close(closure.train_outputs.mean, descent.train_outputs.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(closure.test_outputs.mean, descent.test_outputs.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(closure.test_loss.mean, descent.test_loss.mean, rtol=1e-12, atol=0)
    assert float(closure.train_outputs.std.max()) == 0
    assert float(closure.train_loss.std.max()) == 0
    torch.testing.assert_close(closure.train_accuracy.mean, descent.train_accuracy.mean)


def test_what_it_cannot_represent_is_refused_with_what_can() -> None:
    problem = classification_problem()

    def ask(problem: sgdsde.Problem, **words: object) -> None:
        sgdsde.predict(problem, sgdsde.SGD(0.1, 2, **words), 2, dynamics=GaussianClosure())

    with pytest.raises(ValueError, match=r"cannot represent label noise without squared error; use label_noise_std=0"):
        ask(problem, label_noise_std=0.1)
    kinked = sgdsde.Problem(nn.Linear(2, 1), torch.ones(4, 2), torch.zeros(4, 1), loss=nn.L1Loss())
    with pytest.raises(
        ValueError, match=r"cannot represent a loss without second derivative .L1Loss, whose gradient jumps"
    ):
        ask(kinked)
    unknown = dataclasses.replace(sgdsde.linearize(problem), weight_outputs=None, test_weight_outputs=None)
    with pytest.raises(ValueError, match=r"weight decay without weight_outputs; use weight_decay=0"):
        ask(unknown, weight_decay=0.1)
