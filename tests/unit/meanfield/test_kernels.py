"""Kernels of infinite width: published numbers, tiles, layouts, duplicates, several kinds of networks, messages."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from sgdsde import meanfield
from sgdsde.networks import CNN, MLP, ConvResNet, ResNet


def inputs(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("layers", "value"), [(2, 0.31830989), (3, 0.68570864), (5, 1.43039050), (10, 3.15594745)])
def test_relu_on_the_edge_of_chaos_from_orthogonal_inputs(layers, value):
    kernel = meanfield.analytic_ntk(torch.eye(2).double(), None, MLP(2, 1, 1, depth=layers - 1))
    assert float(kernel[0, 1]) == pytest.approx(value, abs=5e-9)
    assert float(kernel[0, 0]) == pytest.approx(layers, abs=1e-12)


def test_ordered_limits():
    x = inputs(2, 3)
    assert meanfield.analytic_ntk(x, None, MLP(3, 1, 1, depth=80, sigma_w=1.0, sigma_b=1.0)) == pytest.approx(
        4, abs=1e-9
    )
    settings = {"activation": "tanh", "sigma_w": 1.0, "sigma_b": 1.0}
    kernel = meanfield.analytic_ntk(x, None, MLP(3, 1, 1, depth=40, **settings))
    assert kernel == pytest.approx(2.435202, abs=5e-7)


@pytest.mark.parametrize(
    "network",
    [
        MLP(12, 1, 1, depth=3, sigma_b=0.3),
        MLP(12, 1, 1, depth=2, activation="elu", sigma_b=0.3),
        ResNet(12, 1, 1, depth=3, scaling="decreasing"),
        CNN(3, 2, 1, 1, depth=2),
        ConvResNet(3, 2, 1, 1, depth=2, readout="pool"),
    ],
    ids=["MLP", "elu", "ResNet", "CNN", "ConvResNet"],
)
def test_tiles_do_not_change_the_kernel(network):
    shape = (-1, 3, 2, 2) if isinstance(network, CNN | ConvResNet) else (-1, 12)
    x1, x2 = inputs(7, 12).reshape(shape), inputs(5, 12, 1).reshape(shape)
    whole = meanfield.analytic_kernels(x1, x2, network)
    small = meanfield.analytic_kernels(x1, x2, network, memory=8 * 8 * 40 * torch.get_num_threads())
    both = meanfield.analytic_kernels(torch.cat([x1, x2]), None, network)
    for a, b, c in zip(whole, small, both):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a, c[:7, 7:], rtol=1e-8, atol=1e-8)  # a table of other scales, to 1e-9
        assert torch.equal(c, c.T)
        assert float(torch.linalg.eigvalsh(c)[0]) > -1e-9


def test_one_kernel_at_a_time():
    x, network = inputs(3, 4), MLP(4, 1, 1, depth=2)
    kernels = meanfield.analytic_kernels(x, None, network)
    assert torch.equal(meanfield.analytic_nngp(x, None, network), kernels.nngp)
    assert torch.equal(meanfield.analytic_ntk(x, None, network, kernel="nngp"), kernels.nngp)
    assert torch.equal(meanfield.analytic_ntk(x, None, network), kernels.ntk)


def test_duplicates_zeros_and_opposites():
    x = inputs(1, 4)
    x = torch.cat([x, x, -x, torch.zeros(1, 4).double()])
    kernel = meanfield.analytic_ntk(x, None, MLP(4, 1, 1, depth=6))
    assert float(kernel[0, 1]) == float(kernel[0, 0]) == float(kernel[1, 1])
    assert bool((kernel[3] == 0).all())
    assert bool(torch.isfinite(kernel).all())


def test_outputs_are_independent():
    kernel = inputs(2, 2) @ torch.eye(2).double()
    assert torch.equal(meanfield.per_output(kernel, 3)[:3, 3:], kernel[0, 1] * torch.eye(3).double())


def test_kinks_away_from_zero_work_on_inputs_of_one_length():
    x = functional.normalize(inputs(3, 4)) * 2
    network = MLP(4, 1, 1, depth=1, activation=functional.hardtanh)
    s = torch.full((3,), math.sqrt(2.0), dtype=torch.float64)
    found = meanfield.quadrature.pair_moments(
        meanfield.Activation(functional.hardtanh), s[:, None], s, (x @ x.T / 4).clamp(-1, 1)
    )
    torch.testing.assert_close(meanfield.analytic_nngp(x, None, network), 2 * found.product, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: meanfield.analytic_ntk(inputs(2, 3), None, nn.Linear(3, 1)),
            TypeError,
            "networks.MLP, ResNet.*Linear",
        ),
        (
            lambda: meanfield.analytic_ntk(inputs(2, 3), None, MLP(3, 1, 1, parametrization="standard")),
            ValueError,
            "grows like the width",
        ),
        (lambda: meanfield.analytic_ntk(inputs(2, 3), None, MLP(4, 1, 1)), ValueError, r"x1 must be \[n, 4\]"),
        (
            lambda: meanfield.analytic_ntk(inputs(2, 4).reshape(2, 1, 2, 2), None, CNN(1, 2, 1, 1), memory=8),
            ValueError,
            r"memory must be at least \d+ bytes",
        ),
        (lambda: meanfield.analytic_ntk(inputs(2, 3), None, MLP(3, 1, 1), kernel="ck"), ValueError, "'ntk', 'nngp'"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
