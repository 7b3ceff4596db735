"""Losses are the torch modules', their gradients torch's own, and each example counts the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgdsde.losses import CrossEntropy, SquaredError, as_loss

GENERATOR = torch.Generator().manual_seed(0)
OUTPUTS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randn(5, 3, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1, 0])
CASES = {
    "squared error": (nn.MSELoss(), TARGETS),
    "cross-entropy": (nn.CrossEntropyLoss(), LABELS),
    "cross-entropy with smoothing": (nn.CrossEntropyLoss(label_smoothing=0.2), LABELS),
    "cross-entropy of probabilities": (nn.CrossEntropyLoss(), TARGETS.softmax(1)),
    "smoothed cross-entropy of probabilities": (nn.CrossEntropyLoss(label_smoothing=0.3), TARGETS.softmax(1)),
}


@pytest.mark.parametrize("name", CASES)
def test_value_is_the_modules(name):
    module, targets = CASES[name]
    criterion = as_loss(module, 3)
    torch.testing.assert_close(criterion.mean(OUTPUTS, targets), module(OUTPUTS, targets), rtol=1e-14, atol=0)
    alone = torch.stack([module(OUTPUTS[i : i + 1], targets[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(criterion.per_example(OUTPUTS, targets), alone, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_autograds_times_the_number_of_examples(name):
    module, targets = CASES[name]
    outputs = OUTPUTS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(module(outputs, targets), outputs)
    torch.testing.assert_close(as_loss(module, 3).gradient(OUTPUTS, targets), 5 * expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("name", CASES)
def test_leading_dimensions_are_runs(name):
    module, targets = CASES[name]
    criterion = as_loss(module, 3)
    runs = torch.stack([OUTPUTS, 2 * OUTPUTS])
    for function in (criterion.mean, criterion.gradient, criterion.per_example):
        torch.testing.assert_close(function(runs, targets), torch.stack([function(f, targets) for f in runs]))


def test_the_curvature_of_the_mean_square_is_two_over_the_number_of_outputs():
    assert as_loss(nn.MSELoss(), 4) == SquaredError(0.5)
    assert as_loss(nn.CrossEntropyLoss(label_smoothing=0.1), 4) == CrossEntropy(0.1)


def test_checked_targets_come_back_in_the_form_that_torch_takes():
    criterion = as_loss(nn.CrossEntropyLoss(), 3)
    assert criterion.check_targets("y", LABELS.int(), OUTPUTS).dtype == torch.int64
    assert criterion.check_targets("y", TARGETS.softmax(1).float(), OUTPUTS).dtype == torch.float64
    assert as_loss(nn.MSELoss(), 3).check_targets("y", TARGETS, OUTPUTS) is TARGETS
