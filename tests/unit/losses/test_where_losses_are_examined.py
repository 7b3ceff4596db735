"""Losses are tried around the outputs that a network gives; signs of labels; the rule of many outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sgdsde.losses import TorchLoss, as_loss, examine
from sgdsde.losses.base import is_right
from sgdsde.losses.expectations import PAIRS, gaussian_rule
from sgdsde.losses.smoothness import find_kink
from sgdsde.losses.validation import _around


@pytest.mark.parametrize("level", [0.0, 50.0, -1000.0])
def test_losses_are_tried_on_both_sides_of_the_outputs(level):
    """400 draws of the size of the outputs and more: their mean leaves a quarter of it with probability 6e-7."""
    outputs = torch.full((400, 1), level, dtype=torch.float64)
    moved = (_around(outputs) - outputs) / (1 + abs(level))
    assert abs(float(moved.mean())) < 0.25
    assert 0.8 < float(moved.std()) < 1.2


@pytest.mark.parametrize("size", [0.25, 1.0, 3.0])
def test_a_real_label_is_a_sign_and_zero_has_none(size):
    outputs = torch.tensor([[2.0], [-2.0], [2.0], [-2.0], [5.0], [-5.0], [float("inf")]])
    labels = torch.tensor([size, size, -size, -size, 0.0, 0.0, size])
    assert is_right(outputs, labels).tolist() == [True, False, False, True, False, False, False]


def test_the_rule_of_many_outputs_still_has_the_covariance_of_the_normal_law():
    """More outputs than the usual number of pairs of points."""
    points, weights = gaussian_rule(PAIRS + 36)
    identity = torch.eye(PAIRS + 36, dtype=torch.float64)
    torch.testing.assert_close(points.mT @ (points * weights[:, None]), identity, rtol=0, atol=1e-10)
    assert float((weights @ points).abs().max()) < 1e-12


def test_where_a_gradient_is_no_number_no_jump_is_seen() -> None:
    """A square, or a distance with its kink, of outputs between -0.5 and 0.5, which nearly every segment leaves."""
    targets = 0.2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def bounded(distance: Callable[[Tensor], Tensor]) -> TorchLoss:
        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            return 0.006 * (distance(outputs - targets) + 0 * (0.25 - outputs**2).sqrt()).mean()

        return TorchLoss(loss, "bounded")

    assert bounded(torch.square).gradient(torch.full((4, 6), 2.0).double(), targets).isnan().all()
    assert find_kink(bounded(torch.square), targets, n_outputs=6) == ""
    jump = 0.001 * 2 * 6**0.5  # every output crosses its target at once
    assert f"gradient jumps by {jump:.3g} " in find_kink(bounded(torch.abs), targets, n_outputs=6)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_a_loss_that_bends_at_its_targets_is_not_linear_however_far_they_are(size: float) -> None:
    """Outputs that are tried lie on one side of most of them; the product with the targets is the control."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    targets = size * (3 + torch.rand(5, 2, generator=generator, dtype=torch.float64))
    for loss, is_linear in ((nn.L1Loss(), False), (lambda f, y: (f * y).mean(), True)):
        assert examine(as_loss(loss, 2), outputs, targets, None).is_linear == is_linear
    away = examine(as_loss(nn.L1Loss(), 2), outputs + 100 * size, targets, None)
    assert not away.is_linear, "outputs beyond the targets"
