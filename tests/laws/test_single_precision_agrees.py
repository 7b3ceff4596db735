"""Claim: a float32 model is predicted and measured like its float64 twin; predictions are made in float64."""

from __future__ import annotations

import copy

import pytest
import torch

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from tests.problems import conv_problem, mlp_problem


def twins(build) -> tuple[sgdsde.Problem, sgdsde.Problem]:
    """A problem and its copy rounded to float32."""
    double = build()
    data = {name: getattr(double, name).float() for name in ("x_train", "y_train", "x_test", "y_test")}
    return double, sgdsde.Problem(copy.deepcopy(double.model).float(), loss=double.loss, **data)


@pytest.mark.parametrize(
    "dynamics", [GradientFlow(), GradientDescent(), MomentRecursion(), OrnsteinUhlenbeck(freeze="init")], ids=repr
)
@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_predicted(build, dynamics: Dynamics) -> None:
    first, second = (
        sgdsde.predict(problem, sgdsde.SGD(0.05, 3), 50, dynamics=dynamics, observe=("loss", "outputs"))
        for problem in twins(build)
    )
    for side in ("train_loss", "test_loss", "train_outputs", "test_outputs"):
        for part in ("mean", "std"):
            mine, theirs = getattr(getattr(first, side), part), getattr(getattr(second, side), part)
            assert theirs.dtype is torch.float64
            torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [{}, {"momentum": 0.9, "weight_decay": 0.01, "sampling": "shuffled"}], ids=str)
@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_measured(build, words: dict) -> None:
    first, second = (sgdsde.run_ensemble(problem, sgdsde.SGD(0.05, 3, **words), 20, 4) for problem in twins(build))
    assert second.train_loss.samples.dtype is torch.float64
    torch.testing.assert_close(second.train_loss.samples, first.train_loss.samples, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_a_kernel_in_single_precision(build) -> None:
    problem = build()
    double, single = (sgdsde.linearize(problem, dtype=dtype) for dtype in (None, torch.float32))
    assert single.kernel.dtype is torch.float32
    first, second = (sgdsde.predict(source, sgdsde.SGD(0.05, 3), 50) for source in (double, single))
    torch.testing.assert_close(second.train_loss.mean, first.train_loss.mean, rtol=1e-3, atol=1e-6)
    assert second.train_loss.mean.dtype is torch.float64
