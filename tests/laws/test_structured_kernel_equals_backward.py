"""The kernel made from inputs and gradients of layers equals one backward pass per output, in every way it can be made.

Refutes derivations.md, section 9. The oracle is the Jacobian row by row through the user's own model.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sgdsde
from sgdsde import networks
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde.kernel import KernelPlan, factors, gram, tile
from sgdsde.kernel.flop_model import Outputs
from sgdsde.kernel.layers.structure import Structure, structure_of
from tests.architectures import Wrapped
from tests.catalogue import CASES, NetCase, kernel_by_backward

OUTPUTS: tuple[Outputs, ...] = ("full", "trace", "per_class")


def entries(kernel: Tensor, c: int, outputs: str) -> Tensor:
    """Those of a full kernel that ``outputs`` names, by their definition."""
    four = kernel.view(len(kernel) // c, c, -1, c)
    by_class = torch.stack([four[:, a, :, a] for a in range(c)])
    return {"full": kernel, "trace": by_class.sum(0), "per_class": by_class}[outputs]


def error(kernel: Tensor, expected: Tensor) -> float:
    return float((kernel - expected).abs().max() / expected.abs().max())


def watched(model: Any, x: Tensor) -> tuple[FunctionalModel, Structure, int]:
    functional = as_functional(model)
    c = functional.forward(functional.params, x[:1]).shape[1]
    structure = structure_of(functional, functional.params, x, c)
    assert structure is not None
    return functional, structure, c


WATCHED = {name: case for name, case in CASES.items() if case.vectorizes and name not in ("sparse embedding", "RReLU")}


@pytest.mark.parametrize("name", WATCHED)
def test_both_ways_of_every_term_give_the_kernel(name):
    case = WATCHED[name]
    model, x1, x2 = case.model(), case.inputs(3), case.inputs(2, seed=2)
    expected = kernel_by_backward(model, x1, x2)
    functional = as_functional(model)
    c = len(expected) // 3
    for outputs in OUTPUTS:
        plan = KernelPlan.make(functional, functional.params, x1, x2, c, outputs=outputs)
        assert plan.structure is not None
        for way in ("gram", "jacobian"):
            layers = [
                dataclasses.replace(layer, way=way if term.has_gram else "jacobian")
                for layer, term in zip(plan.layers, plan.structure.terms)
            ]
            other = dataclasses.replace(plan, layers=tuple(layers), step=2)
            left, right = (factors(functional, x, plan=other) for x in (x1, x2))
            assert error(tile(left, right, plan=other), entries(expected, c, outputs)) < 1e-9


# ---------------------------------------------------------------------- ways in which a parameter may act


def tied_embedding() -> nn.Module:
    table = nn.Embedding(5, 3)
    return Wrapped(lambda m, x: F.linear(torch.tanh(m.table(x).mean(1)), m.table.weight), table=table)


def two_biases() -> nn.Module:
    """One weight with two biases, one bias in two layers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        first = F.linear(x, m.weight, m.one)
        return F.linear(torch.tanh(F.linear(torch.tanh(first), m.weight, m.two)), m.last, m.one)

    shapes = {"weight": (4, 4), "last": (4, 4), "one": (4,), "two": (4,)}
    return Wrapped(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})


def every_matrix_product() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.tanh(x @ m.a)
        x = torch.tanh(torch.matmul(x, m.b.T) / 3)
        x = torch.tanh(torch.addmm(m.bias, x, m.c))
        x = torch.tanh(torch.mm(x, 0.5 * m.d.t()))
        return F.linear(x, m.e.view(2, 4) * 2) + m.shift.view(1, -1)

    shapes = {"a": (4, 4), "b": (4, 4), "c": (4, 4), "d": (4, 4), "e": (8,), "bias": (4,), "shift": (2,)}
    return Wrapped(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})


def scaled_at_once() -> nn.Module:
    """Two multiples of weights that see the inputs themselves."""
    return Wrapped(
        lambda m, x: torch.tanh(F.linear(x, 0.5 * m.one)) + F.linear(x, m.two * 3.0),
        one=nn.Parameter(torch.randn(3, 4)),
        two=nn.Parameter(torch.randn(3, 4)),
    )


def broadcast() -> nn.Module:
    """Scales and shifts of several shapes, from either side."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.scalar * (m.full * x + m.row)
        y = torch.sin(y) * m.column + m.column
        return (y.add(m.row)).flatten(1)

    shapes = {"full": (3, 4), "row": (4,), "column": (3, 1), "scalar": ()}
    return Wrapped(forward, **{name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()})


def shared_convolution() -> nn.Module:
    layer = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Conv2d(2, 2, 2, padding="valid"), nn.Flatten())


def shared_groups() -> nn.Module:
    layer = nn.Conv1d(4, 4, 3, padding="same", groups=2, dilation=2)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Flatten())


def one_image() -> nn.Module:
    """Convolutions of an image without a batch axis."""
    return Wrapped(lambda m, x: torch.stack([m.conv(image).flatten() for image in x]), conv=nn.Conv2d(2, 2, 2))


def positions_in_front() -> nn.Module:
    """A batch axis in the middle, as recurrent networks and attention have it."""
    return Wrapped(
        lambda m, x: m.last(torch.tanh(m.first(x.transpose(0, 1)))).transpose(0, 1).flatten(1),
        first=nn.Linear(4, 3),
        last=nn.Linear(3, 2),
    )


def constants_inside() -> nn.Module:
    """Layers that act on a learned constant and on nothing of the input."""

    def forward(m: Any, x: Tensor) -> Tensor:
        positions = m.place(torch.arange(3, device=x.device))
        return m.readout(torch.tanh(m.mix(positions)[None] + x)).flatten(1)

    return Wrapped(forward, place=nn.Embedding(3, 4), mix=nn.Linear(4, 4), readout=nn.Linear(4, 2))


def masked() -> nn.Module:
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    return Wrapped(
        lambda m, x: F.linear(torch.tanh(x), m.weight * mask, m.bias),
        weight=nn.Parameter(torch.randn(2, 4)),
        bias=nn.Parameter(torch.randn(2)),
    )


def parts_of_a_weight() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        left, right = m.weight.chunk(2)
        return torch.tanh(F.linear(x, left)) * F.linear(x, right) + F.linear(x, m.weight)[:, :2]

    return Wrapped(forward, weight=nn.Parameter(torch.randn(4, 4)))


def stopped() -> nn.Module:
    """A parameter that acts once with a gradient and once without."""
    return Wrapped(
        lambda m, x: F.linear(torch.tanh(F.linear(x, m.weight)), m.weight.detach()),
        weight=nn.Parameter(torch.randn(4, 4)),
    )


def normalized_without_biases() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.LayerNorm(6, bias=False),
        nn.Tanh(),
        nn.Unflatten(1, (3, 2)),
        nn.LayerNorm((3, 2)),
        nn.Flatten(),
        nn.Linear(6, 2, bias=False),
    )


NETWORKS = {"width": 5, "sigma_b": 0.3}
MORE = {
    "one token": NetCase(lambda: nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(3, 2)), (1,), tokens=5),
    "tied embedding": NetCase(tied_embedding, (4,), tokens=5),
    "two biases": NetCase(two_biases, (4,)),
    "every matrix product": NetCase(every_matrix_product, (4,)),
    "scaled at once": NetCase(scaled_at_once, (4,)),
    "scaled first": NetCase(
        lambda: Wrapped(lambda m, x: F.linear(x, 0.5 * m.weight), weight=nn.Parameter(torch.randn(2, 4))), (4,)
    ),
    "broadcast": NetCase(broadcast, (3, 4)),
    "shared convolution": NetCase(shared_convolution, (2, 4, 3)),
    "shared groups": NetCase(shared_groups, (4, 5)),
    "one image": NetCase(one_image, (2, 3, 3)),
    "positions in front": NetCase(positions_in_front, (3, 4)),
    "constants inside": NetCase(constants_inside, (3, 4)),
    "masked": NetCase(masked, (4,)),
    "parts of a weight": NetCase(parts_of_a_weight, (4,)),
    "stopped": NetCase(stopped, (4,)),
    "normalized without biases": NetCase(normalized_without_biases, (4,)),
    "slopes by channel": NetCase(
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.PReLU(3), nn.Flatten(), nn.PReLU()), (2, 4)
    ),
    "dense, ntk": NetCase(lambda: networks.MLP(4, out_features=2, depth=2, **NETWORKS), (4,)),
    "dense, standard": NetCase(lambda: networks.MLP(4, out_features=2, parametrization="standard", **NETWORKS), (4,)),
    "convolutional, ntk": NetCase(lambda: networks.CNN(2, 4, out_features=2, depth=2, **NETWORKS), (2, 4, 4)),
    "residual": NetCase(lambda: networks.ResNet(4, out_features=2, depth=3, scaling="stable", **NETWORKS), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE)
def test_parameters_may_act_in_any_way(name):
    case = MORE[name]
    model, x1, x2 = case.model(), case.inputs(3), case.inputs(2, seed=2)
    for pair in ((x1, None), (x2, x1)):
        expected = kernel_by_backward(model, *pair)
        c = len(expected) // len(pair[0])
        for outputs in OUTPUTS:
            kernel = sgdsde.empirical_ntk(model, *pair, outputs=outputs)
            assert error(kernel, entries(expected, c, outputs)) < 1e-9
    assert torch.equal(x1, case.inputs(3)), "the inputs are the caller's"


@pytest.mark.parametrize("name", ["parts of a weight", "stopped"])
def test_what_is_not_known_goes_to_torch_func(name):
    _, structure, _ = watched(MORE[name].model(), MORE[name].inputs())
    assert structure.others == ("weight",)


@pytest.mark.parametrize(
    "name",
    [
        *("every matrix product", "shared convolution", "two biases", "dense, ntk", "convolutional, ntk", "residual"),
        *("tied embedding", "broadcast", "masked", "slopes by channel", "scaled at once"),
    ],
)
def test_what_is_known_does_not(name):
    _, structure, _ = watched(MORE[name].model(), MORE[name].inputs())
    assert structure.others == ()


# -------------------------------------------------------------------------------------------- other claims


@pytest.mark.parametrize(
    "name", ["residual block", "transformer encoder layer", "layer used twice", "frozen parameters"]
)
def test_parts_of_the_parameters_and_other_values_of_them(name):
    model, x = CASES[name].model(), CASES[name].inputs()

    def keeps(key: str) -> bool:
        return "weight" in key

    values = {key: 2 * value.detach() for key, value in model.named_parameters() if keeps(key) and value.requires_grad}
    kernel = sgdsde.empirical_ntk(model, x, params=values, where=keeps)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key in values:
                value.mul_(2)
    assert error(kernel, kernel_by_backward(model, x, where=keeps)) < 1e-9


@pytest.mark.parametrize("name", ["residual block", "transformer encoder layer", "embedding"])
def test_nothing_asks_the_device_for_a_number_while_tiles_are_made(name, monkeypatch):
    model, x = CASES[name].model(), CASES[name].inputs(5)
    functional, _, c = watched(model, x)
    plan = KernelPlan.make(functional, functional.params, x, None, c)
    plan = dataclasses.replace(plan, rows=3, step=2, tile=2)

    def asked(*args: Any) -> Any:
        raise AssertionError("a number was asked for")

    for question in ("item", "tolist", "__float__", "__bool__", "__int__", "numpy", "cpu"):
        monkeypatch.setattr(Tensor, question, asked)
    kernel = gram(functional, x, None, plan=plan)
    monkeypatch.undo()
    assert error(kernel, kernel_by_backward(model, x)) < 1e-9
