"""Building of a reduced model: which resolvents, of what, how densely, and how far off the result is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import project
from sgdsde.dynamics.moments.reduced.resolvent import Resolvent, family
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, Segment

FASTEST = 0.5
"""Largest t: faster modes are those of the first exact steps."""

SLOWEST = 0.1
"""Smallest distance of a pole to the slowest rate, in units of it: so far into the decay errors stay relative."""

SEEN = 0.3
"""Smallest distance as well, in units of one over the number of steps."""

BELOW_SLOWEST = 0.98
"""The slowest rate of T in units of the slowest uncoupled one, from above; where noise couples more, poles retreat."""


@dataclass
class ReducedModel:
    """Families of resolvents of the start and of the loss at some settings, grown until they are dense enough.

    Attributes:
        snapshots: steps of the settings themselves whose second moments join. companions: packed matrices that join.
    """

    sources: Sources
    settings: Sequence[Segment]
    n_steps: int
    functionals: Sequence[Tensor] = ()
    snapshots: Sequence[int] = ()
    companions: Sequence[Tensor] = ()
    applications: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        space = self.sources.space
        self._functionals = [space.diagonal(space.drift), *self.functionals]
        self._columns: list[Tensor] = []
        self._left_out: tuple[list[int], list[int]] = ([], [])
        self.system: ReducedSystem

    def build(self, per_decade: float, tolerance: float) -> ReducedSystem:
        """The system on families with this many poles a decade, every solve to this relative tolerance."""
        self._columns, self._left_out = [], ([], [])
        for setting in self.settings:
            self._add_setting(setting, per_decade, tolerance)
        for matrix in self.companions:
            self._keep(matrix.clone(), None)
        self.system = ReducedSystem.of(self.sources, project(self.sources.space, self._columns))
        return self.system

    def coarser(self) -> list[ReducedSystem]:
        """The system without every fifth pole, in two ways: the error with four fifths of them."""
        return [self.system.restricted(span) for span in self.coarser_spans()]

    def coarser_spans(self) -> list[Tensor]:
        """Orthonormal bases [N, N'] of what the columns without every fifth pole span, in two ways."""
        everything, projection = range(len(self._columns)), self.system.projection
        return [projection.subspace([i for i in everything if i not in set(out)]) for out in self._left_out if out]

    def _add_setting(self, setting: Segment, per_decade: float, tolerance: float) -> None:
        coefficients, sources = setting.coefficients, self.sources
        resolvent = Resolvent(sources.space, coefficients, tolerance)
        stationary: Tensor | None = None
        if sources.is_constant:
            packed, injected = sources.constant(coefficients, setting.batch_size)
            stationary, _ = resolvent.solve(packed, 0.0, injected=injected)
            self._keep(stationary, None)
        for matrix in (sources.moment, *self._functionals):
            self._keep(matrix, None)
        ts, shift = self._poles(coefficients, per_decade)
        found = family(resolvent, ts, lambda t: sources.transformed(coefficients, t, stationary), shift=shift)
        for packed in self._functionals:
            for i, matrix in enumerate(_family_of(resolvent, ts, packed, shift)):
                self._keep(matrix, i)
        for i, matrix in enumerate(found):
            self._keep(matrix, i)
        self._add_snapshots(resolvent, setting.batch_size)
        self.applications += resolvent.applications

    def _keep(self, matrix: Tensor, pole: int | None) -> None:
        if not bool(matrix.any()):  # sources that a batch of the whole set does not have
            return
        if pole is not None and pole % 5 in (1, 3):
            self._left_out[pole % 5 // 2].append(len(self._columns))
        self._columns.append(matrix)

    def _poles(self, coefficients: StepCoefficients, per_decade: float) -> tuple[list[float], float]:
        """As ``poles_down_to`` the slowest rate of the modes, or of the mean where it drives them."""
        space, sources = self.sources.space, self.sources
        slowest = float(space.diagonal_of(space.elementwise(coefficients)).min())
        if sources.follow_the_mean:
            slowest = min(slowest, coefficients.lr * (float(space.drift.min()) + coefficients.decay))
        return poles_down_to(slowest, per_decade, self.n_steps)

    def _add_snapshots(self, resolvent: Resolvent, batch_size: float) -> None:
        """The second moments of the first steps themselves."""
        sources, coefficients = self.sources, resolvent.coefficients
        space, state, mean = sources.space, sources.moment, sources.mean
        kept, rates = 1 - space.elementwise(coefficients), coefficients.lr * (space.drift + coefficients.decay)[:, None]
        for k in range(1, max(self.snapshots, default=0) + 1):
            packed, injected = sources.at(coefficients, batch_size, mean)
            blocks = resolvent.coupling * space.to_blocks(state)
            blocks = blocks if injected is None else blocks + injected
            state = kept * state + packed + space.from_blocks(blocks)
            resting = sources.resting_mean(coefficients)
            mean = resting + (1 - rates) * (mean - resting)
            self.applications += 1
            if k in self.snapshots:
                self._keep(state, None)


def poles_down_to(slowest: float, per_decade: float, n_steps: int) -> tuple[list[float], float]:
    """t_j = t'_j - mu, t'_j equally spaced in the logarithm; and mu, a bound on the slowest rate of the system.

    From the slowest rate without coupling; over few steps what decays more slowly does not matter.
    """
    shift = BELOW_SLOWEST * slowest
    lowest = min(max(SLOWEST * shift, SEEN / n_steps), FASTEST / 4)
    count = math.ceil(per_decade * math.log10(FASTEST / lowest)) + 1
    return [FASTEST * (lowest / FASTEST) ** (k / (count - 1)) - shift for k in range(count)], shift


def _family_of(resolvent: Resolvent, ts: Sequence[float], packed: Tensor, shift: float) -> list[Tensor]:
    """Resolvents of one matrix."""
    return family(resolvent, ts, lambda t: (packed, None), shift=shift)
