"""A parameter that acts where nothing can watch it, or in two places, is never silently left out of the kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde._functional import as_functional
from sgdsde.kernel import KernelPlan, gram
from sgdsde.kernel.layers.structure import structure_of
from tests.architectures import Wrapped
from tests.catalogue import CASES, NetCase, kernel_by_backward
from tests.laws.test_structured_kernel_equals_backward import MORE, error, watched


class Hidden(torch.autograd.Function):
    """x W^T, by a call that no mode can watch."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight.mT

    @staticmethod
    def setup_context(context: Any, inputs: Any, output: Tensor) -> None:
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = context.saved_tensors
        return gradient @ weight, gradient.mT @ x


def hidden() -> nn.Module:
    return Wrapped(
        lambda m, x: m.readout(torch.tanh(Hidden.apply(x, m.layer.weight) + m.layer.bias)),
        layer=nn.Linear(4, 3),
        readout=nn.Linear(3, 2),
    )


def half_hidden() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.readout(torch.tanh(Hidden.apply(x, m.layer.weight)) + 0.1 * m.layer(x))

    return Wrapped(forward, layer=nn.Linear(4, 3), readout=nn.Linear(3, 2))


def inner_loop() -> nn.Module:
    """A layer under the model's own vmap, whose inputs do not leave it."""
    return Wrapped(lambda m, x: torch.vmap(lambda row: m.layer(torch.tanh(row)))(x).flatten(1), layer=nn.Linear(4, 2))


@pytest.mark.parametrize("build", [hidden, half_hidden, inner_loop], ids=["hidden", "half hidden", "inner loop"])
def test_a_use_that_cannot_be_watched_is_found_and_said(build, caplog):
    case = NetCase(build, (3, 4) if build is inner_loop else (4,))
    kernel = sgdsde.empirical_ntk(case.model(), case.inputs())
    assert error(kernel, kernel_by_backward(case.model(), case.inputs())) < 1e-9
    assert "the kernel is made from plain Jacobians, slowly" in caplog.text


def asleep() -> nn.Module:
    """A layer that nothing can watch, behind a unit that sleeps wherever the first input is negative."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return m.readout(x) + torch.relu(x[:, :1]) * Hidden.apply(x, m.weight)

    return Wrapped(forward, weight=nn.Parameter(torch.randn(2, 4)), readout=nn.Linear(4, 2))


def test_a_hidden_parameter_is_found_although_its_gradient_is_zero_where_it_is_checked():
    case = NetCase(asleep, (4,))
    model, x = case.model(), case.inputs(9)
    x[:, 0] = -1.0
    x[4, 0] = 1.0  # not among the four examples of the check
    assert error(sgdsde.empirical_ntk(model, x), kernel_by_backward(model, x)) < 1e-9


def test_parameters_without_any_influence_give_zero():
    model, x = CASES["parameter without influence"].model(), CASES["parameter without influence"].inputs()
    kernel = sgdsde.empirical_ntk(model, x, where=lambda name: name in ("bare", "unused.weight"))
    assert torch.equal(kernel, torch.zeros(6, 6, dtype=torch.float64))


def scaled_outputs(*, in_place: bool) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.readout(torch.tanh(m.layer(x)))
        return y.mul_(m.scale) if in_place else y * m.scale

    layers = {"layer": nn.Linear(4, 3), "readout": nn.Linear(3, 2)}
    return Wrapped(forward, scale=nn.Parameter(torch.ones(2), requires_grad=not in_place), **layers)


@pytest.mark.parametrize("in_place", [False, True], ids=["new", "in place"])
def test_a_plan_holds_for_other_parameters(in_place):
    # The gradient at the last layer is the identity here only because the scale happens to be one.
    model, x = scaled_outputs(in_place=in_place).double(), NetCase(hidden, (4,)).inputs()
    functional = as_functional(model)
    plan = KernelPlan.make(functional, functional.params, x, None, 2)
    with torch.no_grad():
        model.scale.copy_(torch.tensor([2.0, -3.0]))
    moved = as_functional(model)
    assert error(gram(moved, x, None, plan=plan), kernel_by_backward(model, x)) < 1e-9


def test_the_check_finds_every_single_use_that_is_left_out(monkeypatch):
    # Negative control of the check itself: forget the uses of a model one by one.
    model, x = MORE["two biases"].model(), MORE["two biases"].inputs()
    functional, structure, c = watched(model, x)
    assert len(structure.watched.uses) == 3
    real = sgdsde.kernel.layers.structure.terms_of
    for forgotten in range(3):

        def terms_of(*args: Any, which: int = forgotten) -> Any:
            terms = [dataclasses.replace(t, uses=tuple(use for use in t.uses if use != which)) for t in real(*args)]
            return tuple(term for term in terms if term.uses or term.name in args[2])

        monkeypatch.setattr("sgdsde.kernel.layers.structure.terms_of", terms_of)
        found = structure_of(functional, functional.params, x, c)
        assert found is None or found.others


def test_taking_layers_one_by_one_is_wrong_for_a_layer_that_is_used_twice():
    model, x = CASES["layer used twice"].model(), CASES["layer used twice"].inputs()
    functional, structure, c = watched(model, x)
    seen = structure.observe(functional, x, torch.eye(c, dtype=torch.float64))
    naive = torch.zeros(3 * c, 3 * c, dtype=torch.float64)
    for use, source, delta in zip(structure.watched.uses, seen.sources, seen.deltas):
        assert use.weight is not None
        gradients = delta.reshape(3 * c, -1)
        inputs = source.reshape(3, -1)
        naive += (gradients @ gradients.mT) * (inputs @ inputs.mT + 1).repeat_interleave(c, 0).repeat_interleave(c, 1)
    expected = kernel_by_backward(model, x)
    assert error(naive, expected) > 0.2
    assert error(sgdsde.empirical_ntk(model, x), expected) < 1e-9
