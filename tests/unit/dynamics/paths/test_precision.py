"""Precision of sample paths: the same draws in float32 and float64, and how far rounding carries the paths apart."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sgdsde
from sgdsde.dynamics import (
    EulerMaruyama,
    ExponentialEuler,
    FrozenNoise,
    Integrator,
    ItoTerm,
    SDEInt,
    SDEPaths,
    WeakOrder2,
)
from sgdsde.kernel import as_operator
from tests.problems import BY_NAME, classification_problem, linear_problem, on

INTEGRATORS = [EulerMaruyama(), ExponentialEuler(), WeakOrder2(), FrozenNoise(stride=1)]
SGD = sgdsde.SGD(0.1, 2)


def made() -> sgdsde.Linearization:
    return sgdsde.linearize(BY_NAME["two outputs, null space"].problem())


@pytest.mark.parametrize("integrator", INTEGRATORS, ids=repr)
def test_single_precision_is_near_and_not_equal(integrator: Integrator) -> None:
    single, double = (SDEPaths(70, integrator, precision=precision) for precision in ("float32", "float64"))
    assert 1e-9 < single.rounding_error(made(), SGD, 30) < 3e-6
    assert double.rounding_error(made(), SGD, 30) == 0
    (law,) = single.evolve(made(), SGD, [30])
    (other,) = SDEPaths(70, integrator).evolve(made(), SGD, [30])
    assert law.samples.dtype == law.test_samples.dtype == law.mean.dtype == torch.float64
    torch.testing.assert_close(law.samples, other.samples, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(law.test_samples, other.test_samples, rtol=1e-4, atol=1e-5)


def test_the_error_is_told_by_the_definition() -> None:
    paths, one = SDEPaths(100, precision="float32"), made()
    (single,), (double,) = (
        dataclasses.replace(paths, precision=p).evolve(one, SGD, [9]) for p in ("float32", "float64")
    )
    difference, moved = (single.samples - double.samples)[:64], (double.samples - one.outputs)[:64]
    expected = float(difference.square().sum().sqrt() / moved.square().sum().sqrt())
    assert paths.rounding_error(one, SGD, 9) == pytest.approx(expected, rel=1e-9)


def test_paths_that_stand_still_have_no_error() -> None:
    fitted = sgdsde.linearize(linear_problem([[[1.0]], [[2.0]]], [[1.0], [2.0]], [1.0]))
    assert SDEPaths(precision="float32").rounding_error(fitted, SGD, 3) == 0


def test_a_single_linearization_can_be_stepped_in_double() -> None:
    one = sgdsde.linearize(classification_problem(), dtype=torch.float32)
    (law,) = SDEPaths(4, precision="float64").evolve(one, SGD, [3])
    assert law.samples.dtype == torch.float32
    assert SDEPaths(4).rounding_error(one, SGD, 30) > 0


@pytest.mark.parametrize(
    "words", [{"momentum": 0.5, "weight_decay": 0.1, "label_noise_std": 0.2}, {"nesterov": True, "momentum": 0.3}]
)
def test_all_of_sgd_in_single_precision(words: dict) -> None:
    assert 1e-9 < SDEPaths(precision="float32").rounding_error(made(), sgdsde.SGD(0.1, 2, **words), 20) < 3e-6


def test_an_ito_term_in_single_precision() -> None:
    paths = SDEPaths(64, ito_term=ItoTerm(), precision="float32")
    assert 1e-9 < paths.rounding_error(sgdsde.linearize(classification_problem()), SGD, 5) < 3e-6


def test_what_precision_refuses() -> None:
    with pytest.raises(ValueError, match="precision must be one of 'float64', 'float32', 'tf32', got 'half'"):
        SDEPaths(precision="half")
    with pytest.raises(ValueError, match="precision must be 'float64' or 'float32' where there is no CUDA, got 'tf32'"):
        SDEPaths(precision="tf32").evolve(made(), SGD, [1])
    with pytest.raises(ValueError, match="precision must be None with SDEInt, which has its own, got 'float32'"):
        SDEPaths(4, SDEInt(), precision="float32").evolve(made(), SGD, [1])
    operator = dataclasses.replace(made(), kernel=as_operator(made().kernel))
    with pytest.raises(ValueError, match="precision must be given with kernels that are tensors, got 'float32' with a"):
        SDEPaths(precision="float32").evolve(operator, SGD, [1])


@pytest.mark.parametrize("precision", [None, "float32"])
def test_global_settings_are_left_as_they_were(precision: str | None) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = not before
    try:
        list(SDEPaths(2, precision=precision).evolve(made(), SGD, [1, 2]))
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
def test_tf32_is_less_precise_than_single_on_a_device() -> None:
    one = sgdsde.linearize(on("cuda", BY_NAME["two outputs"].problem()))
    single, coarse = (SDEPaths(precision=p).rounding_error(one, SGD, 30) for p in ("float32", "tf32"))
    assert single < 1e-5 < coarse < 0.1
