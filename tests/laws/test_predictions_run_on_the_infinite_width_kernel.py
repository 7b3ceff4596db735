"""Linearization.from_analytic: the kernel of infinite width in place of the empirical one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import meanfield


def problem(width: int, *, n_outputs: int = 2, parametrization: str = "ntk") -> sgdsde.Problem:
    data = sgdsde.datasets.synthetic(12, 5, 6, n_outputs, seed=2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    model = sgdsde.networks.MLP(
        6,
        width,
        n_outputs,
        depth=2,
        activation="tanh",
        sigma_b=0.3,
        parametrization=parametrization,
        dtype=torch.float64,
        generator=generator,
    )
    return sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())


def test_it_holds_the_analytic_kernels_and_the_networks_own_outputs() -> None:
    case = problem(8)
    analytic = sgdsde.Linearization.from_analytic(case)
    single = meanfield.analytic_ntk(case.x_train, None, case.model)
    for a in range(2):
        torch.testing.assert_close(analytic.kernel[a::2, a::2], single, rtol=1e-12, atol=0)
    assert (analytic.kernel[0::2, 1::2] == 0).all()
    cross = meanfield.analytic_ntk(case.x_test, case.x_train, case.model)
    torch.testing.assert_close(analytic.cross_kernel[1::2, 1::2], cross, rtol=1e-12, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(analytic.outputs, case.model(case.x_train), rtol=1e-12, atol=1e-14)


def test_wide_networks_come_close_to_it_and_narrow_ones_do_not() -> None:
    distance = {}
    for width in (16, 1024):
        case = problem(width)
        analytic, empirical = sgdsde.Linearization.from_analytic(case), sgdsde.linearize(case)
        distance[width] = float(
            torch.linalg.norm(empirical.kernel - analytic.kernel) / torch.linalg.norm(analytic.kernel)
        )
    assert distance[1024] < 0.12 < 0.3 < distance[16]


def test_predictions_run_on_it() -> None:
    """Flow and recursion from the same outputs: at infinite width two outputs are two independent problems of one."""
    case = problem(32)
    analytic = sgdsde.Linearization.from_analytic(case)
    sgd = sgdsde.SGD(0.5 * sgdsde.stability.max_lr(analytic, 3), 3)
    both = sgdsde.predict(analytic, sgd, 20, observe=("loss", "outputs"))
    assert both.train_loss.mean[-1] < both.train_loss.mean[0]
    kernel = meanfield.analytic_ntk(case.x_train, None, case.model)
    drift = 2 / 2 * kernel / case.n_train
    residual = analytic.residual
    expected = torch.linalg.matrix_power(torch.eye(12) - sgd.lr_at(0) * drift, 20) @ residual
    torch.testing.assert_close(both.train_outputs.mean[-1] - case.y_train, expected, rtol=1e-8, atol=1e-10)


def test_what_it_cannot_do_is_refused() -> None:
    case = problem(8)
    analytic = sgdsde.Linearization.from_analytic(case)
    with pytest.raises(ValueError, match="cannot represent weight decay without weight_outputs; use weight_decay=0"):
        sgdsde.predict(analytic, sgdsde.SGD(0.1, 2, weight_decay=0.1), 3)
    with pytest.raises(ValueError, match=re.escape("parametrization must be 'ntk', got 'standard'")):
        sgdsde.Linearization.from_analytic(problem(8, parametrization="standard"))
    data = sgdsde.datasets.synthetic(4, 2, 3, dtype=torch.float64)
    plain = sgdsde.Problem(nn.Linear(3, 1).double(), **data.tensors(), loss=nn.MSELoss())
    with pytest.raises(TypeError, match="network must be"):
        sgdsde.Linearization.from_analytic(plain)
