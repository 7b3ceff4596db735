"""Jacobians by parameter, their products, and what they are said to take."""

from __future__ import annotations

import pytest
import torch

from sgdsde._functional import as_functional
from sgdsde._probe import probe
from sgdsde.jacobian import ExampleBytes, activation_bytes, column_pieces, jacobian, jacobian_product
from tests.catalogue import CASES, jacobian_by_backward

NAMES = ["linear", "residual block", "multihead attention", "lstm", "tied weights", "parameter without influence"]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_the_columns_of_one_backward_pass_per_output(name):
    case = CASES[name]
    model, x = case.model(), case.inputs(3)
    functional, _ = probe(as_functional(model), x)
    blocks = jacobian(functional, x)
    assert list(blocks) == [key for key, value in model.named_parameters() if value.requires_grad]
    torch.testing.assert_close(
        torch.cat(list(blocks.values()), 1), jacobian_by_backward(model, x), rtol=1e-12, atol=1e-14
    )
    assert all(block.shape[1] == functional.params[key].numel() for key, block in blocks.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_subset_of_the_parameters_gives_its_columns(name):
    case = CASES[name]
    functional, _ = probe(as_functional(case.model()), case.inputs())
    key = list(functional.params)[-1]
    part = jacobian(functional, case.inputs(), params={key: functional.params[key]})
    assert list(part) == [key]
    torch.testing.assert_close(part[key], jacobian(functional, case.inputs())[key], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("name", ["residual block", "lstm"])
def test_products_equal_those_of_the_dense_matrix(name, rows):
    case = CASES[name]
    model, x = case.model(), case.inputs(5)
    functional, outputs = probe(as_functional(model), x)
    joined = torch.cat([value.flatten() for value in functional.params.values()])
    product = jacobian_product(functional, x, functional.params, rows=rows)
    assert product.shape == (5, outputs.shape[1])
    torch.testing.assert_close(product.flatten(), jacobian_by_backward(model, x) @ joined, rtol=1e-12, atol=1e-14)


FORWARD = ["linear", "residual block", "multihead attention", "batch norm 2d", "embedding", "gelu by tanh"]


@pytest.mark.parametrize("name", CASES)
def test_a_product_is_the_same_by_forward_mode_and_by_the_matrix_for_every_layer(name):
    case = CASES[name]
    model, x = case.model(), case.inputs(3)
    functional, _ = probe(as_functional(model), x)
    generator = torch.Generator().manual_seed(5)
    direction = {
        key: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in functional.params.items()
    }
    joined = torch.cat([value.flatten() for value in direction.values()])
    expected = jacobian_by_backward(model, x) @ joined
    product = jacobian_product(functional, x, direction, rows=2).flatten()
    assert (product - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", FORWARD)
def test_the_usual_layers_have_forward_mode_derivatives(name, monkeypatch):
    functional, _ = probe(as_functional(CASES[name].model()), CASES[name].inputs())
    monkeypatch.setattr("sgdsde.jacobian._dense_product", None)
    jacobian_product(functional, CASES[name].inputs(), functional.params, rows=2)


class WrongForward(torch.autograd.Function):
    """The square, with half of its derivative in forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)
        context.save_for_forward(*inputs)

    @staticmethod
    def backward(context, gradient):
        return 2 * context.saved_tensors[0] * gradient

    @staticmethod
    def jvp(context, tangent):
        return context.saved_tensors[0] * tangent


def test_a_wrong_forward_mode_derivative_is_found_and_not_used(caplog):
    params = {"w": torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    model = (lambda p, x: WrongForward.apply(x @ p["w"]), params)
    functional, x = as_functional(model), torch.eye(3, dtype=torch.float64)
    product = jacobian_product(functional, x, params, rows=2).flatten()
    expected = jacobian_by_backward(model, x) @ params["w"].flatten()
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=0)
    assert "disagree" in caplog.text


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 40_000, 10**6])
def test_pieces_of_columns_cover_each_column_once_and_stay_small(width):
    pieces = column_pieces(width)
    covered = [index for piece in pieces for index in range(*piece.indices(width))]
    assert covered == list(range(width))
    assert max(piece.stop - piece.start for piece in pieces) <= max(1024, width / 32 + 1)


def test_activations_count_what_the_backward_pass_keeps():
    # A dense layer keeps its input; tanh its result; the second layer the same tensor again, counted once.
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    largest, total = activation_bytes(as_functional(model), torch.randn(1, 4))
    assert largest == 8 * 4
    assert total <= (4 + 8 + 3) * 4
    assert total >= (4 + 8) * 4


def test_a_jacobian_is_held_in_the_models_dtype():
    for dtype, itemsize in ((torch.float32, 4), (torch.float64, 8)):
        functional = as_functional(CASES["linear"].model(dtype))
        held = ExampleBytes.of(functional, functional.params, torch.zeros(1, 4, dtype=dtype), 3).held
        assert held == itemsize * 3 * functional.n_params
