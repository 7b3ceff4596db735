"""The state of a theory that follows SGD step by step, and the one loop that advances it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.sgd import StepPlan


class Advances(Protocol):
    """Anything that makes the update k -> k + 1."""

    def advance(self, k: int) -> None: ...


class MomentState(ABC):
    """The state of a theory at one step of SGD: enough for the law of the outputs and for the next step."""

    @abstractmethod
    def law(self, step: int, time: float) -> OutputLaw:
        """The law of all outputs now, at this step and sum of learning rates."""

    @abstractmethod
    def advance(self, k: int) -> None:
        """The update k -> k + 1."""


def march(
    state: Advances, record: Sequence[int], note: str, progress: Progress = None, *, first: int = 0
) -> Iterator[int]:
    """Advances a state from step ``first`` to the last of ``record`` (sorted) and stops at each of them on the way."""
    wanted, last = set(record), record[-1]
    ticks = ticker(progress, last - first, note)
    for k in range(first, last + 1):
        if k in wanted:
            yield k
        if k < last:
            state.advance(k)
            ticks.update(1)
    ticks.close()


def laws(
    state: MomentState, plan: StepPlan, record: Sequence[int], note: str, progress: Progress = None
) -> Iterator[OutputLaw]:
    """One law for each step of ``record``; ``note`` names the theory on the progress bar."""
    times = plan.times
    for k in march(state, record, note, progress):
        yield state.law(k, float(times[k]))
