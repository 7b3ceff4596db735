"""The fluctuation in the many directions beyond the leading ones: their variances, without covariances.

Eigenvectors of the kernel whose eigenvalues lie within a factor of two make a group g of |g| weight directions. In
each, weights and buffer have one and the same covariance V_g [q, q], and every example sees the group through
B_gi = J_i P_g J_i^T [c, c], P_g the projection to it. With these, for a fresh batch,

    V_g' = G_g V_g G_g^T + nu nu^T Q_g,     G_g = G_0 + nu (x) [C_g, 0],     C_g = sum_i tr(E[G]_i B_gi) / (n |g|)
    Q_g = (phi/B) sum_i tr(B_gi R_i) / (n |g|) - (phi/B) C_g^2 V_g,aa

and the outputs of example i vary by sum_g V_g,aa B_gi more. The mean gradient, which falls off fast in them, is left
out of Q_g: it is what n examples share, 1/n of what each has. Of a large kernel, the directions that were not found are
one group more, a sketch of random ones (``initial_directions``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._streams import torch_stream
from sgdsde._types import Params
from sgdsde.dynamics.moments.feature_state import Expectations
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace
from sgdsde.dynamics.output_law import Covariance
from sgdsde.kernel import as_operator
from sgdsde.kernel.krylov import times
from sgdsde.linearization import Linearization
from sgdsde.step import Step

OCTAVES = 12
"""Groups at most; the last one holds all smaller eigenvalues."""

TINY = 1e-12
"""Share of its first trace that a tail keeps where the leading directions hold everything."""


@dataclass(frozen=True, eq=False)
class TailBlocks:
    """What the groups do to the outputs at the initial weights.

    Attributes:
        dual: cotangents of each group's directions, group by group, [n*c, sum of columns]; J^T maps to the weights.
        columns: how many each group has, [G]. sizes: |g|, [G]; the sketch has a size of its own.
        train: B_gi, [G, n, c, c]. test: the same of the test examples, or None.
    """

    dual: Tensor
    columns: Tensor
    sizes: Tensor
    train: Tensor
    test: Tensor | None

    @classmethod
    def of(cls, linearization: Linearization, found: InitialDirections, leading: int) -> TailBlocks | None:
        """Of all but the ``leading`` directions, None where nothing is left. Cost: 2 m c d for each with a test set."""
        values = found.values[leading:]
        dual, features, groups, sizes = found.dual[:, leading:], found.features[:, leading:], [], []
        if len(values):
            octave = (values[0] / values).log2().floor().clamp(0, OCTAVES - 1).long()
            groups = octave.unique_consecutive(return_counts=True)[1].tolist()
            sizes = [float(count) for count in groups]
        if found.rest is not None:
            dual, features = torch.cat([dual, found.rest.dual], 1), torch.cat([features, found.rest.features], 1)
            groups, sizes = [*groups, found.rest.dual.shape[1]], [*sizes, found.rest.size]
        if not groups:
            return None
        c, cross = linearization.problem.n_outputs, linearization.cross_kernel
        test = None if cross is None else _blocks(times(as_operator(cross), dual), groups, c)
        columns = torch.tensor(groups, device=dual.device)
        return cls(dual, columns, dual.new_tensor(sizes), _blocks(features, groups, c), test)


def _blocks(rows: Tensor, groups: list[int], n_outputs: int) -> Tensor:
    """[G, n, c, c] from the features [n*c, sum of columns] of all directions, group by group."""
    parts = rows.view(-1, n_outputs, rows.shape[1]).split(groups, dim=2)
    return torch.stack([part @ part.mT for part in parts])


@dataclass(frozen=True, eq=False)
class DrawnTail:
    """Draws of the deviation of the weights, [P, p], and the linear moves of the training outputs, [P, n*c]."""

    rows: Tensor
    moves: Tensor


class DiagonalTail:
    """V_g, step by step.

    Attributes:
        scale: by how much the trace of the kernel beyond the leading directions has grown since the start.
    """

    def __init__(self, blocks: TailBlocks, parts: int) -> None:
        self._blocks, self.scale = blocks, 1.0
        self._drawn: DrawnTail | None = None
        self.variances = blocks.train.new_zeros(len(blocks.sizes), parts, parts)

    @property
    def blocks(self) -> Tensor:
        """Covariance that the tail gives to the training outputs of every example, [n, c, c]."""
        return torch.tensordot(self.variances[:, 0, 0] * self.scale, self._blocks.train, 1)

    @property
    def test_blocks(self) -> Tensor | None:
        test = self._blocks.test
        return None if test is None else torch.tensordot(self.variances[:, 0, 0] * self.scale, test, 1)

    def draws(self, count: int, directions: WeightSubspace, params: Params) -> DrawnTail:
        """Deviations of the weights outside of these directions, along J at these parameters.

        The same at every call but for variances and J, so that ``turn`` can compare them.
        """
        std = (self.variances[:, 0, 0].clamp_min(0) / self.scale).sqrt().repeat_interleave(self._blocks.columns)
        stream = torch_stream(0, "noise feedback of the tail", 0, torch.device("cpu"))
        normal = torch.randn(count, len(std), generator=stream, dtype=torch.float64).to(std)
        rows = directions.outside(params, (normal * std) @ self._blocks.dual.mT)
        moves = directions.features_along(params, rows, with_test=False).train.mT
        self._drawn = DrawnTail(rows, moves)
        return self._drawn

    def turn(self, trace: float, directions: WeightSubspace, params: Params) -> None:
        """Goes over to the tail of J at these parameters, where its kernel has this trace.

        What is drawn stays where it is while J turns: the variances fall by as much as J now sees less of the last
        draws than its trace says.
        """
        start = float(self._blocks.train.diagonal(dim1=2, dim2=3).sum())
        before, self.scale = self.scale, max(trace, TINY * start) / start
        old = 0.0 if self._drawn is None else float(self._drawn.moves.square().sum())
        if self._drawn is not None and old > 0:
            rows = directions.without(self._drawn.rows)
            new = float(directions.features_along(params, rows, with_test=False).train.square().sum())
            self.variances = self.variances * min(1.0, new / old * before / self.scale)

    def joined(self, train: Covariance, test: Covariance | None) -> tuple[Covariance, Covariance | None]:
        """Covariances of training and test outputs with the tail's part."""
        found, test_blocks = TailedCovariance(train.factor, train.core, train.gram, self.blocks), self.test_blocks
        if test is None or test_blocks is None:
            return found, test
        return found, TailedCovariance(test.factor, test.core, test.gram, test_blocks)

    def advance(self, step: Step, seen: Expectations, factor: float, label_variance: float) -> None:
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
