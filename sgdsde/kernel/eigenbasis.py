"""Eigenbasis of a kernel: all eigenpairs, or the leading ones with bounds on the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._types import Progress
from sgdsde.kernel.operator import KernelOperator, KroneckerKernel, LowRankKernel, as_operator
from sgdsde.kernel.spectrum import leading_eigenpairs

WORKING_MATRICES = 4
"""Of the kernel's size beside it while it is decomposed: its symmetric part, eigenvectors, twice LAPACK's workspace."""


@dataclass(frozen=True, eq=False)
class Bulk:
    """Spectrum of what a ``Tail`` holds, for the moments of directions that are not followed one by one.

    Attributes:
        values: nodes l_j > 0, [J]. counts: how many directions have each, [J], not whole; sum_j counts_j l_j = tr K_t.
        density: rho_i, [n], the share of these directions that examples have, 1 on average.
        n_followed: how many of the modes beside it are Ritz vectors of the tail, not eigenvectors.
    """

    values: Tensor
    counts: Tensor
    density: Tensor
    n_followed: int


@dataclass(frozen=True, eq=False)
class Tail:
    """Part of a kernel outside of a truncated eigenbasis: K_t = K - U diag(l) U^T.

    Attributes:
        largest: no eigenvalue of K_t is larger. trace: tr K_t.
        example: k_i, [n], the largest eigenvalue of K_t's diagonal block of example i.
        bulk: its spectrum, where its moments are followed; None where it is taken to stay where it is.
    """

    largest: float
    trace: float
    example: Tensor
    bulk: Bulk | None = None


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Spectral decomposition of a positive semidefinite kernel, restricted to its range or truncated.

    Attributes:
        values: l, [r], ascending, all above d eps l_max. vectors: U, [d, r].
        tail: what is left out; None where nothing is.
    """

    values: Tensor
    vectors: Tensor
    tail: Tail | None = None

    @classmethod
    def of(cls, kernel: Tensor | KernelOperator) -> Eigenbasis:
        """The whole range. Cost: one symmetric eigendecomposition, about 9 d^3 operations.

        Raises:
            MemoryError: an operator too large to be written out, or a matrix to be decomposed; names the bytes.
        """
        if isinstance(kernel, LowRankKernel):
            order = kernel.values.argsort()
            return cls._above_rounding(kernel.values[order], kernel.vectors[:, order], len(kernel))
        if isinstance(kernel, KroneckerKernel):
            return cls.of(kernel.base).scaled(kernel.scale).per_output(kernel.n_outputs)
        dense = as_operator(kernel).to_dense()
        _check_fits(dense)
        values, vectors = torch.linalg.eigh((dense + dense.mT) / 2)
        return cls._above_rounding(values, vectors, len(dense))

    @classmethod
    def _above_rounding(cls, values: Tensor, vectors: Tensor, d: int) -> Eigenbasis:
        floor = values.abs().max() * d * torch.finfo(values.dtype).eps
        if values.min() < -1e3 * floor - 1e-6 * values.abs().max():
            received = f"eigenvalues down to {values.min():.3e} beside {values.max():.3e}"
            raise ValueError(complaint("kernel", "positive semidefinite", received))
        kept = values > floor
        if not kept.any():  # a kernel of zero is one null mode
            return cls(torch.zeros_like(values[:1]), vectors[:, :1].contiguous())
        return cls(values[kept].contiguous(), vectors[:, kept].contiguous())

    def scaled(self, factor: float) -> Eigenbasis:
        """Eigenbasis of factor * K."""
        if factor == 1.0:
            return self
        tail = self.tail
        if tail is not None:
            bulk = None if tail.bulk is None else replace(tail.bulk, values=factor * tail.bulk.values)
            tail = Tail(factor * tail.largest, factor * tail.trace, factor * tail.example, bulk)
        return Eigenbasis(factor * self.values, self.vectors, tail)

    def per_output(self, n_outputs: int) -> Eigenbasis:
        """Eigenbasis of K (x) I_c. Cost: n c^2 r numbers."""
        tail = self.tail
        if tail is not None:
            bulk = None
            if tail.bulk is not None:
                bulk = replace(
                    tail.bulk, counts=n_outputs * tail.bulk.counts, n_followed=n_outputs * tail.bulk.n_followed
                )
            tail = replace(tail, trace=n_outputs * tail.trace, bulk=bulk)
        vectors = torch.kron(self.vectors, torch.eye(n_outputs).to(self.vectors))
        return Eigenbasis(self.values.repeat_interleave(n_outputs), vectors, tail)

    @classmethod
    def leading(
        cls,
        kernel: KernelOperator,
        rank: int,
        n_outputs: int,
        dtype: torch.dtype | None = None,
        *,
        tolerance: float | None = None,
        progress: Progress = None,
    ) -> Eigenbasis:
        """The ``rank`` leading eigenpairs and bounds on the rest, from tr K and the kernel's diagonal blocks.

        Exactness: to the tolerance of ``leading_eigenpairs``, whose residuals the bounds do not include but for the
            largest eigenvalue left out.
        """
        found = leading_eigenpairs(kernel, rank, tolerance=tolerance, progress=progress)
        dtype = kernel.dtype if dtype is None else dtype
        values, vectors = found.values.flip(0).to(dtype), found.vectors.flip(1).to(dtype)
        if kernel.dtype != dtype:  # rounded to few digits, they are not orthonormal in many
            vectors = vectors @ _inverse_root(vectors.mT @ vectors)
        basis = cls._above_rounding(values, vectors, len(kernel))
        blocks = basis.left_out(kernel, n_outputs)
        example = largest_of_blocks(blocks)
        trace = float(blocks.diagonal(dim1=1, dim2=2).sum().clamp_min(0))
        largest = min(float(values[0] + found.residuals.max()), trace)
        rounding = len(kernel) * torch.finfo(kernel.dtype).eps * float(basis.values.sum())
        if len(kernel) == rank or trace <= rounding:
            return basis
        return replace(basis, tail=Tail(largest, trace, example))

    def left_out(self, kernel: KernelOperator, n_outputs: int) -> Tensor:
        """Diagonal blocks of K - U diag(l) U^T, [n, c, c]."""
        rows = self.vectors.view(-1, n_outputs, len(self.values))
        return kernel.diagonal_blocks(n_outputs).to(self.vectors.dtype) - (rows * self.values) @ rows.mT


def largest_of_blocks(blocks: Tensor) -> Tensor:
    """The largest eigenvalue of every block [n, c, c], not below 0."""
    return torch.linalg.eigvalsh((blocks + blocks.mT) / 2)[:, -1].clamp_min(0)


def _check_fits(kernel: Tensor) -> None:
    """Raises MemoryError, before it is begun, where the decomposition takes more than a quarter of the free memory."""
    needed, allowed = WORKING_MATRICES * kernel.nbytes, _memory.budget(None, kernel.device)
    if needed > allowed:
        remedy = "follow the leading eigenpairs instead: linearize(problem, rank=500), or linearization.truncate(500)"
        what = f"the memory for all eigenpairs of {len(kernel):,} rows, a quarter of what is free,"
        raise MemoryError(complaint(what, f"at least {needed:,} bytes", f"{allowed:,}", remedy))


def _inverse_root(gram: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gram)
    return (vectors * values.rsqrt()) @ vectors.mT
