"""The empirical kernel equals one backward pass per output for every kind of layer, within the memory it is given."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.kernel import KernelPlan, gram
from tests.catalogue import CASES, kernel_by_backward

SLOW_PATH = [name for name, case in CASES.items() if not case.vectorizes]


OUTPUTS = ("full", "trace", "per_class")


def reduced(kernel: torch.Tensor, c: int, outputs: str) -> torch.Tensor:
    """The entries of a full kernel [n1 c, n2 c] that ``outputs`` names, by their definition."""
    four = kernel.view(len(kernel) // c, c, -1, c)
    by_class = torch.stack([four[:, a, :, a] for a in range(c)])
    return {"full": kernel, "trace": by_class.sum(0), "per_class": by_class}[outputs]


def relative_error(kernel: torch.Tensor, expected: torch.Tensor) -> float:
    return float((kernel - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_one_backward_pass_per_output(name):
    case = CASES[name]
    model, x1, x2 = case.model(), case.inputs(3), case.inputs(2, seed=2)
    expected = kernel_by_backward(model, x1)
    assert expected.abs().max() > 1e-6
    assert relative_error(sgdsde.empirical_ntk(model, x1), expected) < 1e-9
    assert relative_error(sgdsde.empirical_ntk(model, x2, x1), kernel_by_backward(model, x2, x1)) < 1e-9


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "transformer encoder", "lstm", "batch norm 2d", "embedding", "tied weights"]
)
def test_float32_models_give_float64_kernels_of_their_float32_jacobians(name):
    case = CASES[name]
    model, x = case.model(torch.float32), case.inputs(dtype=torch.float32)
    kernel = sgdsde.empirical_ntk(model, x)
    assert kernel.dtype == torch.float64
    assert relative_error(kernel, kernel_by_backward(model, x)) < 3e-6
    assert torch.equal(kernel, kernel.mT)
    assert sgdsde.empirical_ntk(model, x, dtype=torch.float32).dtype == torch.float32


def test_products_of_float32_jacobians_are_rounded_in_float64():
    # Entries of 1 and 1e-5: a float32 product would lose the small squares beside the large one.
    model = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 1e-5], [-1.0, 1e-5]])
    kernel = sgdsde.empirical_ntk(model, x)
    expected = x.double() @ x.double().mT
    torch.testing.assert_close(kernel.sum(0), expected.sum(0), rtol=1e-12, atol=0)
    assert not torch.allclose((x @ x.mT).double().sum(0), expected.sum(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", SLOW_PATH)
def test_what_cannot_be_vectorized_takes_the_slow_path(name):
    functional, _ = probe(as_functional(CASES[name].model()), CASES[name].inputs())
    assert not functional.vectorizes


@pytest.mark.parametrize(
    "name", ["linear", "conv2d", "multihead attention", "batch norm 1d", "tied weights", "bilinear"]
)
def test_the_usual_layers_take_the_fast_path(name):
    functional, _ = probe(as_functional(CASES[name].model()), CASES[name].inputs())
    assert functional.vectorizes


def test_where_keeps_the_named_parameters_and_the_parts_add_up():
    case = CASES["residual block"]
    model, x = case.model(), case.inputs()
    weights = sgdsde.empirical_ntk(model, x, where=lambda name: "weight" in name)
    rest = sgdsde.empirical_ntk(model, x, where=lambda name: "weight" not in name)
    expected = kernel_by_backward(model, x, where=lambda name: "weight" in name)
    assert relative_error(weights, expected) < 1e-9
    assert relative_error(weights + rest, kernel_by_backward(model, x)) < 1e-9


def test_params_replace_values_by_name_and_leave_the_model_alone():
    model, other, x = CASES["conv2d"].model(), CASES["conv2d"].model(), CASES["conv2d"].inputs()
    values = {name: 2 * value.detach() + 1 for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, value in other.named_parameters():
            value.copy_(values[name])
    assert relative_error(sgdsde.empirical_ntk(model, x, params=values), kernel_by_backward(other, x)) < 1e-9
    assert not torch.allclose(kernel_by_backward(model, x), kernel_by_backward(other, x))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["conv2d", "lstm", "transformer encoder layer", "one layer under two names"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 1), (2, 1, 2), (4, 3, 3), (5, 2, 3)], ids=str)
def test_blocks_steps_and_tiles_never_change_the_kernel(name, sizes, outputs):
    case = CASES[name]
    model, x1, x2 = case.model(), case.inputs(5), case.inputs(3, seed=4)
    functional, at_two = probe(as_functional(model), x1)
    for pair in ((x1, None), (x2, x1)):
        plan = KernelPlan.make(functional, functional.params, *pair, at_two.shape[1], outputs=outputs)
        plan = dataclasses.replace(plan, rows=sizes[0], step=sizes[1], tile=sizes[2])
        expected = reduced(kernel_by_backward(model, *pair), at_two.shape[1], outputs)
        assert relative_error(gram(functional, *pair, plan=plan), expected) < 1e-12


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("name", ["linear", "conv2d", "transformer encoder layer", "layer norm"])
def test_a_symmetric_kernel_is_symmetric_to_the_last_bit(name, outputs):
    model, x = CASES[name].model(torch.float32), CASES[name].inputs(5, torch.float32)
    for dtype in (torch.float32, torch.float64):
        kernel = sgdsde.empirical_ntk(model, x, dtype=dtype, outputs=outputs)
        assert kernel.dtype == dtype
        assert torch.equal(kernel, kernel.mT)


def test_the_slow_path_is_there_for_comparison():
    model, x = CASES["residual block"].model(), CASES["residual block"].inputs()
    functional = as_functional(model)
    plan = KernelPlan.make(functional, functional.params, x, None, 2, method="jacobian")
    assert plan.structure is None
    assert relative_error(gram(functional, x, None, plan=plan), kernel_by_backward(model, x)) < 1e-9


# ----------------------------------------------------------------------------------------------- refusals

X = torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"x1": X.numpy()}, TypeError, "x1 must be a torch.Tensor, got ndarray; use torch.as_tensor(...)"),
        ({"x1": X[:0]}, ValueError, "x1 must be non-empty, got shape [0, 4]"),
        ({"x1": X.float()}, TypeError, "x1 must be of the model's dtype torch.float64, got torch.float32"),
        (
            {"x1": X.to(torch.complex128)},
            TypeError,
            "x1 must be of the model's dtype torch.float64, got torch.complex128",
        ),
        ({"x1": X.to("meta")}, ValueError, "x1 must be on the model's device cpu, got meta"),
        ({"x1": X[:, :3]}, ValueError, "x1 must be a batch that the model accepts, got shape [2, 3]"),
        ({"x2": X * float("nan")}, ValueError, "x2 must be finite everywhere, got 12 NaN or infinite entries"),
        ({"x2": X[:, :3]}, ValueError, "x2 must be examples of shape [4] like x1, got [3]"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float64 or torch.float32, got torch.float16"),
        ({"memory": 0}, ValueError, "memory must be at least 1, got 0; give a number of bytes"),
        ({"memory": 0.5}, ValueError, "memory must be a whole number, got 0.5"),
        (
            {"where": lambda name: False},
            ValueError,
            "where must be a predicate that keeps at least one parameter, got none",
        ),
        ({"params": {"0.gain": X}}, ValueError, "got unknown '0.gain'"),
        ({"params": {"0.bias": X}}, ValueError, "params['0.bias'] must be of shape [3], got [3, 4]"),
        ({"params": {"0.bias": torch.ones(3)}}, ValueError, "params['0.bias'] must be of torch.float64 on cpu"),
    ],
)
def test_bad_arguments_are_refused_by_name(words, error, message):
    model = CASES["linear"].model()
    with pytest.raises(error, match=re.escape(message)):
        sgdsde.empirical_ntk(model, **({"x1": X} | words))
