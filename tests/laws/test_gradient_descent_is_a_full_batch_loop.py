"""Claim: ``GradientDescent`` is the full-batch torch loop on the linear model, for any loss, whatever words are used.

And under squared error and i.i.d. batches it is the exact mean of SGD, whatever the batch size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import GradientDescent, MomentRecursion
from tests.oracles import torch_optimizer
from tests.problems import AFFINE, LINEAR, Case
from tests.settings import chosen

N_STEPS = 12
WORDS = chosen("plain", "momentum, dampening", "nesterov, decay", "decay", "falling lr")


def classes_of(case: Case, *, probabilities: bool = False, label_smoothing: float = 0.0) -> sgdsde.Problem:
    """The inputs of a linear problem with random classes."""
    problem = case.problem()
    rng = np.random.default_rng(0)
    targets = [torch.from_numpy(rng.integers(0, case.n_outputs, size=size)) for size in (case.n_train, case.n_test)]
    if probabilities:
        targets = [torch.from_numpy(rng.dirichlet(np.ones(case.n_outputs), size=len(y))) for y in targets]
    loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
    return sgdsde.Problem(
        problem.model, problem.x_train, targets[0], loss=loss, x_test=problem.x_test, y_test=targets[1]
    )


def loop(problem: sgdsde.Problem, sgd: sgdsde.SGD) -> dict[str, Tensor]:
    """Outputs and losses of full-batch descent by torch, [N_STEPS + 1, ...]."""
    theta = problem.params["theta"].clone().requires_grad_()
    optimizer = torch_optimizer([theta], sgd)
    kept: dict[str, list[Tensor]] = {name: [] for name in ("train", "test", "train_loss", "test_loss")}
    for k in range(N_STEPS + 1):
        train, test = (problem.forward({"theta": theta}, x) for x in (problem.x_train, problem.x_test))
        loss = problem.loss(train, problem.y_train)
        values = (train, test, loss, problem.loss(test, problem.y_test))
        for name, value in zip(kept, values):
            kept[name].append(value.detach().clone())
        optimizer.param_groups[0]["lr"] = sgd.lr_at(k)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: torch.stack(values) for name, values in kept.items()}


def assert_is_the_loop(problem: sgdsde.Problem, sgd: sgdsde.SGD) -> None:
    oracle = loop(problem, sgd)
    predicted = sgdsde.predict(
        problem, sgd, N_STEPS, dynamics=GradientDescent(), record=range(N_STEPS + 1), observe=("loss", "outputs")
    )
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(predicted.train_outputs.mean, oracle["train"], **close)
    torch.testing.assert_close(predicted.test_outputs.mean, oracle["test"], **close)
    torch.testing.assert_close(predicted.train_loss.mean, oracle["train_loss"], **close)
    torch.testing.assert_close(predicted.test_loss.mean, oracle["test_loss"], **close)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_squared_error(case: Case, words: dict) -> None:
    assert_is_the_loop(case.problem(), sgdsde.SGD(**{"lr": 0.1, "batch_size": 2, **words}))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize(
    "targets", [{}, {"label_smoothing": 0.1}, {"probabilities": True, "label_smoothing": 0.2}], ids=str
)
@pytest.mark.parametrize("case", [case for case in LINEAR + AFFINE if case.n_outputs > 1], ids=lambda case: case.name)
def test_cross_entropy(case: Case, targets: dict, words: dict) -> None:
    assert_is_the_loop(classes_of(case, **targets), sgdsde.SGD(**{"lr": 0.3, "batch_size": 2, **words}))


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_it_is_the_mean_of_sgd(case: Case, words: dict) -> None:
    linearization = sgdsde.linearize(case.problem())
    sgd = sgdsde.SGD(**{"lr": 0.1, "batch_size": 1, "label_noise_std": 0.3, **words})
    record = (0, 1, 2, 9)
    for path, law in zip(
        *(dynamics.evolve(linearization, sgd, record) for dynamics in (GradientDescent(), MomentRecursion()))
    ):
        torch.testing.assert_close(path.mean, law.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(path.test_mean, law.test_mean, rtol=1e-13, atol=1e-13)
