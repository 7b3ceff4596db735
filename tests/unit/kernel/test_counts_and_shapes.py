"""What square matrices and small ones hide: transposes, blocks of columns, products that are not counted."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from sgdsde._functional import as_functional
from sgdsde.kernel import DenseKernel, KernelOperator, leading_eigenpairs, spectrum
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.kernel.layers.structure import _spread, _wrong, structure_of
from sgdsde.kernel.operator import COLUMNS


class Counting(KernelOperator):
    """A matrix that remembers how many vectors each product had."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.shape, self.dtype, self.device = matrix, tuple(matrix.shape), matrix.dtype, matrix.device
        self.widths: list[int] = []

    def product(self, vectors: Tensor) -> Tensor:
        self.widths.append(vectors.shape[1])
        return self.matrix @ vectors

    def diag(self) -> Tensor:
        return self.matrix.diagonal()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        return DenseKernel(self.matrix).diagonal_blocks(n_outputs)


def decaying(d: int) -> Tensor:
    root = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    return (root * 0.9 ** torch.arange(d)) @ root.mT


@pytest.mark.parametrize("dense_up_to", [0, 10**6], ids=["by blocks", "whole"])
def test_every_product_is_counted_and_none_is_wider_than_a_block(dense_up_to, monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE_UP_TO", dense_up_to)
    operator = Counting(decaying(200))
    found = leading_eigenpairs(operator, 20, tolerance=1e-8)
    assert found.n_products == sum(operator.widths) >= 20
    if not dense_up_to:
        assert max(operator.widths) <= spectrum.BLOCK


@pytest.mark.parametrize("limit", [40, 60])
def test_the_limit_on_products_ends_the_iteration(limit, monkeypatch):
    """Beside the products that measure the residuals of what was found: a spectrum that does not decay."""
    monkeypatch.setattr(spectrum, "DENSE_UP_TO", 0)
    operator = Counting(torch.linspace(2, 1, 200, dtype=torch.float64).diag())
    with pytest.raises(spectrum.NotConvergedError):
        leading_eigenpairs(operator, 12, max_products=limit)
    assert limit - 12 < sum(operator.widths) - 12 <= limit


@pytest.mark.parametrize("shape", [(5, 2 * COLUMNS + 40), (COLUMNS + 1, 3), (3, COLUMNS)], ids=str)
def test_an_operator_wider_than_a_block_of_columns_is_written_out(shape):
    matrix = torch.arange(float(shape[0] * shape[1]), dtype=torch.float64).view(shape)
    operator = Counting(matrix)
    assert torch.equal(operator.to_dense(), matrix)
    assert max(operator.widths) <= COLUMNS
    assert sum(operator.widths) == shape[1]


def test_a_truncated_basis_of_a_kernel_in_single_precision_is_orthonormal_in_double():
    matrix = decaying(60)
    basis = Eigenbasis.leading(DenseKernel(matrix.float()), 12, 2, torch.float64)
    gram = basis.vectors.mT @ basis.vectors
    torch.testing.assert_close(gram, torch.eye(12).double(), rtol=0, atol=1e-13)
    torch.testing.assert_close(basis.values.flip(0), 0.9 ** torch.arange(12).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(matrix @ basis.vectors, basis.vectors * basis.values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", range(1, 12))
def test_the_examples_that_are_checked_reach_from_the_first_to_the_last(n):
    chosen = _spread(n)
    assert (chosen[0], chosen[-1]) == (0, n - 1)
    assert chosen == sorted(chosen)


class Product(nn.Module):
    """x W with W [in, out], the transpose of what ``nn.Linear`` keeps."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, generator=torch.Generator().manual_seed(n_in)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("sizes", [(3, 5, 2), (4, 4, 4)], ids=["oblong", "square"])
def test_weights_are_watched_whichever_way_they_lie(sizes, caplog):
    """A wrong transpose in the check gives them to the slow path."""
    n_in, width, n_out = sizes
    model = nn.Sequential(nn.Linear(n_in, width), nn.Tanh(), Product(width, n_out)).double()
    functional, x = as_functional(model), torch.randn(6, n_in, dtype=torch.float64)
    with caplog.at_level(logging.WARNING):
        structure = structure_of(functional, functional.params, x, n_out)
    assert structure is not None
    assert structure.others == ()
    assert not caplog.records


def test_rounding_is_no_fault_and_a_wrong_digit_is_one():
    gradients = {"first": torch.tensor([1.0, -3.0]).double(), "second": torch.tensor([0.5]).double()}
    for error, wrong in ((1e-11, []), (1e-6, ["first", "second"])):
        assert _wrong({name: value * (1 + error) for name, value in gradients.items()}, gradients) == wrong
    zero = gradients | {"second": torch.zeros(1).double()}
    assert _wrong(zero | {"second": torch.full((1,), 1e-15).double()}, zero) == []
    assert _wrong(zero | {"second": torch.full((1,), 1e-10).double()}, zero) == ["second"]
