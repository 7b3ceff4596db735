"""Ritz pairs of a tail are those of the kernel on what they span, and halving them takes the rest in exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.kernel import DenseKernel, followed_tail
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.kernel.followed_tail import follow_tail, halved
from tests.problems import BY_NAME

C = 2


def kernel_of(n: int) -> Tensor:
    root = torch.linalg.qr(torch.randn(n * C, n * C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    return (root * 0.8 ** torch.arange(n * C)) @ root.mT


def block_traces(matrix: Tensor) -> Tensor:
    return matrix.diagonal().view(-1, C).sum(1)


def followed(n: int, rank: int, starts: Tensor) -> tuple[Tensor, Eigenbasis]:
    kernel = kernel_of(n)
    leading = Eigenbasis.leading(DenseKernel(kernel), rank, C)
    return kernel, follow_tail(DenseKernel(kernel), leading, [starts], C)


@pytest.fixture
def starts() -> Tensor:
    return torch.randn(40, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_ritz_pairs_and_what_is_left_of_the_kernel(starts: Tensor) -> None:
    kernel, basis = followed(20, 8, starts)
    vectors, bulk = basis.vectors, basis.tail.bulk
    assert 0 < bulk.n_followed < 32
    torch.testing.assert_close((vectors.mT @ kernel @ vectors).diagonal(), basis.values, rtol=1e-9, atol=0)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(len(basis.values)).double(), rtol=0, atol=1e-10)
    torch.testing.assert_close(vectors @ (vectors.mT @ starts), starts, rtol=0, atol=1e-9)
    rest = kernel - (vectors * basis.values) @ vectors.mT
    assert basis.tail.trace == pytest.approx(float(rest.trace()), rel=1e-9)
    torch.testing.assert_close(basis.tail.example, own_largest(rest), rtol=1e-8, atol=1e-12)
    density = block_traces(rest).clamp_min(0)
    torch.testing.assert_close(bulk.density, density / density.mean(), rtol=1e-8, atol=1e-12)
    assert float((bulk.values * bulk.counts).sum()) == pytest.approx(basis.tail.trace, rel=1e-9)


def own_largest(matrix: Tensor) -> Tensor:
    blocks = [matrix[C * i : C * i + C, C * i : C * i + C] for i in range(len(matrix) // C)]
    return torch.stack([torch.linalg.eigvalsh((block + block.mT) / 2)[-1].clamp_min(0) for block in blocks])


@pytest.mark.parametrize("directions", [96, 3], ids=["whole space", "three directions"])
def test_half_of_the_eigenpairs_are_joined_by_ritz_pairs_of_the_others(directions: int, starts: Tensor, monkeypatch):
    kernel, basis = followed(20, 20, starts)
    monkeypatch.setattr(followed_tail, "DIRECTIONS", directions)
    monkeypatch.setattr(followed_tail, "MOST_STEPS", directions)
    half, known = halved(basis, [starts]), (basis.vectors * basis.values) @ basis.vectors.mT
    vectors, bulk, kept = half.vectors, half.tail.bulk, 10
    n_ritz = bulk.n_followed
    assert len(half.values) == kept + n_ritz
    assert n_ritz == 3 if directions == 3 else n_ritz > 3
    torch.testing.assert_close(half.values[-kept:], basis.values[-kept:])
    torch.testing.assert_close((vectors.mT @ known @ vectors).diagonal(), half.values, rtol=1e-9, atol=1e-14)
    # What is left: the old bulk, and the discarded directions that no Ritz vector spans.
    rest = basis.vectors[:, :-kept] @ basis.vectors[:, :-kept].mT
    new = vectors @ vectors.mT
    outside = (rest - rest @ new @ rest) @ known @ (rest - rest @ new @ rest)
    assert half.tail.trace == pytest.approx(basis.tail.trace + float(outside.trace()), rel=1e-8)
    assert half.tail.trace + float(half.values.sum()) == pytest.approx(float(kernel.trace()), rel=1e-8)
    density = basis.tail.bulk.density * basis.tail.trace / 20 + block_traces(outside)
    torch.testing.assert_close(bulk.density, density / density.mean(), rtol=1e-6, atol=1e-10)
    assert half.tail.largest >= float(torch.linalg.eigvalsh(outside)[-1]) * (1 - 1e-9)


def test_a_tail_that_is_followed_to_the_last_direction_can_be_halved() -> None:
    """Six examples: the Ritz vectors are all that there is, and nothing is left outside of them."""
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    found = linearization.truncate(4, tail="followed")
    exact = sgdsde.predict(linearization, sgdsde.SGD(0.05, 2), 7, record=[0, 3, 7])
    part = sgdsde.predict(found, sgdsde.SGD(0.05, 2), 7, record=[0, 3, 7])
    torch.testing.assert_close(part.train_loss.mean, exact.train_loss.mean, rtol=0.05, atol=0)
    assert part.truncation_error is not None


def test_a_basis_with_a_tail_of_a_scaled_kernel_and_of_several_outputs(starts: Tensor) -> None:
    """As that of the matrix that they make, but for the blocks of examples, which are those of one output."""
    kernel, basis = followed(20, 8, starts)
    both, tail = basis.scaled(3.0).per_output(2), basis.tail
    matrix = torch.kron(3 * kernel, torch.eye(2).double())
    torch.testing.assert_close((both.vectors.mT @ matrix @ both.vectors).diagonal(), both.values, rtol=1e-9, atol=0)
    rest = matrix - (both.vectors * both.values) @ both.vectors.mT
    assert both.tail.trace == pytest.approx(float(rest.trace()), rel=1e-9)
    assert both.tail.largest == pytest.approx(3 * tail.largest)
    torch.testing.assert_close(both.tail.example, 3 * tail.example)
    assert float((both.tail.bulk.values * both.tail.bulk.counts).sum()) == pytest.approx(both.tail.trace, rel=1e-9)
    assert both.tail.bulk.n_followed == 2 * tail.bulk.n_followed
    assert float(both.tail.bulk.counts.sum()) == pytest.approx(2 * float(tail.bulk.counts.sum()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_bounds_on_what_leading_eigenpairs_leave_out_are_those_of_the_matrix(dtype: torch.dtype) -> None:
    kernel, close = kernel_of(12), 1e-9 if dtype == torch.float64 else 2e-5
    basis = Eigenbasis.leading(DenseKernel(kernel.to(dtype)), 5, C, torch.float64)
    values, vectors = torch.linalg.eigh(kernel)
    rest = (vectors[:, :-5] * values[:-5]) @ vectors[:, :-5].mT
    torch.testing.assert_close(basis.values, values[-5:], rtol=close, atol=0)
    assert basis.tail.trace == pytest.approx(float(rest.trace()), rel=close)
    torch.testing.assert_close(basis.tail.example, own_largest(rest), rtol=50 * close, atol=close)
    assert values[-6] <= basis.tail.largest <= values[-5] * (1 + close) + close
    torch.testing.assert_close(basis.left_out(DenseKernel(kernel), C)[3], rest[6:8, 6:8], rtol=0, atol=50 * close)
    whole = Eigenbasis.leading(DenseKernel(kernel.to(dtype)), 24, C, torch.float64)
    assert whole.tail is None
