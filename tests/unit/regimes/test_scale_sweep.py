"""Where the frozen kernel is right: slopes of its error over the scale, and where the moving kernel takes over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import regimes
from sgdsde.networks import MLP, DiagonalLinear, Rescaled
from sgdsde.regimes.scales import at_scale


def diagonal(depth: int, *, tested: bool = False) -> sgdsde.Problem:
    rng = np.random.default_rng(1)
    n, d = 20, 40
    x = rng.standard_normal((n, d))
    beta = np.zeros(d)
    beta[:3] = [1, -0.7, 0.5]
    x_test = rng.standard_normal((200, d))
    test = {"x_test": x_test, "y_test": (x_test @ beta)[:, None]} if tested else {}
    data = {name: torch.from_numpy(value) for name, value in test.items()}
    model = DiagonalLinear(d, depth=depth, scale=1.0, dtype=torch.float64)
    return sgdsde.Problem(model, torch.from_numpy(x), torch.from_numpy(x @ beta)[:, None], loss=nn.MSELoss(), **data)


def network(activation: str) -> sgdsde.Problem:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((32, 10))
    generator = torch.Generator().manual_seed(0)
    model = MLP(10, 64, 1, depth=2, activation=activation, dtype=torch.float64, generator=generator)
    y = np.sin(x[:, 0]) * x[:, 1]
    return sgdsde.Problem(model, torch.from_numpy(x), torch.from_numpy(y)[:, None], loss=nn.MSELoss())


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_symmetric_networks_err_in_the_second_order(depth: int) -> None:
    """Slope -2 in scale^depth on the last two doublings."""
    scales = [power ** (1 / depth) for power in (1.0, 2.0, 4.0)]
    found = regimes.scale_sweep(
        diagonal(depth), scales, n_steps=60, n_runs=4, batch_size=2, record=[0, 20, 60], moving=False
    )
    assert found.slopes(depth)[:, 1:].numpy() == pytest.approx(-2, abs=0.05)
    assert found.moving.isnan().all()
    assert found.test_measured.isnan().all()


def test_smooth_networks_err_in_the_first_order_and_kinks_have_none() -> None:
    """Slope -1 for tanh on the last two quadruplings; the error of ReLU does not fall like that."""
    options = {"n_steps": 60, "n_runs": 4, "batch_size": 4, "record": [0, 60], "moving": False}
    smooth = regimes.scale_sweep(network("tanh"), [16.0, 64.0, 256.0], **options)
    assert smooth.slopes()[:, -1].numpy() == pytest.approx(-1, abs=0.1)
    assert smooth.z.isnan().all()
    kinked = regimes.scale_sweep(network("relu"), [16.0, 64.0, 256.0], **options)
    assert float((kinked.slopes()[:, -1] + 1).abs().max()) > 0.3


def test_z_orders_the_errors() -> None:
    found = regimes.scale_sweep(
        diagonal(2, tested=True), [0.3, 1.0], n_steps=100, n_runs=16, batch_size=2, record=[0, 60, 100]
    )
    assert found.z.numpy() == pytest.approx([3.088, 0.2779], rel=1e-3)
    assert found.linearization[0, 1] < -0.05
    assert abs(float(found.linearization[1, 1])) < 0.002
    # Beside real runs both predictions stand for the same batches' expectation: what differs is the kernel.
    assert float((found.moving / found.frozen - 1)[1].abs().max()) < 0.005
    assert float((found.test_frozen / found.test_measured - 1)[0, -1]) > 0.03
    assert abs(float((found.test_moving / found.test_measured - 1)[0, -1])) < 0.02


def test_a_kernel_that_grows_past_its_limit_is_said() -> None:
    """Depth 3 at z = 160: runs at 0.3 of the limit of the start diverge, and no number is made up."""
    found = regimes.scale_sweep(
        diagonal(3), [0.12, 1.0], n_steps=400, n_runs=4, batch_size=2, record=[0, 400], moving=False
    )
    assert "not finite" in found.notes[0]
    assert found.measured[0].isnan().all()
    assert found.notes[1] == ""
    assert found.measured[1].isfinite().all()


def test_bad_input_gets_one_clear_error() -> None:
    options = {"n_steps": 10, "n_runs": 2, "batch_size": 2}
    for scales in ([], [1.0, 0.5], [1.0, 1.0]):
        with pytest.raises(ValueError, match="scales must be increasing"):
            regimes.scale_sweep(diagonal(2), scales, **options)
    with pytest.raises(ValueError, match="scales must be positive"):
        regimes.scale_sweep(diagonal(2), [-1.0, 1.0], **options)
    with pytest.raises(ValueError, match="lr_fraction must be positive"):
        regimes.scale_sweep(diagonal(2), [1.0], lr_fraction=0, **options)


def test_any_module_is_rescaled() -> None:
    found = regimes.scale_sweep(network("tanh"), [2.0], n_steps=5, n_runs=2, batch_size=4, moving=False)
    linearization = sgdsde.linearize(at_scale(network("tanh"), 2.0))
    assert isinstance(linearization.problem.model, Rescaled)
    assert float(found.lrs[0]) == pytest.approx(0.3 * sgdsde.stability.max_lr(linearization, 4), rel=1e-12)


@pytest.mark.slow
def test_the_moving_kernel_takes_over_where_the_frozen_one_fails() -> None:
    """z = 7, 256 runs (standard error 2 %): moving within 5 % at every step, frozen off by over 40 % at the end."""
    found = regimes.scale_sweep(
        diagonal(2), [0.2], n_steps=400, n_runs=256, batch_size=2, record=[0, 10, 30, 100, 200, 400]
    )
    assert float(found.moving_error.abs().max()) < 0.05
    assert float(found.frozen_error[0, -1]) > 0.4
