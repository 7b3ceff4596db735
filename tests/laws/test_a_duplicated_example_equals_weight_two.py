"""Claim: an example that is there twice counts twice, and nothing else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, GradientFlow, MomentRecursion
from tests.oracles import enumerate_runs
from tests.problems import BY_NAME


def with_examples(problem: sgdsde.Problem, rows: list[int], factors: list[float] | None = None) -> sgdsde.Problem:
    """These examples of a linear problem, features and targets times a factor each."""
    scale = torch.tensor(factors or [1.0] * len(rows), dtype=torch.float64)
    x, y = problem.x_train[rows] * scale[:, None, None], problem.y_train[rows] * scale[:, None]
    test = {"x_test": problem.x_test, "y_test": problem.y_test}
    return sgdsde.Problem(problem.model, x, y, loss=nn.MSELoss(), **test)


CASES = ("one output, null space", "two outputs", "three outputs, null space")


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8, "weight_decay": 0.2}], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_moments_are_those_of_an_example_drawn_twice_as_often(case: str, words: dict) -> None:
    """{a, a, b} under i.i.d. draws against every batch of {a, b} with probabilities 2/3 and 1/3."""
    problem = BY_NAME[case].problem()
    sgd, c = sgdsde.SGD(0.15, 2, **words), problem.n_outputs
    oracle = enumerate_runs(with_examples(problem, [0, 2]), sgd, 3, probabilities=(2 / 3, 1 / 3))
    linearization = sgdsde.linearize(with_examples(problem, [0, 0, 2]))
    for law, moments in zip(MomentRecursion().evolve(linearization, sgd, range(4)), oracle, strict=True):
        torch.testing.assert_close(law.mean, moments.mean[[0, 0, 1]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.test_mean, moments.mean[2:], rtol=1e-12, atol=1e-12)
        dense = law.covariance.to_dense()
        torch.testing.assert_close(dense[c:, c:], moments.covariance[: 2 * c, : 2 * c], rtol=1e-12, atol=1e-12)
        # Both copies have the same outputs in every run.
        torch.testing.assert_close(dense[:c, :c], dense[c : 2 * c, :c], rtol=1e-12, atol=1e-12)
        test = moments.covariance[2 * c :, 2 * c :]
        torch.testing.assert_close(law.test_covariance.to_dense(), test, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamics", [GradientFlow(), GradientDescent()], ids=repr)
@pytest.mark.parametrize("case", CASES)
def test_mean_paths_are_those_of_an_example_of_weight_two(case: str, dynamics: Dynamics) -> None:
    """(2 l_a + l_b)/3 is the mean loss of {sqrt(2) a, b} times 2/3."""
    problem = BY_NAME[case].problem()

    def test_outputs(source: sgdsde.Problem, lr: float) -> Tensor:
        laws = dynamics.evolve(sgdsde.linearize(source), sgdsde.SGD(lr, 1), (0, 1, 10))
        return torch.stack([law.test_mean for law in laws])

    twice = test_outputs(with_examples(problem, [0, 0, 2]), 0.3)
    weighted = test_outputs(with_examples(problem, [0, 2], [math.sqrt(2), 1.0]), 0.2)
    torch.testing.assert_close(twice, weighted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_data_set_written_twice_is_the_same_data_set(case: str) -> None:
    """For i.i.d. draws with replacement; without, a batch of 8 of the double set is no full batch."""
    problem = BY_NAME[case].problem()
    sgd = sgdsde.SGD(0.1, 3, momentum=0.5)
    once, twice = (
        sgdsde.predict(with_examples(problem, rows), sgd, 50, observe=("loss", "outputs"))
        for rows in ([0, 1, 2, 3], [0, 1, 2, 3] * 2)
    )
    for side in ("train_loss", "test_loss", "test_outputs"):
        for part in ("mean", "std"):
            first, second = (getattr(getattr(trajectory, side), part) for trajectory in (once, twice))
            torch.testing.assert_close(second, first, rtol=1e-9, atol=1e-11)
    limits = [sgdsde.stability.max_lr(with_examples(problem, rows), 2) for rows in ([0, 1, 2, 3], [0, 1, 2, 3] * 2)]
    assert limits[0] == pytest.approx(limits[1], rel=1e-8)
