"""Claim: words at the value where they do nothing change not a single bit."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from tests.problems import BY_NAME, mlp_problem

NEUTRAL = {
    "momentum 0": {"momentum": 0.0},
    "dampening without momentum": {"momentum": 0.0, "dampening": 0.7},
    "decay 0": {"weight_decay": 0.0},
    "label noise 0": {"label_noise_std": 0.0},
    "constant schedules": {"lr": lambda step: 0.07, "batch_size": lambda step: 3},
}


def assert_same_bits(first: sgdsde.Trajectory, second: sgdsde.Trajectory) -> None:
    for name in ("train_loss", "test_loss", "train_outputs", "test_outputs"):
        mine, theirs = getattr(first, name), getattr(second, name)
        assert torch.equal(mine.mean, theirs.mean)
        assert torch.equal(mine.std, theirs.std)


@pytest.mark.parametrize("words", NEUTRAL.values(), ids=NEUTRAL)
@pytest.mark.parametrize("case", ["one output, null space", "two outputs"])
def test_predicted(case: str, words: dict) -> None:
    problem = BY_NAME[case].problem()
    plain, other = (
        sgdsde.predict(problem, sgdsde.SGD(**{"lr": 0.07, "batch_size": 3, **extra}), 40, observe=("loss", "outputs"))
        for extra in ({}, words)
    )
    assert_same_bits(plain, other)


@pytest.mark.parametrize("words", NEUTRAL.values(), ids=NEUTRAL)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_measured(linearized: bool, words: dict) -> None:
    problem = mlp_problem()
    source = sgdsde.linearize(problem) if linearized else problem
    plain, other = (
        sgdsde.run_ensemble(
            source, sgdsde.SGD(**{"lr": 0.07, "batch_size": 3, **extra}), 15, 4, observe=("loss", "outputs")
        )
        for extra in ({}, words)
    )
    assert_same_bits(plain, other)


def test_a_little_momentum_changes_bits() -> None:
    problem = BY_NAME["two outputs"].problem()
    plain, other = (sgdsde.predict(problem, sgdsde.SGD(0.07, 3, momentum=value), 40) for value in (0.0, 1e-6))
    assert not torch.equal(plain.train_loss.mean, other.train_loss.mean)
    torch.testing.assert_close(plain.train_loss.mean, other.train_loss.mean, rtol=1e-3, atol=0)
