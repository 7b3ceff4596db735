"""What a diagnosis says of regime and confusion."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import regimes
from sgdsde.networks import DiagonalLinear
from tests.problems import linear_problem


def diagonal(scale: float) -> sgdsde.Problem:
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((10, 20)))
    model = DiagonalLinear(20, scale=scale, dtype=torch.float64)
    return sgdsde.Problem(model, x, x[:, :1] - 0.5 * x[:, 1:2], loss=nn.MSELoss())


@pytest.mark.parametrize(("scale", "regime"), [(5.0, "kernel"), (0.4, "between"), (0.1, "rich")])
def test_the_regime_is_named_after_the_kernel_s_motion(scale: float, regime: str) -> None:
    linearization = sgdsde.linearize(diagonal(scale))
    sgd = sgdsde.SGD(0.3 * sgdsde.stability.max_lr(linearization, 2), 2)
    found = sgdsde.diagnose(linearization, sgd, 100)
    assert found.regime == regime
    assert f"Regime: {regime}." in str(found)


def test_confusion_is_that_of_the_gradients() -> None:
    """Relative to their mean square: two equal inputs of opposite labels reach 1, orthogonal ones 0."""
    sgd = sgdsde.SGD(0.01, 1)
    opposed = linear_problem([[[1.0, 0.0]], [[1.0, 0.0]]], [[1.0], [-1.0]], [0.0, 0.0])
    check = sgdsde.diagnose(opposed, sgd, 5).checks["confusion"]
    assert check.value == pytest.approx(1.0, rel=1e-12)
    apart = linear_problem([[[1.0, 0.0]], [[0.0, 1.0]]], [[1.0], [-1.0]], [0.0, 0.0])
    assert sgdsde.diagnose(apart, sgd, 5).checks["confusion"].value == 0
    problem = diagonal(1.0)
    found = regimes.gradient_confusion(problem)
    check = sgdsde.diagnose(problem, sgd, 5).checks["confusion"]
    assert check.value == pytest.approx(found.bound / found.mean_square, rel=1e-10)
    assert check.sentence.startswith(found.sentence)
