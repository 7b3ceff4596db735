"""The first step at which a recorded curve is below a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sgdsde._words import listed


@dataclass(frozen=True)
class Crossing:
    """The first step at which a curve is below a number.

    Attributes:
        step: by interpolation between the recorded steps around it, a straight line in log loss; exact where every step
            is recorded.
        after, by: the last recorded step before that is not below, -1 where there is none, and the first that is.
    """

    step: int
    after: int
    by: int

    @property
    def is_exact(self) -> bool:
        """Whether no step was left out between the two."""
        return self.by == self.after + 1


def first_below(steps: np.ndarray, values: np.ndarray, level: float) -> Crossing | None:
    """Where recorded values [T] first fall below a level; None where none does.

    What a curve does between recorded steps is not seen: one that dips below and comes back counts from the first
    recorded step that is below.
    """
    below = np.flatnonzero(values < level)
    if not len(below):
        return None
    at = int(below[0])
    by = int(steps[at])
    if at == 0:
        return Crossing(by, -1, by)
    after = int(steps[at - 1])
    return Crossing(_between(after, by, float(values[at - 1]), float(values[at]), level), after, by)


def _between(after: int, by: int, high: float, low: float, level: float) -> int:
    """The first whole step of (after, by] where the line between the two losses is below the level."""
    if by == after + 1 or not math.isfinite(high):
        return by
    if min(high, low, level) > 0:
        high, low, level = math.log(high), math.log(low), math.log(level)
    share = (high - level) / (high - low)
    return min(after + math.floor(share * (by - after)) + 1, by)


def said(crossing: Crossing | None, last: int) -> str:
    """A crossing in words."""
    if crossing is None:
        return f"later than step {last}, where the record ends"
    return f"at step {crossing.step}"


def where_from(crossings: list[Crossing | None]) -> str:
    """The recorded steps that an answer was interpolated between, in words; empty where it was not."""
    gaps = [f"{c.after} and {c.by}" for c in crossings if c is not None and c.after >= 0 and not c.is_exact]
    return f"interpolated between recorded steps {listed(dict.fromkeys(gaps))}" if gaps else ""
