"""Orthonormal bases of symmetric matrices, and the second-moment map projected on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.variances import BulkState

TILE = 4096
"""Entries of every basis matrix that are worked on together: a tile of 64 fits into a processor's second cache."""

DEPENDENT = 1e-11
"""Singular value, relative to the largest, below which a direction of normalized columns is rounding."""


@dataclass(frozen=True, eq=False)
class Projection:
    """T on the span of an orthonormal basis V: T = k0 - k1 A1 + k2 A2 + k3 A3 with three matrices [N, N].

    Attributes:
        a1, a2, a3: V^T A V, symmetric positive semidefinite.
        basis: V, [N, size] packed. blocks: C^T V, [N, n c^2].
        columns: V^T of the normalized matrices that were given, [N, given].
        n_bulk: how many of the N are nodes of a bulk (``with_bulk``), the last ones.
    """

    a1: Tensor
    a2: Tensor
    a3: Tensor
    basis: Tensor
    blocks: Tensor
    columns: Tensor
    n_bulk: int = 0

    def __len__(self) -> int:
        return len(self.a1)

    def step_loss(self, coefficients: StepCoefficients) -> Tensor:
        """1 - T, [N, N], symmetric."""
        k1, k2, k3 = coefficients.numbers
        loss = k1 * self.a1 - k2 * self.a2 - k3 * self.a3
        return loss + coefficients.shrunk * torch.eye(len(self)).to(loss)

    def coordinates(self, packed: Tensor) -> Tensor:
        """V^T Y of packed matrices [size] or [k, size]."""
        return packed @ self.basis.mT

    def subspace(self, kept: Sequence[int]) -> Tensor:
        """Orthonormal basis Z [N, m] of the span of some of the columns: V Z spans what they alone would."""
        nodes = range(self.columns.shape[1] - self.n_bulk, self.columns.shape[1])
        return span(self.columns[:, [*kept, *nodes]])


def orthonormal(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """An orthonormal basis V [N, size] of the span of packed matrices, and V^T of them normalized, [N, given].

    The triangular factor comes from QR of tiles, so that nothing is squared; what rounding leaves of the orthogonality
    is removed by one Gram matrix. Cost: 3 N^2 r^2 operations.
    """
    stacked = torch.stack([matrix / matrix.norm() for matrix in matrices])
    _, values, right = torch.linalg.svd(_triangular_factor(stacked))
    kept = int((values > DEPENDENT * values[0]).sum())
    transform = right[:kept] / values[:kept, None]
    basis, gram, size = stacked[:kept], stacked.new_zeros(kept, kept), stacked.shape[1]
    for a in range(0, size, TILE):
        tile = transform @ stacked[:, a : a + TILE]
        gram.addmm_(tile, tile.mT)
        basis[:, a : a + TILE] = tile
    lower = torch.linalg.cholesky(gram)
    for a in range(0, size, TILE):
        basis[:, a : a + TILE] = torch.linalg.solve_triangular(lower, basis[:, a : a + TILE], upper=False)
    return basis, lower.mT @ (values[:kept, None] * right[:kept])


def project(space: PairSpace, matrices: Sequence[Tensor]) -> Projection:
    """The projection on the span of packed matrices. Cost: 5 N^2 r^2 operations, N/2 applications."""
    basis, columns = orthonormal(matrices)
    sums, products = _pair_weights(space)
    a1, a2 = (basis.new_zeros(len(basis), len(basis)) for _ in range(2))
    for a in range(0, space.size, TILE):
        tile = basis[:, a : a + TILE]
        a1.addmm_(tile * sums[a : a + TILE], tile.mT)
        a2.addmm_(tile * products[a : a + TILE], tile.mT)
    blocks = torch.stack([space.to_blocks(vector).flatten() for vector in basis])
    a3 = space.n_train * (blocks @ blocks.mT)
    return Projection(_symmetric(a1), _symmetric(a2), _symmetric(a3), basis, blocks, columns)


def with_bulk(projection: Projection, bulk: BulkState, n_outputs: int) -> Projection:
    """The same with a coordinate sqrt(counts) v / h for every node of a bulk, which are modes of their own in T.

    Their blocks are sqrt(counts) h rho_a I / d; they do not mix with the basis but through A3 = n C C^T.
    """
    h, n = bulk.drift, len(bulk.density)
    share = (bulk.counts.sqrt() * h)[:, None] * bulk.density / (n * n_outputs)
    own = share[:, :, None] * torch.eye(n_outputs).to(h).flatten()
    blocks = torch.cat([projection.blocks, own.flatten(1)])
    return Projection(
        torch.block_diag(projection.a1, (2 * h).diag()),
        torch.block_diag(projection.a2, h.square().diag()),
        _symmetric(n * (blocks @ blocks.mT)),
        torch.cat([projection.basis, projection.basis.new_zeros(len(h), projection.basis.shape[1])]),
        blocks,
        torch.block_diag(projection.columns, torch.eye(len(h)).to(h)),
        n_bulk=len(h),
    )


def span(columns: Tensor) -> Tensor:
    """Orthonormal basis [N, m] of the span of columns [N, any]."""
    vectors, values, _ = torch.linalg.svd(columns, full_matrices=False)
    return vectors[:, values > DEPENDENT * values[0]]


def pair_products(space: PairSpace) -> Tensor:
    """h_i h_j, packed without sqrt 2."""
    return _pair_weights(space)[1]


def _triangular_factor(stacked: Tensor) -> Tensor:
    """R [N, N] with R^T R = V V^T for the rows of V [N, size], from QR of tiles."""
    factor = stacked.new_zeros(0, len(stacked))
    for a in range(0, stacked.shape[1], TILE):
        of_tile = torch.linalg.qr(stacked[:, a : a + TILE].mT, mode="r").R
        factor = torch.linalg.qr(torch.cat([factor, of_tile]), mode="r").R
    return factor


def _pair_weights(space: PairSpace) -> tuple[Tensor, Tensor]:
    """h_i + h_j and h_i h_j, packed without sqrt 2."""
    sums, products, h = space.empty(), space.empty(), space.drift
    for (a, b, panel), (_, _, other) in zip(space.panels(sums), space.panels(products)):
        torch.add(h[:b, None], h[a:b], out=panel)
        torch.outer(h[:b], h[a:b], out=other)
    return sums, products


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2
