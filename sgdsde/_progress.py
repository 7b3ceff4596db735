"""What a stage will cost, said before it starts, and progress bars on request; the library itself draws nothing.

Costs go to the logger ``sgdsde`` at level INFO. A stage that is expected to take long and has no bar says so at level
WARNING, which Python shows on stderr unless logging is set up otherwise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

from sgdsde._types import Progress

logger = logging.getLogger("sgdsde")

LONG = 5.0
"""Seconds from which on a stage without a bar says what it will cost."""


@dataclass(frozen=True)
class StageCost:
    """What one stage is expected to cost.

    Attributes:
        seconds: NaN where they depend on what the stage meets on its way. bytes: that it holds at most.
        at_least: whether the stage may take several times as long.
    """

    name: str
    seconds: float
    bytes: int
    at_least: bool = False

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.seconds)

    @property
    def duration(self) -> str:
        """The seconds in words, for a bar."""
        if not self.is_known:
            return "time not known beforehand"
        return f"{'at least ' if self.at_least else 'about '}{in_time(self.seconds)}"

    def sentence(self, run_seconds: float | None = None) -> str:
        """In words; ``run_seconds``: of one plain training run."""
        runs = ""
        if run_seconds and self.is_known:
            runs = f", as long as {self.seconds / run_seconds:.2g} plain training runs"
        return f"{self.name}: {self.duration}, {self.bytes / 2**20:.3g} MiB{runs}"


def in_time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 0.1:
        return f"{1000 * seconds:.1g} ms"
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class Units(Sequence[int]):
    """The units of work that a caller's wrapper is handed: 0, 1, ... with the cost of all of them, if it is known."""

    def __init__(self, total: int, cost: StageCost | None) -> None:
        self._units, self.cost = range(total), cost

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[int]:
        return iter(self._units)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[int]: ...
    def __getitem__(self, place: int | slice) -> int | Sequence[int]:
        return self._units[place]


class Ticker(Protocol):
    def update(self, n: int) -> Any: ...
    def close(self) -> Any: ...


class _Silent:
    def update(self, n: int) -> None: ...
    def close(self) -> None: ...


class _Wrapped:
    """A caller's wrapper of an iterable, advanced by one item for each update."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items = iter(items)

    def update(self, n: int) -> None:
        for _ in range(n):
            next(self._items, None)

    def close(self) -> None:
        for _ in self._items:
            pass


class _Bar:
    """A bar of tqdm that neither passes its end nor stops before it when the work has ended sooner."""

    def __init__(self, total: int, description: str) -> None:
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, desc=description, unit="step", dynamic_ncols=True)

    def update(self, n: int) -> None:
        self._bar.update(min(n, self._bar.total - self._bar.n))

    def close(self) -> None:
        self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()


@dataclass(frozen=True)
class _Announced:
    """A caller's progress for a stage whose cost has been said."""

    progress: Progress
    cost: StageCost

    def __call__(self, items: Iterable[int]) -> Iterable[int]:
        return self.progress(items) if callable(self.progress) else items


def covered(items: Iterable[int]) -> Iterable[int]:
    """The progress of a part whose whole has a bar and has said its cost."""
    return items


def wants_cost(progress: Progress) -> bool:
    """Whether anybody would see the cost of a stage, so that it is worth a measurement."""
    return progress is not covered and (bool(progress) or logger.isEnabledFor(logging.INFO))


def announced(cost: StageCost, progress: Progress, run_seconds: float | None = None) -> Progress:
    """The progress of a stage, for ``ticker``, once its cost has been said; nothing is said of a covered part."""
    if progress is covered:
        return progress
    if not progress and cost.seconds > LONG:
        logger.warning("%s; pass progress=True for a bar", cost.sentence(run_seconds))
    else:
        logger.info("%s", cost.sentence(run_seconds))
    return _Announced(progress, cost)


def announce_barless(cost: StageCost) -> None:
    """Say the cost of a stage that is one call of a library and has no bar."""
    logger.log(logging.WARNING if cost.seconds > LONG else logging.INFO, "%s, without a bar", cost.sentence())


def ticker(progress: Progress, total: int, what: str) -> Ticker:
    """A counter of ``total`` units of work: tqdm for True, the caller's wrapper for a callable, silence for None."""
    cost = progress.cost if isinstance(progress, _Announced) else None
    progress = progress.progress if isinstance(progress, _Announced) else progress
    if progress is None or progress is False:
        return _Silent()
    if callable(progress):
        return _Wrapped(progress(Units(total, cost)))
    return _Bar(total, what if cost is None else f"{what}, {cost.duration}")


class SharedBar:
    """One bar for several stages, each of which reports to its own part of it; the bar ends when it is closed.

    Args:
        progress: the caller's. weights: of the stages by name, in any unit.
    """

    UNITS = 1000

    def __init__(self, progress: Progress, weights: dict[str, float], what: str) -> None:
        self._ticks = ticker(progress, self.UNITS, what)
        self._weights, self._done = weights, 0.0

    def part(self, name: str) -> Progress:
        """The progress of one stage, to be used once."""
        share = self.UNITS * self._weights[name] / sum(self._weights.values())

        def stage(items: Iterable[int]) -> Iterator[int]:
            sized = list(items)
            for item in sized:
                yield item
                self._advance(share / len(sized))

        return stage

    def _advance(self, units: float) -> None:
        before = int(self._done)
        self._done = min(self._done + units, self.UNITS)
        self._ticks.update(int(self._done) - before)

    def close(self) -> None:
        self._ticks.update(self.UNITS - int(self._done))
        self._done = self.UNITS
        self._ticks.close()
