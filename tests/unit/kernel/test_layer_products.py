"""Products with the Jacobian by layers are those of the Jacobian itself, for every kind of layer and any weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.kernel import layer_products
from sgdsde.kernel.layer_products import LayerProducts, NetworkJacobian, OuterLayer
from tests.catalogue import CASES, jacobian_by_backward

NAMES = (
    *("residual block", "unet skip", "batch norm 2d", "embedding", "transformer encoder layer", "rnn", "tied weights"),
    *("transposed tie", "layer used twice", "bare parameters", "frozen parameters", "parameter without influence"),
    *("weight norm", "bilinear", "pair of function and parameters", "conv1d", "conv grouped"),
    *("own convolutional network", "scaled weights and biases", "scaled biases of positions"),
)


def network_jacobian(case):
    model, x = case.model(), case.inputs(5)
    functional, outputs = probe(as_functional(model), x, "x")
    return NetworkJacobian.of(functional, x, outputs.shape[1]), model, x


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_jacobian(name):
    case = CASES[name]
    whole, model, x = network_jacobian(case)
    products = whole.at(whole.functional.params, x)
    jacobian = jacobian_by_backward(model, x)
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4, jacobian.shape[1], generator=generator, dtype=torch.float64)
    cotangents = torch.randn(4, len(jacobian), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(products.push(rows), jacobian @ rows.mT, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(products.pull(cotangents), cotangents @ jacobian, rtol=1e-9, atol=1e-11)
    if isinstance(products, LayerProducts):
        assert products.trace() == pytest.approx(float(jacobian.square().sum()), rel=1e-10)
    else:
        assert products.trace() is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "by_layers"), [
    ("residual block", True), ("conv1d", True), ("transposed tie", True), ("rnn", False),
])  # fmt: skip
def test_they_follow_the_weights_and_do_not_depend_on_blocks(name, by_layers, monkeypatch):
    whole, _, x = network_jacobian(CASES[name])
    moved = {name: value + 0.1 for name, value in whole.functional.params.items()}
    found, at_start = whole.at(moved, x), whole.at(whole.functional.params, x)
    assert isinstance(found, LayerProducts) == by_layers
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(3, sum(value.numel() for value in moved.values()), generator=generator, dtype=torch.float64)
    cotangents = torch.randn(3, len(x) * whole.n_outputs, generator=generator, dtype=torch.float64)
    pushed, pulled, trace = found.push(rows), found.pull(cotangents), found.trace()
    assert (at_start.push(rows) - pushed).abs().max() > 1e-3
    for name, value in {"ROWS": 2, "NUMBERS": 1, "VECTORS": 2}.items():
        monkeypatch.setattr(layer_products, name, value)
    in_blocks = whole.at(moved, x)
    torch.testing.assert_close(in_blocks.push(rows), pushed)
    torch.testing.assert_close(in_blocks.pull(cotangents), pulled)
    assert in_blocks.trace() == (pytest.approx(trace) if by_layers else None)


def test_a_layer_whose_input_is_seen_at_one_position_is_never_written_out():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    functional, _ = probe(as_functional(model), x, "x")
    products = NetworkJacobian.of(functional, x, 3).at(functional.params, x)
    assert isinstance(products, LayerProducts)
    assert all(isinstance(layer, OuterLayer) for layer in products.layers)
