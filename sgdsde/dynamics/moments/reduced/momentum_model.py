"""The second-moment map with momentum on a few dozen triples of matrices, by Petrov-Galerkin.

With a buffer T is not self-adjoint, so the loss has a family of its own: resolvents of the start, (z - T)^-1 X_0, span
the space, to those of the loss, (z - T^T)^-1 L, the residual is made orthogonal. With R = (z - T)^-1 without C,

    X = R X_0 + R nu nu^T o (noise + q n C d),    (1 - q n C^T g C) d = C^T (what is left in ee without d),

g the response of ee to a unit of noise: symmetric, the same from the left and from the right, and positive definite
while z exceeds the spectral radius of T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.model import poles_down_to
from sgdsde.dynamics.moments.reduced.momentum_pairs import MomentumSpace, UncoupledResolvent
from sgdsde.dynamics.moments.reduced.momentum_system import MomentumSystem, SeenBasis
from sgdsde.dynamics.moments.reduced.projection import orthonormal, span
from sgdsde.dynamics.moments.reduced.resolvent import (
    EXTRAPOLATED,
    FINEST_SOLVE,
    CoupledBlocks,
    PastLimitError,
    extrapolated,
)
from sgdsde.dynamics.moments.reduced.sources import Sources


@dataclass
class MomentumModel:
    """Both families at one setting, grown until they are dense enough; the momentum's ``ReducedModel``.

    Attributes:
        start: X_0, [3, r, r]. mean: e and v of every mode, [r, 2, k].
    """

    space: MomentumSpace
    sources: Sources
    start: Tensor
    mean: Tensor
    batch_size: float
    n_steps: int
    applications: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if float(self.space.step.kept.max()) >= 1:
            raise PastLimitError("the mean does not decay")
        self.system: MomentumSystem

    def build(self, per_decade: float, tolerance: float) -> MomentumSystem:
        """The system on families with this many poles a decade, every solve to this relative tolerance."""
        solver = CoupledBlocks(self.space.pairs, self.space.coupling, tolerance)
        families = _Families(self, solver)
        families.grow(*self._poles(per_decade))
        right, right_columns = orthonormal(families.right)
        left, left_columns = orthonormal(families.left)
        self.system = self._projected(right, left, families)
        self._coarser = []
        for parity in (1, 3):
            kept = [i for i, pole in enumerate(families.poles) if pole is None or pole % 5 != parity]
            spans = span(right_columns[:, kept]), span(left_columns[:, kept])
            if len(kept) < len(families.poles):
                self._coarser.append(self.system.restricted(*spans))
        self.applications += solver.applications + (len(right) + len(left)) / 2
        return self.system

    def coarser(self) -> list[MomentumSystem]:
        """The system without every fifth pole, in two ways: the error with four fifths of them."""
        return self._coarser

    def _poles(self, per_decade: float) -> tuple[list[float], float]:
        """z - 1, as ``poles_down_to`` the slowest rate of the modes, or of the mean where it drives them."""
        kept = float(self.space.step.kept.max())
        slowest = 1 - kept if self.sources.follow_the_mean else (1 - kept) * (1 + kept)
        return poles_down_to(slowest, per_decade, self.n_steps)

    def constant_noise(self) -> Tensor | None:
        """What every step adds once the mean rests, [r, r], before nu nu^T; None without sources."""
        pairs, sources, packed = self.space.pairs, self.sources, None
        if sources.label_variance:
            packed = pairs.diagonal(pairs.drift) * (pairs.n_train * sources.label_variance / self.batch_size)
        if sources.fixed is not None and self.space.coupling:
            own = pairs.from_blocks(self.space.coupling * sources.example_blocks(sources.fixed, sources.fixed))
            packed = own if packed is None else packed + own
        return None if packed is None else pairs.unpack(packed)

    def noise_of_mean(self, z: float) -> Tensor | None:
        """sum_k z^-(k+1) of what the mean adds beside the immovable residual, [r, r]."""
        pairs, fixed = self.space.pairs, self.sources.fixed
        if fixed is None or not self.space.coupling:
            return None
        identity = z * torch.eye(2).to(self.mean)
        deviation = torch.linalg.solve(identity - self.space.step.matrices, self.mean)[:, 0]
        blocks = 2 * self.space.coupling * self.sources.example_blocks(pairs.vectors @ deviation, fixed)
        return pairs.unpack(pairs.from_blocks(blocks))

    def _projected(self, right: Tensor, left: Tensor, families: _Families) -> MomentumSystem:
        space, pairs, sources = self.space, self.space.pairs, self.sources
        moved, seen = [], []
        for packed in right:
            triple = space.unpack(packed)
            moved.append(left @ space.pack(space.uncoupled(triple)))
            seen.append(pairs.to_blocks(space.ee_of(packed)).flatten())
        noise = torch.stack([pairs.pack(space.noise_response(space.unpack(packed))) for packed in left])
        felt = torch.stack([pairs.to_blocks(packed).flatten() for packed in noise])
        transition = torch.stack(moved, 1) + space.coupling * felt @ torch.stack(seen).mT
        loss = pairs.diagonal(pairs.drift)
        force = None
        if sources.fixed is not None and space.coupling:
            n, c, _ = pairs.blocks_shape
            pulled = (felt.view(-1, n, c, c) @ sources.fixed.view(n, c, -1)).view(len(felt), n * c, -1)
            force = 2 * space.coupling * (pairs.vectors.mT @ pulled)
        resting = pairs.pack(families.stationary[0])
        basis = torch.cat([space.ee_of(right), resting[None]])
        return MomentumSystem(
            SeenBasis.of(pairs, basis),
            gram=left @ right.mT,
            transition=transition,
            start=left @ space.pack(families.start),
            loss=basis @ loss,
            force=force,
            matrices=space.step.matrices,
            mean=self.mean,
        )


class _Families:
    """Packed resolvents from the right and from the left, and the pole of each; None for what is never left out.

    Attributes:
        stationary: the second moment that constant sources maintain. start: X_0 without it.
    """

    def __init__(self, model: MomentumModel, solver: CoupledBlocks) -> None:
        self._model, self._space, self._solver = model, model.space, solver
        self._constant = model.constant_noise()
        self.start, self.stationary = model.start, torch.zeros_like(model.start)
        self._histories: tuple[list[tuple[float, Tensor]], list[tuple[float, Tensor]]] = ([], [])
        self.right: list[Tensor] = []
        self.left: list[Tensor] = []
        self.poles: list[int | None] = []

    def grow(self, ts: Sequence[float], shift: float) -> None:
        """All resolvents at the poles t; where the system is not positive definite below 0 they end.

        Raises:
            PastLimitError: the system is not positive definite at 0: T has an eigenvalue of 1 or more.
        """
        space, pairs = self._space, self._space.pairs
        if self._constant is not None:
            resolvent, loose = space.resolvent(1.0), self._solver.tolerance
            self._solver.tolerance = FINEST_SOLVE
            self.stationary = self._from_right(resolvent, None, self._constant, None)
            self._solver.tolerance = loose
            self.start = self.start - self.stationary
        ends = torch.zeros_like(self.start)
        ends[0] = pairs.drift.diag()
        self._keep(space.pack(self.start), space.pack(ends), None)
        poles: list[tuple[float, int | None]] = [*((t, i) for i, t in enumerate(ts)), (0.0, None)]
        for t, i in sorted(poles, key=lambda pole: -pole[0]):
            resolvent, at = space.resolvent(1 + t), math.log(t + shift)
            try:
                right = self._from_right(resolvent, self.start, self._model.noise_of_mean(1 + t), at)
                left = self._from_left(resolvent, at)
            except PastLimitError:
                if t >= 0:
                    raise
                break
            self._keep(space.pack(right), space.pack(left), i)

    def _keep(self, right: Tensor, left: Tensor, pole: int | None) -> None:
        self.right.append(right)
        self.left.append(left)
        self.poles.append(pole)

    def _from_right(
        self, resolvent: UncoupledResolvent, start: Tensor | None, noise: Tensor | None, at: float | None
    ) -> Tensor:
        found = torch.zeros_like(self.start) if start is None else resolvent.apply(start)
        if noise is not None:
            found = found + resolvent.response * noise
        return self._coupled(found, found[0], resolvent.gains, resolvent.response, at, self._histories[0])

    def _from_left(self, resolvent: UncoupledResolvent, at: float | None) -> Tensor:
        pairs = self._space.pairs
        diagonals = resolvent.apply_transposed(pairs.drift)
        ee, ev, vv = self._space.step.responses
        seen = (ee * diagonals[0] + 2 * ev * diagonals[1] + vv * diagonals[2]).diag()
        found = torch.stack([block.diag() for block in diagonals])
        return self._coupled(found, seen, resolvent.gains, resolvent.answer, at, self._histories[1])

    def _coupled(
        self,
        found: Tensor,
        seen: Tensor,
        gains: Tensor,
        response: Tensor,
        at: float | None,
        history: list[tuple[float, Tensor]],
    ) -> Tensor:
        """Adds what C brings: response o C d."""
        pairs, coupling = self._space.pairs, self._space.coupling
        if not coupling:
            return found
        quick = pairs.pack_gains(gains).float()
        right = pairs.single.to_blocks(pairs.pack(seen).float())
        guess = extrapolated(history[-EXTRAPOLATED:], at) if at is not None and len(history) >= 2 else None
        blocks = self._solver.solve(quick, right, guess)
        self._solver.applications += 1
        if at is not None:
            history.append((at, blocks))
        return found + response * (coupling * pairs.unpack(pairs.from_blocks(blocks.to(found))))
