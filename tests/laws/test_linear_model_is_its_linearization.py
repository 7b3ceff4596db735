"""Claim: on a model linear in its weights the real ensemble and that of its linearization are the same runs."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from tests.problems import AFFINE, LINEAR, Case
from tests.settings import chosen

WORDS = chosen(
    "plain",
    "without replacement",
    "shuffled",
    "momentum, dampening",
    "nesterov, decay",
    "decay",
    "label noise",
    "label noise, nesterov, decay",
    "falling lr, growing batch",
)


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
