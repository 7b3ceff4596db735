"""The projected second moment with momentum as a small linear system, over any number of equal steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.dynamics.moments.reduced.projection import pair_products
from sgdsde.dynamics.moments.reduced.repeated_map import after
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.reduced.system import Segment

INDEPENDENT = 1e-9
"""Singular value of the Gram matrix of both families, relative to the largest, below which a direction is dropped."""


@dataclass(frozen=True, eq=False)
class SeenBasis:
    """The blocks ee of a basis, packed [N, size], and a2, their inner products in the moments of the residual."""

    basis: Tensor
    a2: Tensor

    @classmethod
    def of(cls, pairs: PairSpace, basis: Tensor) -> SeenBasis:
        return cls(basis, (basis * pair_products(pairs)) @ basis.mT)

    def coordinates(self, packed: Tensor) -> Tensor:
        """Inner products with packed matrices [size] or [k, size]."""
        return packed @ self.basis.mT


@dataclass(frozen=True, eq=False)
class MomentumMap:
    """y' = A y + F (e, v) and (e, v)' = G (e, v) over some steps: A [N, N], F [N, r, 2, k], G [r, 2, 2]."""

    transition: Tensor
    force: Tensor | None
    matrices: Tensor

    def __call__(self, y: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """y [N] and the mean [r, 2, k] after these steps."""
        moved = self.transition @ y
        if self.force is not None:
            moved = moved + torch.tensordot(self.force, mean, 3)
        return moved, self.matrices @ mean

    def twice(self) -> MomentumMap:
        """This map after itself."""
        a, force = self.transition, self.force
        if force is not None:
            force = torch.tensordot(a, force, 1) + self.matrices.mT @ force
        return MomentumMap(a @ a, force, self.matrices @ self.matrices)


@dataclass(frozen=True, eq=False)
class MomentumSystem:
    """W^T V y' = W^T T V y + W^T (sources), with the mean beside it, around a stationary second moment.

    Attributes:
        projection: V and, last, the stationary moment. gram: W^T V, [M, N]. transition: W^T T V.
        start: W^T X_0 around the stationary moment, [M]. loss: V^T L and that of the stationary moment, [N + 1].
        force: [M, r, k], of the mean residual; None without an immovable residual.
        matrices: G, [r, 2, 2]. mean: [r, 2, k].
    """

    projection: SeenBasis
    gram: Tensor
    transition: Tensor
    start: Tensor
    loss: Tensor
    force: Tensor | None
    matrices: Tensor
    mean: Tensor

    def restricted(self, right: Tensor, left: Tensor) -> MomentumSystem:
        """The same on the spans of right [N, N'] and left [M, M']: its states have no matrices of their own."""
        return replace(
            self,
            gram=left.mT @ self.gram @ right,
            transition=left.mT @ self.transition @ right,
            start=left.mT @ self.start,
            loss=torch.cat([right.mT @ self.loss[:-1], self.loss[-1:]]),
            force=None if self.force is None else torch.tensordot(left.mT, self.force, 1),
        )

    @cached_property
    def _turns(self) -> tuple[Tensor, Tensor]:
        """P [K, M] and Q [N, K] with P W^T V Q = 1."""
        left, values, right = torch.linalg.svd(self.gram, full_matrices=False)
        kept = values > INDEPENDENT * values[0]
        root = values[kept].sqrt()
        p, q = (left[:, kept] / root).mT, right[kept].mT / root
        return _stable_part(p @ self.transition @ q) @ p, q

    @cached_property
    def step(self) -> MomentumMap:
        """One step in the coordinates of ``_turns``."""
        p, q = self._turns
        force = None
        if self.force is not None:
            force = torch.tensordot(p, self.force, 1)
            force = torch.stack([force, torch.zeros_like(force)], 2)
        return MomentumMap(p @ self.transition @ q, force, self.matrices)

    def run(self, segments: Sequence[Segment], record: Sequence[int]) -> tuple[Tensor, Tensor]:
        """y [T, N + 1] and the mean residual [T, r, k] at the steps ``record`` (sorted) of the one segment."""
        p, q = self._turns
        found = [(y, mean[:, 0]) for y, mean in after(self.step, p @ self.start, self.mean, record)]
        states = torch.stack([y for y, _ in found]) @ q.mT
        return torch.nn.functional.pad(states, (0, 1), value=1.0), torch.stack([mean for _, mean in found])


def _stable_part(transition: Tensor) -> Tensor:
    """The spectral projection of A [N, N] on what does not grow.

    Oblique projections of a stable map can have a growing direction where both families are nearly orthogonal; the
    start and the loss hardly see it.
    """
    values, vectors = torch.linalg.eig(transition)
    kept = (values.abs() < 1).to(vectors.dtype)
    return torch.linalg.solve(vectors, vectors * kept, left=False).real


@dataclass(frozen=True, eq=False)
class MomentumStart:
    """What the start needs beside the residual, of moving modes: covariances eu and uu [r, r], mean buffer u [r, k]."""

    eu: Tensor
    uu: Tensor
    mean: Tensor

    @classmethod
    def of(cls, mean: Tensor, eu: Tensor, uu: Tensor, moving: Tensor) -> MomentumStart:
        """From those of all modes."""
        return cls(eu[moving][:, moving], uu[moving][:, moving], mean[moving])

    def scaled(self, sources: Sources, lr: float) -> tuple[Tensor, Tensor]:
        """X_0 [3, r, r] and the mean [r, 2, k], the buffer in units of a step."""
        e, v = sources.mean, lr * self.mean
        root = sources.space.drift.rsqrt()
        ev = lr * self.eu + e @ v.mT
        vv = lr**2 * self.uu + v @ v.mT
        ee = sources.space.unpack(sources.moment)
        return torch.stack([ee, *(root[:, None] * part * root for part in (ev, vv))]), torch.stack([e, v], 1)


def mean_with_buffer(matrices: Tensor, mean: Tensor, record: Sequence[int]) -> Tensor:
    """Mean residuals [T, r, k] at sorted steps from (e, v) [r, 2, k]."""
    nothing = matrices.new_zeros(0, 0)
    step = MomentumMap(nothing, None, matrices)
    return torch.stack([at[:, 0] for _, at in after(step, matrices.new_zeros(0), mean, record)])
