"""Operations and bytes of a plan are those of the products that are made, as torch counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.kernel import KernelPlan
from sgdsde.kernel.assembly import tile
from sgdsde.kernel.flop_model import Job, LayerPlan, _by_gram, _by_jacobian, layer_plan
from sgdsde.kernel.layer_factors import Factors, factors
from sgdsde.kernel.layers.structure import structure_of

C = 3
MODELS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, C)), (5,)),
    "convolution": (
        nn.Sequential(
            *(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 30, 2), nn.Tanh(), nn.Flatten(), nn.Linear(30 * 4, C)),
        ),
        (2, 4, 4),
    ),
    "tokens": (nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Flatten(), nn.Linear(60, C)), (2, 40)),
    "embedding": (nn.Sequential(nn.Embedding(50, 6), nn.Tanh(), nn.Flatten(), nn.Linear(12, C)), (2,)),
}


def in_place(out: Any, left: Any, right: Any, out_shape: Any = None, **words: Any) -> int:
    """Of ``addmm_``, which torch's counter leaves out."""
    return 2 * left[0] * left[1] * right[1]


def counted(function: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        function()
    return counter.get_total_flops()


def made(name: str, outputs: str) -> tuple[KernelPlan, Factors, Factors, Any, torch.Tensor]:
    model, shape = MODELS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50, (6, *shape), generator=generator)
    x = x if name == "embedding" else torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    functional, _ = probe(as_functional(model.double()), x, "x")
    words = {"outputs": outputs, "dtype": torch.float64}
    plan = KernelPlan.make(functional, functional.params, x[:4], x[4:], C, **words)
    return plan, *(factors(functional, part, plan=plan) for part in (x[:4], x[4:])), functional, x


@pytest.mark.parametrize("outputs", ["full", "trace", "per_class"])
@pytest.mark.parametrize("name", MODELS)
def test_the_products_of_a_tile_are_counted(name: str, outputs: str) -> None:
    plan, left, right, _, _ = made(name, outputs)
    compared = 4 * 2 * 2**2 if name == "embedding" else 0  # positions whose indices are compared, one operation each
    found = counted(lambda: tile(left, right, plan=plan))
    assert found + compared == sum(layer.tile_operations for layer in plan.layers)


@pytest.mark.parametrize("name", ["dense", "convolution", "tokens"])
def test_the_passes_through_the_network_and_the_products_of_jacobians_are_counted(name: str) -> None:
    plan, _, _, functional, x = made(name, "full")
    found = counted(lambda: factors(functional, x[:4], plan=plan))
    jacobians = sum(layer.example_operations for layer in plan.layers)
    assert jacobians > 0 or name != "convolution"
    last = MODELS[name][0][-1]
    shared = 3 * C * 2 * last.in_features * C  # the read-out passes the same gradients back for every example: once
    assert found == 4 * (plan.network + jacobians) - shared


@pytest.mark.parametrize("outputs", ["full", "trace", "per_class"])
@pytest.mark.parametrize("name", ["tokens", "convolution"])
def test_what_a_pair_holds_while_it_is_made_is_no_less_than_its_products(name: str, outputs: str) -> None:
    """Many outputs: the c^2 numbers of the result are most of it. The inputs' products, those with the gradients."""
    _, _, _, functional, x = made(name, "full")
    for term in structure_of(functional, functional.params, x[:4], C).terms:
        if not term.has_gram or term.delta != "any":
            continue
        for c in (C, 100):
            plan = _by_gram(term, Job(4, 2, False, c, outputs, 8))
            places, o = term.positions, term.width[1]
            if outputs == "full":
                least = 2 * places**2 + 2 * places * c * o + c**2  # grams and a copy, twice the product, the result
            else:
                least = 2 * places**2 + 1
            assert least <= plan.working / 8 <= 2 * least
            assert plan.entries >= 4 * 2 * least
            assert plan.held == 8 * (places * term.width[0] + c * places * o)


def test_the_cheaper_way_is_taken_by_operations_and_numbers() -> None:
    """Operations and, sixteen times, numbers that are written: the sum is no larger than that of the other way."""
    _, _, _, functional, x = made("convolution", "full")
    ways = set()

    def cost(plan: LayerPlan, job: Job) -> int:
        numbers = plan.entries + job.examples * plan.held // job.itemsize
        return plan.tile_operations + job.examples * plan.example_operations + 16 * numbers

    for term in structure_of(functional, functional.params, x[:4], C).terms:
        for n, outputs in ((1, "full"), (4, "trace"), (300, "full"), (300, "trace")):
            job = Job(n, n, True, C, outputs, 8)
            taken, others = layer_plan(term, job), [_by_gram(term, job), _by_jacobian(term, job)]
            ways.add(taken.way)
            assert cost(taken, job) == min(cost(plan, job) for plan in others)
    assert ways == {"gram", "jacobian"}
