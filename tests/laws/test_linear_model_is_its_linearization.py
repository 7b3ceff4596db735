"""Claim: on a model linear in its weights the real ensemble and that of its linearization are the same runs."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from tests.problems import AFFINE, LINEAR, Case

WORDS = {
    "plain": {},
    "without replacement": {"sampling": "without_replacement"},
    "shuffled": {"sampling": "shuffled"},
    "momentum, dampening": {"momentum": 0.8, "dampening": 0.3},
    "nesterov, decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    "decay": {"weight_decay": 0.2},
    "label noise": {"label_noise_std": 0.5},
    "label noise, nesterov, decay": {"label_noise_std": 0.5, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
    "schedules": {"lr": lambda step: 0.2 / (1 + step), "batch_size": lambda step: 1 + step % 4},
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR[:5] + AFFINE, ids=lambda case: case.name)
def test_same_runs(case: Case, words: dict) -> None:
    problem = case.problem()
    sgd = sgdsde.SGD(**{"lr": 0.08, "batch_size": 3, **words})
    real, linearized = (
        sgdsde.run_ensemble(source, sgd, 12, 5, seed=2, record=(0, 1, 2, 12), observe=("loss", "outputs"))
        for source in (problem, sgdsde.linearize(problem))
    )
    for side in ("train", "test"):
        first, second = (getattr(measured, f"{side}_outputs").samples for measured in (real, linearized))
        torch.testing.assert_close(second, first, rtol=1e-11, atol=1e-11)
        first, second = (getattr(measured, f"{side}_loss").samples for measured in (real, linearized))
        torch.testing.assert_close(second, first, rtol=1e-11, atol=1e-11)
