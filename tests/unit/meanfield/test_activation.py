"""What counts as an activation: kinks are found wherever they are, and everything else is refused by name."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from sgdsde.meanfield import Activation
from sgdsde.networks import ACTIVATIONS


@pytest.mark.parametrize(
    ("function", "places"),
    [
        (functional.hardtanh, [-1, 0, 1]),
        (functional.relu6, [0, 6]),
        (functional.hardswish, [-3, 0, 3]),
        (lambda x: functional.relu(x - 1 / 3) - 0.2 * functional.relu(-x - 1 / 7), [-1 / 7, 0, 1 / 3]),
        (torch.tanh, [0]),
        (functional.softplus, [0]),  # torch's version jumps by 2e-9 at 20, which is ignored
    ],
)
def test_kinks_are_found_and_zero_is_always_an_edge(function, places):
    torch.testing.assert_close(Activation(function).kinks(30.0).tolist(), [float(x) for x in places], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_are_those_of_finite_differences(name):
    activation = Activation(name)
    x = torch.tensor([-2.3, -0.7, 0.4, 1.9], dtype=torch.float64)
    _, slope = activation.value_and_slope(x)
    difference = (activation.value(x + 1e-6) - activation.value(x - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, difference, rtol=1e-8, atol=1e-9)


def test_only_piecewise_linear_functions_through_zero_are_homogeneous():
    assert Activation("relu").is_homogeneous()
    assert Activation(nn.PReLU(init=0.3)).is_homogeneous()
    assert not Activation("elu").is_homogeneous()
    assert not Activation(lambda x: functional.relu(x - 1e-3)).is_homogeneous()


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        (lambda x: x.detach(), TypeError, "differentiable by torch.autograd"),
        (lambda x: torch.from_numpy(x.detach().numpy()), TypeError, "differentiable by torch.autograd"),
        (StraightThrough.apply, TypeError, "finite differences give"),
        (lambda x: torch.softmax(x, -1), TypeError, "elementwise, got .* depend on each other"),
        (lambda x: x.sum(), TypeError, "elementwise, got .* maps shape"),
        (lambda x: functional.dropout(x), TypeError, "deterministic"),
        (torch.log, ValueError, "finite with a finite slope, got log at"),
        ("swish", ValueError, "activation must be one of"),
    ],
)
def test_what_is_not_an_activation_is_refused(function, error, words):
    with pytest.raises(error, match=words):
        Activation(function)


@pytest.mark.parametrize("function", [torch.sign, torch.round])
def test_jumps_are_refused_since_chi_would_be_infinite(function):
    with pytest.raises(ValueError, match=r"must be continuous, got .* with a jump of"):
        Activation(function).kinks(4.0)
