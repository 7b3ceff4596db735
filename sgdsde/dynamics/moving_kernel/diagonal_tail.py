"""The fluctuation in the many directions beyond the leading ones: their variances, without covariances.

Eigenvectors of the kernel whose eigenvalues lie within a factor of two make a group g of |g| weight directions. In
each, weights and buffer have one and the same covariance V_g [q, q], and every example sees the group through
B_gi = J_i P_g J_i^T [c, c], P_g the projection to it. With these, for a fresh batch,

    V_g' = G_g V_g G_g^T + nu nu^T Q_g,     G_g = G_0 + nu (x) [C_g, 0],     C_g = sum_i tr(E[G]_i B_gi) / (n |g|)
    Q_g = (phi/B) sum_i tr(B_gi R_i) / (n |g|) - (phi/B) C_g^2 V_g,aa

and the outputs of example i vary by sum_g V_g,aa B_gi more. The mean gradient, which falls off fast in them, is left
out of Q_g: it is what n examples share, 1/n of what each has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.feature_state import Expectations
from sgdsde.dynamics.output_law import Covariance
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.linearization import Linearization
from sgdsde.step import Step

OCTAVES = 12
"""Groups at most; the last one holds all smaller eigenvalues."""


@dataclass(frozen=True, eq=False)
class TailBlocks:
    """What the groups do to the outputs at the initial weights.

    Attributes:
        sizes: |g|, [G]. train: B_gi, [G, n, c, c]. test: the same of the test examples, or None.
    """

    sizes: Tensor
    train: Tensor
    test: Tensor | None

    @classmethod
    def of(cls, linearization: Linearization, basis: Eigenbasis, leading: int) -> TailBlocks | None:
        """Of all eigenvectors but the ``leading`` ones, None where nothing is left. Cost: 2 m c d^2 for a test set."""
        count = len(basis.values) - leading
        if count <= 0:
            return None
        values, vectors, c = (
            basis.values[:count].flip(0),
            basis.vectors[:, :count].flip(1),
            linearization.problem.n_outputs,
        )
        octave = (values[0] / values).log2().floor().clamp_max(OCTAVES - 1).long()
        _, sizes = octave.unique_consecutive(return_counts=True)
        groups = sizes.tolist()
        rows = vectors * values.sqrt()
        cross = linearization.dense_cross_kernel
        test = None if cross is None else _blocks(cross @ (vectors * values.rsqrt()), groups, c)
        return cls(sizes.to(values), _blocks(rows, groups, c), test)


def _blocks(rows: Tensor, groups: list[int], n_outputs: int) -> Tensor:
    """[G, n, c, c] from the features [n*c, sum of sizes] of all directions, group by group."""
    parts = rows.view(-1, n_outputs, rows.shape[1]).split(groups, dim=2)
    return torch.stack([part @ part.mT for part in parts])


class DiagonalTail:
    """V_g, step by step.

    Attributes:
        scale: by how much the trace of the kernel beyond the leading directions has grown since the start.
    """

    def __init__(self, blocks: TailBlocks, parts: int) -> None:
        self._blocks, self.scale = blocks, 1.0
        self.variances = blocks.train.new_zeros(len(blocks.sizes), parts, parts)

    def rescale(self, trace: float) -> None:
        """To this trace of the kernel beyond the leading directions."""
        start = float(self._blocks.train.diagonal(dim1=2, dim2=3).sum())
        self.scale = max(trace, 0.0) / start

    @property
    def blocks(self) -> Tensor:
        """Covariance that the tail gives to the training outputs of every example, [n, c, c]."""
        return torch.tensordot(self.variances[:, 0, 0] * self.scale, self._blocks.train, 1)

    @property
    def test_blocks(self) -> Tensor | None:
        test = self._blocks.test
        return None if test is None else torch.tensordot(self.variances[:, 0, 0] * self.scale, test, 1)

    def joined(self, train: Covariance, test: Covariance | None) -> tuple[Covariance, Covariance | None]:
        """Covariances of training and test outputs with the tail's part."""
        found, test_blocks = TailedCovariance(train.factor, train.core, train.gram, self.blocks), self.test_blocks
        if test is None or test_blocks is None:
            return found, test
        return found, TailedCovariance(test.factor, test.core, test.gram, test_blocks)

    def advance(self, step: Step, seen: Expectations, factor: float, label_variance: float = 0.0) -> None:
        """The step k -> k + 1 of a batch with phi/B = ``factor``; freshly drawn targets add ``label_variance`` K."""
        n, moments = len(self._blocks.train[0]), seen.moments
        curvature, noise = (
            torch.tensordot(self._blocks.train, matrix, 3) * (self.scale / n) / self._blocks.sizes
            for matrix in (moments.hessian, moments.gradient_moment)
        )
        gain = self.variances.new_tensor(step.gain)
        moves = self.variances.new_tensor(step.transition).expand(len(curvature), -1, -1).clone()
        moves[:, :, 0] += gain * curvature[:, None]
        source = factor * (noise - curvature.square() * self.variances[:, 0, 0])
        if label_variance:
            traces = self._blocks.train.diagonal(dim1=2, dim2=3).sum((1, 2)) / self._blocks.sizes
            source = source + label_variance * self.scale * traces
        moved = moves @ self.variances @ moves.mT + source[:, None, None] * torch.outer(gain, gain)
        self.variances = (moved + moved.mT) / 2


@dataclass(frozen=True, eq=False)
class TailedCovariance(Covariance):
    """F C F^T plus a block for every example, [n, c, c], that is independent of the others'."""

    extra: Tensor

    @property
    def trace(self) -> Tensor:
        return super().trace + self.extra.diagonal(dim1=1, dim2=2).sum()

    @property
    def squared_norm(self) -> Tensor:
        crossed = (super().blocks(self.extra.shape[1]) * self.extra).sum()
        return super().squared_norm + 2 * crossed + self.extra.square().sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        by_example = vector.view(len(self.extra), -1)
        return super().quadratic(vector) + torch.einsum("ia,iab,ib->", by_example, self.extra, by_example)

    def diagonal(self) -> Tensor:
        return super().diagonal() + self.extra.diagonal(dim1=1, dim2=2).flatten()

    def blocks(self, n_outputs: int) -> Tensor:
        return super().blocks(n_outputs) + self.extra

    def to_dense(self) -> Tensor:
        return super().to_dense() + torch.block_diag(*self.extra)
