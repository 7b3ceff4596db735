"""Leading eigenpairs are those of eigh, by few products, the same every time, and refused where they are not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from sgdsde.kernel import DenseKernel, KernelOperator, NotConvergedError, leading_eigenpairs, spectrum

D = 300


class Diagonal(KernelOperator):
    """diag(l): every answer is known."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, (len(values), len(values))
        self.dtype, self.device = values.dtype, values.device

    def product(self, vectors: Tensor) -> Tensor:
        return self.values[:, None] * vectors

    def diag(self) -> Tensor:
        return self.values

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        return torch.diag_embed(self.values.view(-1, n_outputs))


@pytest.fixture(autouse=True)
def _never_dense(monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE_UP_TO", 0)


SPECTRA = {
    "decaying": torch.arange(1, D + 1, dtype=torch.float64) ** -1.0,
    "slowly decaying": torch.linspace(2, 1, D, dtype=torch.float64),
    "fast": 0.5 ** torch.arange(D, dtype=torch.float64),
    "groups of ten": torch.arange(1, D // 10 + 1).double().reciprocal().repeat_interleave(10),
    "rank five": torch.cat([torch.arange(5, 0, -1).double(), torch.zeros(D - 5).double()]),
    "one large": torch.cat([torch.full((1,), 1e6).double(), torch.linspace(1, 0.5, D - 1).double()]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 12, 60])
def test_they_are_the_leading_ones(name, k):
    values = SPECTRA[name]
    order = torch.randperm(D, generator=torch.Generator().manual_seed(0))
    found = leading_eigenpairs(Diagonal(values[order]), k, tolerance=1e-9)
    torch.testing.assert_close(found.values, values[:k], rtol=0, atol=1e-9 * float(values[0]))
    assert found.residuals.max() <= 1e-9 * values[0]
    gram = found.vectors.mT @ found.vectors
    torch.testing.assert_close(gram, torch.eye(k).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("d", [9, 17, 24, 29, 36])
def test_a_space_is_filled_to_its_last_direction(d):
    """Eigenvalues so close that only the whole space has them, a multiple of the block's size or not."""
    values, k = torch.linspace(1.001, 1, d, dtype=torch.float64), d // 4
    found = leading_eigenpairs(Diagonal(values), k)
    torch.testing.assert_close(found.values, values[:k], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.vectors.mT @ found.vectors, torch.eye(k).double(), rtol=0, atol=1e-10)
    assert found.n_products == d + k, "each direction once, and the check of what was found"


def test_a_dense_kernel_against_eigh():
    factor = torch.randn(D, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = factor @ factor.mT + 0.1 * torch.eye(D)
    values, vectors = torch.linalg.eigh(kernel)
    found = leading_eigenpairs(kernel, 10)
    torch.testing.assert_close(found.values, values.flip(0)[:10], rtol=1e-10, atol=1e-10)
    overlap = (found.vectors * vectors.flip(1)[:, :10]).sum(0).abs()
    torch.testing.assert_close(overlap, torch.ones(10).double(), rtol=0, atol=1e-6)


def test_single_precision_reaches_its_own_tolerance():
    found = leading_eigenpairs(Diagonal(SPECTRA["decaying"].float()), 20)
    assert found.values.dtype == torch.float32
    assert (found.values - SPECTRA["decaying"][:20]).abs().max() < 1e-5


def test_the_same_seed_gives_the_same_bits():
    first, again, other = (leading_eigenpairs(Diagonal(SPECTRA["decaying"]), 12, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)
    torch.testing.assert_close(first.values, other.values, rtol=1e-9, atol=0)


def test_it_takes_few_products_and_counts_them():
    found = leading_eigenpairs(Diagonal(torch.arange(1, 4001).double() ** -1.0), 100)
    assert found.n_products < 1200
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    again = leading_eigenpairs(Diagonal(SPECTRA["decaying"]), 4, progress=progress)
    assert len(seen) >= again.n_products


def test_small_kernels_are_decomposed_whole(monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE_UP_TO", 1024)
    found = leading_eigenpairs(Diagonal(SPECTRA["decaying"]), 7)
    torch.testing.assert_close(found.values, SPECTRA["decaying"][:7])


def test_what_has_not_converged_is_refused():
    with pytest.raises(
        NotConvergedError, match=r"the largest residual must be at most 1.0e-10 of the largest eigenvalue"
    ):
        leading_eigenpairs(Diagonal(SPECTRA["slowly decaying"]), 12, max_products=40)


def test_bad_arguments_are_refused():
    kernel = Diagonal(SPECTRA["decaying"])
    for words, message in [
        ({"k": 301}, "k must be at most the 300 rows of the kernel, got 301"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 2, "tolerance": 1e-16}, "tolerance must be at least 2.2e-15 in torch.float64, got 1e-16"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            leading_eigenpairs(kernel, **words)
    with pytest.raises(ValueError, match="leading_eigenpairs must be asked of the kernel of one set of examples"):
        leading_eigenpairs(DenseKernel(torch.ones(3, 4)), 1)
    with pytest.raises(ValueError, match="kernel must be positive semidefinite, got an eigenvalue -1"):
        leading_eigenpairs(-torch.eye(4).double(), 2)
