"""Every operator is the matrix it stands for, and what it cannot be is refused by name."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.func import functional_call

import sgdsde
from sgdsde._functional import as_functional
from sgdsde.kernel import DenseKernel, ImplicitKernel, KroneckerKernel, LowRankKernel, TiledKernel
from sgdsde.kernel.jacobian_products import ByRows, TwiceBackward, Vectorized, directional
from tests.catalogue import CASES, kernel_by_backward

CHOSEN = ["linear", "residual block", "layer norm", "multihead attention", "lstm", "tied weights", "embedding bag"]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(n_outputs: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, n_outputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


def operators(tmp_path, n: int = 7) -> dict[str, tuple]:
    """Each kind with the matrix it must be."""
    model, x = network(), random(n, 4)
    full = kernel_by_backward(model, x)
    by_output = full.view(n, 3, n, 3)
    trace = torch.einsum("iaja->ij", by_output)
    blocks = torch.einsum("iajb,ab->iajb", by_output, torch.eye(3).double()).reshape(3 * n, 3 * n)
    values, vectors = torch.linalg.eigh(full)
    made = {
        outputs: TiledKernel.create(tmp_path / outputs, model, x, outputs=outputs, tile=3)
        for outputs in ("full", "trace", "per_class")
    }
    return {
        "dense": (DenseKernel(full), full),
        "low rank": (LowRankKernel(values[-4:], vectors[:, -4:]), (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].mT),
        "implicit": (ImplicitKernel(model, x), full),
        "tiled": (made["full"], full),
        "tiled trace": (made["trace"], trace),
        "tiled per class": (made["per_class"], blocks),
        "one output": (made["per_class"].output(1), by_output[:, 1, :, 1]),
        "kronecker": (KroneckerKernel(made["trace"], 3, scale=1 / 3), torch.kron(trace / 3, torch.eye(3).double())),
    }


def test_operators_are_their_matrices(tmp_path):
    for name, (operator, matrix) in operators(tmp_path).items():
        d = len(matrix)
        assert operator.shape == (d, d), name
        assert operator.dtype == torch.float64
        v = random(d, 5)
        close = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(operator @ v, matrix @ v, **close)
        torch.testing.assert_close(operator @ v[:, 0], matrix @ v[:, 0], **close)
        torch.testing.assert_close(operator.diag(), matrix.diagonal(), **close)
        torch.testing.assert_close(operator.to_dense(), matrix, **close)
        c = 1 if d == 7 else 3
        blocks = matrix.view(7, c, 7, c).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        torch.testing.assert_close(operator.diagonal_blocks(c), blocks, **close)
        assert operator.trace() == pytest.approx(float(matrix.trace()))
        with pytest.raises(ValueError, match=re.escape(f"the right factor must be [{d}] or [{d}, k], got [{d + 1}]")):
            operator @ random(d + 1)


def test_kernels_between_two_sets(tmp_path):
    model, x1, x2 = network(), random(5, 4), random(7, 4, seed=3)
    full = kernel_by_backward(model, x1, x2)
    by_output = full.view(5, 3, 7, 3)
    expected = {
        "implicit": (ImplicitKernel(model, x1, x2), full),
        "tiled": (TiledKernel.create(tmp_path / "full", model, x1, x2, tile=3), full),
        "trace": (
            TiledKernel.create(tmp_path / "trace", model, x1, x2, tile=4, outputs="trace"),
            torch.einsum("iaja->ij", by_output),
        ),
        "one output": (
            TiledKernel.create(tmp_path / "each", model, x1, x2, tile=2, outputs="per_class").output(2),
            by_output[:, 2, :, 2],
        ),
    }
    for operator, matrix in expected.values():
        torch.testing.assert_close(operator @ random(matrix.shape[1], 2), matrix @ random(matrix.shape[1], 2))
        torch.testing.assert_close(operator.to_dense(), matrix)
        with pytest.raises(ValueError, match="must be asked of the kernel of one set of examples"):
            operator.diag()


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_implicit_products_are_right_for_every_kind_of_layer(name, dtype):
    case = CASES[name]
    model, x = case.model(dtype), case.inputs(5, dtype)
    kernel, expected = ImplicitKernel(model, x), kernel_by_backward(model, x)
    v = random(len(expected), 3)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert (kernel @ v.to(dtype) - expected @ v).abs().max() < tolerance * (expected @ v).abs().max()
    assert (kernel.diag() - expected.diagonal()).abs().max() < tolerance * expected.abs().max()


def test_all_ways_to_derive_agree_and_a_wrong_one_is_not_taken(monkeypatch):
    functional, x = as_functional(network()), random(4, 4)
    u, w = random(2, 4, 3), {name: random(2, *value.shape) for name, value in functional.params.items()}
    expected = ByRows(functional)
    for way in (Vectorized(functional), TwiceBackward(functional)):
        torch.testing.assert_close(way.push(x, w), expected.push(x, w))
        torch.testing.assert_close(way.pull(x, u), expected.pull(x, u))
    assert isinstance(directional(functional, x, 3), Vectorized)
    right = Vectorized.push
    monkeypatch.setattr(Vectorized, "push", lambda self, x, w: 1.001 * right(self, x, w))
    assert isinstance(directional(functional, x, 3), TwiceBackward)
    monkeypatch.setattr(TwiceBackward, "push", lambda self, x, w: 1.001 * right(self, x, w))
    assert isinstance(directional(functional, x, 3), ByRows)
    monkeypatch.setattr(ByRows, "push", lambda self, x, w: 1.001 * right(self, x, w))
    with pytest.raises(ValueError, match="model must be one whose Jacobian can be multiplied, got Vectorized: J w off"):
        directional(functional, x, 3)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-6), (torch.float32, 0.1)], ids=["double", "single"])
def test_a_wrong_way_is_told_from_a_right_one_in_any_unit(unit, dtype, error, monkeypatch):
    model, x = network(dtype=dtype), random(4, 4, dtype=dtype)
    functional = as_functional(
        (lambda params, x: unit * functional_call(model, params, (x,)), dict(model.named_parameters()))
    )
    assert isinstance(directional(functional, x, 3), Vectorized)
    assert isinstance(directional(functional, x[:1], 3), Vectorized)
    pull, push = Vectorized.pull, Vectorized.push
    with monkeypatch.context() as patched:
        patched.setattr(Vectorized, "push", lambda self, x, w: (1 + error) * push(self, x, w))
        assert isinstance(directional(functional, x, 3), TwiceBackward)
        second = torch.tensor([1.0, 1 + error]).to(dtype)[:, None]  # right for the first example only
        patched.setattr(Vectorized, "push", lambda self, x, w: push(self, x, w) * second[: len(x)])
        assert isinstance(directional(functional, x, 3), TwiceBackward)
    for wrong in functional.params:
        with monkeypatch.context() as patched:
            patched.setattr(
                Vectorized,
                "pull",
                lambda self, x, u, wrong=wrong: {
                    name: (1 + error * (name == wrong)) * value for name, value in pull(self, x, u).items()
                },
            )
            assert isinstance(directional(functional, x, 3), TwiceBackward), wrong


def test_chunks_never_change_an_implicit_product(monkeypatch):
    model, x = network(), random(9, 4)
    v = random(27, 11)
    expected = ImplicitKernel(model, x) @ v
    monkeypatch.setattr("sgdsde.kernel.implicit.ROWS", 2)
    monkeypatch.setattr("sgdsde.kernel.implicit.VECTORS", 3)
    torch.testing.assert_close(ImplicitKernel(model, x) @ v, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(
        MemoryError, match=r"memory must be at least [\d,]+ bytes, got 100; one vector beside a Jacobian"
    ):
        ImplicitKernel(model, x, memory=100)


def test_a_dense_kernel_too_large_for_the_memory_is_refused_in_bytes(tmp_path):
    model, x = network(), random(6, 4)
    for operator in (ImplicitKernel(model, x), TiledKernel.create(tmp_path / "k", model, x)):
        with pytest.raises(
            MemoryError, match=r"memory must be at least 2,592 bytes, got 2,591; a dense kernel of 18 x 18"
        ):
            operator.to_dense(memory=2591)
        assert operator.to_dense(memory=2592).shape == (18, 18)


def test_low_rank_kernels_that_are_none_are_refused():
    q = torch.linalg.qr(random(6, 2))[0]
    for values, vectors, message in [
        (torch.ones(3).double(), q, "values and vectors must be [r] and [d, r], got [3] and [6, 2]"),
        (-torch.ones(2).double(), q, "values must be zero or positive"),
        (torch.ones(2).double(), 2 * q, "vectors must be orthonormal columns, got off by 3.0e+00"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            LowRankKernel(values, vectors)


def test_a_file_in_float32_multiplies_float64_vectors_in_float64(tmp_path):
    model, x = network(), random(6, 4)
    kernel = TiledKernel.create(tmp_path / "k", model, x, dtype=torch.float32, tile=4)
    assert kernel.dtype == torch.float32
    product = kernel @ random(18)
    assert product.dtype == torch.float64
    torch.testing.assert_close(product, kernel.to_dense().double() @ random(18), rtol=1e-12, atol=1e-12)
    assert (kernel.to_dense() - sgdsde.empirical_ntk(model, x)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("x1", "x2", "message"),
    [
        (torch.ones(3, 4), None, "x1 must be of the model's dtype torch.float64, got torch.float32"),
        (torch.ones(0, 4).double(), None, "x1 must"),
        (torch.full((3, 4), torch.nan).double(), None, "x1 must"),
        (torch.ones(3, 4).double(), torch.ones(3, 5).double(), r"x2 must be examples of shape \[4\] like x1"),
    ],
    ids=["dtype", "empty", "not finite", "shape"],
)
def test_inputs_are_checked_before_the_model_is_called(x1, x2, message):
    with pytest.raises((TypeError, ValueError), match=message):
        ImplicitKernel(torch.nn.Linear(4, 1).double(), x1, x2)
