"""What a linearization holds, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.linearization import Eigenbasis
from tests.catalogue import CASES, jacobian_by_backward, kernel_by_backward


def problem(name: str, dtype: torch.dtype = torch.float64, n_test: int = 2) -> sgdsde.Problem:
    case = CASES[name]
    model, x = case.model(dtype), case.inputs(4, dtype)
    test = case.inputs(n_test, dtype, seed=5)
    with torch.no_grad():
        y, y_test = torch.sin(model(x)), torch.sin(model(test))
    words = {"x_test": test, "y_test": y_test} if n_test else {}
    return sgdsde.Problem(model, x, y, loss=nn.MSELoss(), **words)


@pytest.mark.parametrize("name", ["linear", "residual block", "lstm", "transformer encoder", "frozen parameters"])
def test_it_holds_kernels_outputs_and_weight_outputs(name):
    made = problem(name)
    model, x, x_test = made.model, made.x_train, made.x_test
    linearization = sgdsde.linearize(made)
    weights = torch.cat([value.detach().flatten() for value in model.parameters() if value.requires_grad])
    expected = {
        "kernel": kernel_by_backward(model, x),
        "cross_kernel": kernel_by_backward(model, x_test, x),
        "outputs": model(x).detach(),
        "test_outputs": model(x_test).detach(),
        "weight_outputs": (jacobian_by_backward(model, x) @ weights).view(4, -1),
        "test_weight_outputs": (jacobian_by_backward(model, x_test) @ weights).view(2, -1),
        "residual": model(x).detach() - made.y_train,
    }
    for part, value in expected.items():
        torch.testing.assert_close(getattr(linearization, part), value, rtol=1e-9, atol=1e-11)


def test_without_a_test_set_the_test_parts_are_none():
    linearization = sgdsde.linearize(problem("linear", n_test=0))
    assert linearization.cross_kernel is linearization.test_outputs is linearization.test_weight_outputs is None


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float64), (torch.float32, torch.float32)])
def test_float32_models_are_linearized_in_float64_unless_asked_otherwise(dtype, expected):
    linearization = sgdsde.linearize(problem("conv2d", torch.float32), dtype=dtype)
    for part in ("kernel", "cross_kernel", "outputs", "test_outputs", "weight_outputs", "targets", "residual"):
        assert getattr(linearization, part).dtype == expected


def test_the_eigenbasis_is_that_of_the_range():
    factor = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kernel = factor @ factor.mT
    basis = Eigenbasis.of(kernel)
    assert basis.values.shape == (2,)
    torch.testing.assert_close((basis.vectors * basis.values) @ basis.vectors.mT, kernel)


def test_kernels_that_are_none_are_refused():
    made = problem("linear")
    good = sgdsde.linearize(made)
    parts = {part: getattr(good, part) for part in ("kernel", "cross_kernel", "outputs", "test_outputs")}
    wrong = [
        ({"kernel": good.kernel[:-1]}, "kernel must be [12, 12], n_train * n_outputs, got [11, 12]"),
        ({"kernel": good.kernel * torch.nan}, "kernel must be finite everywhere"),
        ({"cross_kernel": good.kernel}, "cross_kernel must be [6, 12], got [12, 12]"),
        ({"cross_kernel": None}, "cross_kernel and test_outputs must be given exactly with a test set, got n_test=2"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            sgdsde.Linearization(made, **(parts | change))
    with pytest.raises(ValueError, match="kernel must be positive semidefinite, got eigenvalues down to"):
        _ = sgdsde.Linearization(made, **(parts | {"kernel": -good.kernel})).eigenbasis
    with pytest.warns(UserWarning, match="the kernel is zero"):
        zero = sgdsde.Linearization(made, **(parts | {"kernel": 0 * good.kernel}))
    assert zero.eigenbasis.values.tolist() == [0.0]


@pytest.mark.parametrize("wrong", [None, 0, "a", [], {}, object(), nn.Linear(2, 2), torch.zeros(12, 12).long()])
def test_parts_of_another_kind_are_refused_by_name(wrong):
    made = problem("linear")
    good = sgdsde.linearize(made)
    parts = {part: getattr(good, part) for part in ("kernel", "cross_kernel", "outputs", "test_outputs")}
    for name in ("kernel", "cross_kernel", "outputs", "test_outputs", "weight_outputs", "test_weight_outputs"):
        if wrong is None and name != "outputs" and name != "kernel":
            continue
        with pytest.raises(TypeError, match=rf"^{name} must be"):
            sgdsde.Linearization(made, **(parts | {name: wrong}))
    for ask in (sgdsde.linearize, lambda p: sgdsde.Linearization(p, **parts), sgdsde.Linearization.from_analytic):
        with pytest.raises(TypeError, match=r"problem must be a Problem, got"):
            ask(wrong)
    if wrong is not None:
        with pytest.raises(TypeError, match=r"kernel must be a KernelOperator or None.*DenseKernel"):
            sgdsde.linearize(made, kernel=wrong)


def test_outputs_of_another_shape_are_refused_by_name():
    made = problem("linear")
    good = sgdsde.linearize(made)
    for name in ("outputs", "test_outputs", "weight_outputs", "test_weight_outputs"):
        with pytest.raises(ValueError, match=rf"^{name} must be \["):
            replace(good, **{name: getattr(good, name)[:-1]})


def test_the_residual_belongs_to_squared_error():
    x = torch.randn(4, 3)
    made = sgdsde.Problem(nn.Linear(3, 2), x, torch.tensor([0, 1, 1, 0]), loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="residual must be asked for under squared error, got CrossEntropyLoss"):
        _ = sgdsde.linearize(made).residual


def test_outputs_that_are_not_finite_somewhere_are_refused():
    x = torch.tensor([[1.0], [2.0], [3.0], [0.0]])  # the last is none of the two that are probed
    made = sgdsde.Problem((lambda p, x: p["w"] / x, {"w": torch.ones(1)}), x, x, loss=nn.MSELoss())
    with pytest.raises(ValueError, match=r"must be finite everywhere, got 1 NaN or infinite entries"):
        sgdsde.linearize(made)


def test_too_little_memory_is_refused_in_bytes():
    with pytest.raises(MemoryError, match=r"memory must be at least [\d,]+ bytes, got 100"):
        sgdsde.linearize(problem("linear"), memory=100)
