"""Krylov spaces of a kernel that is known by its products: the space of a vector, quadratures of its spectrum."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.kernel.operator import KernelOperator

DEPENDENT = 1e-10
"""Length of a new direction, relative to the product that it comes from, below which it is rounding."""


def krylov_basis(kernel: KernelOperator, starts: Tensor, n_steps: int, *, outside: Tensor | None = None) -> Tensor:
    """An orthonormal basis [d, m] of the span of A^j S, j < n_steps, for starts S [d, k] and A = (I - P) K (I - P).

    Args:
        outside: orthonormal columns [d, r]; P is the projection on them.
    Cost: n_steps - 1 products with at most k vectors, 4 d m (m + r) operations for the orthogonality.
    """
    basis = starts[:, :0] if outside is None else outside
    first = basis.shape[1]
    block = _orthonormal_part(starts, basis)
    for _ in range(n_steps - 1):
        basis = torch.cat([basis, block], 1)
        if not block.shape[1]:
            break
        block = _orthonormal_part(times(kernel, block), basis)
    return torch.cat([basis, block], 1)[:, first:]


def spectral_nodes(
    kernel: KernelOperator, starts: Tensor, n_steps: int, *, outside: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gauss quadratures of v^T f(A) v for every column v of the starts [d, k]: nodes and weights, [k, m] each.

    One Lanczos process a column, all of them in one product a step, with full reorthogonalization. Where a start lies
    in an invariant subspace, the nodes beyond it have weight zero. A as in ``krylov_basis``.
    """
    n_steps = min(n_steps, len(starts))
    starts = _without(starts, outside)
    lengths = starts.norm(dim=0)
    vectors = [_scaled(starts, lengths)]
    matrices = starts.new_zeros(starts.shape[1], n_steps, n_steps)
    for j in range(n_steps):
        moved = _without(times(kernel, vectors[-1]), outside)
        size = moved.norm(dim=0)
        matrices[:, j, j] = (moved * vectors[-1]).sum(0)
        stacked = torch.stack(vectors)
        for _ in range(2):
            moved = moved - torch.einsum("jdk,jk->dk", stacked, torch.einsum("jdk,dk->jk", stacked, moved))
        if j + 1 < n_steps:
            left = moved.norm(dim=0)
            left = torch.where(left > DEPENDENT * size, left, 0.0)
            matrices[:, j, j + 1] = matrices[:, j + 1, j] = left
            vectors.append(_scaled(moved, left))
    nodes, turned = torch.linalg.eigh(matrices)
    return nodes, (lengths[:, None] * turned[:, 0]).square()


def random_signs(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Independent -1 and 1, [rows, columns]: v^T f(A) v is then tr f(A) on average."""
    return torch.randint(0, 2, (rows, columns), generator=generator, device=generator.device) * 2 - 1


def times(kernel: KernelOperator, vectors: Tensor) -> Tensor:
    """K V in the vectors' dtype; multiplied in the kernel's."""
    return (kernel @ vectors.to(kernel.dtype)).to(vectors.dtype)


def _scaled(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Of length one, or zero."""
    return torch.where(lengths > 0, vectors / torch.where(lengths > 0, lengths, 1.0), 0.0)


def _without(vectors: Tensor, outside: Tensor | None) -> Tensor:
    if outside is None or not outside.shape[1]:
        return vectors
    vectors = vectors - outside @ (outside.mT @ vectors)
    return vectors - outside @ (outside.mT @ vectors)


def _orthonormal_part(vectors: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns that together with the basis span the vectors."""
    scale = float(vectors.norm())
    left, sizes, _ = torch.linalg.svd(_without(vectors, basis), full_matrices=False)
    kept = left[:, sizes > DEPENDENT * scale]
    return torch.linalg.qr(_without(kept, basis)).Q if kept.shape[1] else kept
