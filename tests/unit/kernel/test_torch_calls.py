"""What a parameter is but for a number or its shape: read off a call, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgdsde._functional import as_functional
from sgdsde.kernel.layers.parameter_uses import Alias
from sgdsde.kernel.layers.structure import structure_of
from sgdsde.kernel.layers.torch_calls import FLIPS, derived
from tests.architectures import Wrapped
from tests.catalogue import CASES

WEIGHT = torch.arange(6, dtype=torch.float64).view(2, 3)
MT = next(flip for flip in FLIPS if getattr(flip, "__self__", None) is vars(torch._C.TensorBase)["mT"])


def read(func: Callable[..., Any], *args: Any, scale: float = 1.0, flipped: bool = False) -> Alias | None:
    """With every tensor of six numbers a view of the same parameter."""
    old = Alias("w", scale, flipped, (2, 3))
    return derived(func, args, func(*args), lambda value: old if isinstance(value, Tensor) else None)


@pytest.mark.parametrize(("func", "args", "expected"), [
    (Tensor.mul, (WEIGHT, 3.0), Alias("w", 6.0, False, (2, 3))),
    (torch.mul, (4, WEIGHT), Alias("w", 8.0, False, (2, 3))),
    (Tensor.__rmul__, (WEIGHT, -1.5), Alias("w", -3.0, False, (2, 3))),
    (Tensor.__truediv__, (WEIGHT, 4), Alias("w", 0.5, False, (2, 3))),
    (torch.div, (WEIGHT, -8.0), Alias("w", -0.25, False, (2, 3))),
    (Tensor.view, (WEIGHT, 6), Alias("w", 2.0, False, (6,))),
    (torch.flatten, (WEIGHT,), Alias("w", 2.0, False, (6,))),
    (Tensor.t, (WEIGHT,), Alias("w", 2.0, True, (3, 2))),
    (torch.transpose, (WEIGHT, 0, 1), Alias("w", 2.0, True, (3, 2))),
    (MT, (WEIGHT,), Alias("w", 2.0, True, (3, 2))),
    (Tensor.transpose, (WEIGHT, 0, 0), None),
    (torch.div, (WEIGHT, 0), None),
    (torch.tanh, (WEIGHT,), None),
    (torch.neg, (WEIGHT,), None),
    (Tensor.float, (WEIGHT,), None),
    (torch.mul, (WEIGHT, WEIGHT), None),
    (torch.sum, (WEIGHT,), None),
    (Tensor.t, (WEIGHT[0],), None),
    (MT, (WEIGHT.view(1, 2, 3),), None),
    (Tensor.mul, (WEIGHT, torch.tensor(2.0)), None),
])  # fmt: skip
def test_multiples_and_other_shapes_of_a_parameter(func: Any, args: tuple[Any, ...], expected: Alias | None) -> None:
    assert read(func, *args, scale=2.0) == expected


def test_a_matrix_that_has_been_flipped_is_flipped_back_and_not_laid_out_anew() -> None:
    assert read(Tensor.t, WEIGHT, flipped=True) == Alias("w", 1.0, False, (3, 2))
    assert read(Tensor.reshape, WEIGHT, (6,), flipped=True) is None
    assert read(torch.mul, WEIGHT, 2, flipped=True) == Alias("w", 2.0, True, (2, 3))


@pytest.mark.parametrize("change", [
    lambda w: w / 2.0, lambda w: torch.div(w, 4.0), lambda w: 0.5 * w, lambda w: w.t() * 2.0 / 3.0,
    lambda w: w.view(3, 1, 4).flatten(1), lambda w: w.mT.mT,
], ids=["half", "quarter", "product", "flipped", "reshaped", "back"])  # fmt: skip
def test_a_layer_of_a_changed_weight_is_still_followed_as_a_layer(change: Callable[[Tensor], Tensor]) -> None:
    """By its inputs and gradients, and not by one Jacobian for each example."""

    def forward(m: Any, x: Tensor) -> Tensor:
        weight = change(m.weight)
        return m.readout(torch.tanh(nn.functional.linear(x, weight if weight.shape[1] == 4 else weight.t())))

    weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    model = Wrapped(forward, weight=weight, readout=nn.Linear(3, 2)).double()
    functional, x = as_functional(model), torch.randn(6, 4, dtype=torch.float64)
    structure = structure_of(functional, functional.params, x, 2)
    assert structure is not None
    assert structure.others == ()
    assert {term.name for term in structure.terms} == {"weight", "readout.weight"}
    assert all(term.has_gram for term in structure.terms)


@pytest.mark.parametrize("name", ["layer norm by its function", "group norm by its function"])
def test_a_function_whose_arguments_are_left_out_is_still_followed(name: str) -> None:
    """With the defaults that torch has: what differs from them is seen, and left to Jacobians."""
    model, x = CASES[name].model(), CASES[name].inputs(5)
    functional = as_functional(model)
    structure = structure_of(functional, functional.params, x, 4)
    assert structure is not None
    assert structure.others == ()
    assert all(len(term.uses) == 1 for term in structure.terms)
