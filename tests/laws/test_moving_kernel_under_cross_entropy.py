"""Cross-entropy of networks that learn features: the moving kernel follows real SGD, a frozen one does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics import GaussianClosure, MovingKernel
from tests.statistics import threshold

N_RUNS = 256
TOLERANCE = 0.01
"""Relative error of the expected loss, and error of the accuracy, that the theory itself is allowed."""

MISSED = 0.05
"""Relative error that a frozen kernel exceeds beyond chance."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "words", "fraction", "n_steps"),
    [("tanh", {}, 0.3, 300), ("relu", {"momentum": 0.9, "sampling": "shuffled"}, 0.2, 96)],
    ids=["tanh", "relu, momentum, shuffled"],
)
def test_loss_and_accuracy_on_digits(activation: str, words: dict[str, Any], fraction: float, n_steps: int) -> None:
    """Within 1 % and chance on 256 directions, where a frozen kernel misses by more than 5 % beyond chance.

    Chance: 1e-4 over all steps, both sets, loss and accuracy. Measured: train 2.0 +- 0.5 % (step 21) and 0.8 %;
    frozen kernel 8.1 +- 0.1 and 12.7 +- 0.1 %. Kernel drift about 0.4. The default of 48 directions misses by 8.6 %.
    """
    model = sgdsde.networks.MLP(
        64,
        64,
        10,
        activation=activation,
        parametrization="standard",
        generator=torch.Generator().manual_seed(0),
    )
    data = sgdsde.datasets.digits(64, 64, target="class")
    problem = sgdsde.Problem(model, **data.tensors(), loss=nn.CrossEntropyLoss())
    linearization = sgdsde.linearize(problem)
    limit = sgdsde.stability.max_lr(linearization, 8, momentum=words.get("momentum", 0.0))
    sgd, asked = sgdsde.SGD(fraction * limit, 8, **words), ("loss", "accuracy")
    measured = sgdsde.run_ensemble(problem, sgd, n_steps, N_RUNS, observe=asked)
    moving = sgdsde.predict(problem, sgd, n_steps, dynamics=MovingKernel(rank=256), observe=asked)
    frozen = sgdsde.predict(linearization, sgd, n_steps, dynamics=GaussianClosure())
    z = threshold(4 * len(measured.steps))
    for side in ("train", "test"):
        seen, found = measured.losses[side], moving.losses[side]
        assert ((found.mean / seen.mean - 1).abs() <= TOLERANCE + z * seen.standard_error / seen.mean).all(), side
        accuracy, predicted = (getattr(each, f"{side}_accuracy") for each in (measured, moving))
        chance = z * (accuracy.standard_error.square() + predicted.standard_error.square()).sqrt()
        assert ((predicted.mean - accuracy.mean).abs() <= TOLERANCE + chance).all(), side
    seen = measured.train_loss
    missed = (frozen.train_loss.mean / seen.mean - 1).abs() - z * seen.standard_error / seen.mean
    assert missed.max() > MISSED
