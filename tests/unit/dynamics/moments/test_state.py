"""The loop that every step-by-step theory runs in, on a state that only counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import torch

import sgdsde
from sgdsde.dynamics import OutputLaw
from sgdsde.dynamics.moments.state import MomentState, laws, march


class Counter(MomentState):
    """Writes down what it is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def law(self, step: int, time: float) -> OutputLaw:
        self.calls.append(("law", step))
        return OutputLaw(step, time, torch.tensor([[float(len(self.calls))]]))

    def advance(self, k: int) -> None:
        self.calls.append(("advance", k))


PLAN = sgdsde.SGD(lambda k: 0.5 / (1 + k), 1).plan(3, 4)


def test_the_law_at_a_step_is_taken_after_its_updates_and_before_the_next() -> None:
    state = Counter()
    found = list(laws(state, PLAN, [0, 2, 3], "counting"))
    expected = [("law", 0), ("advance", 0), ("advance", 1), ("law", 2), ("advance", 2), ("law", 3)]
    assert state.calls == expected
    assert [law.step for law in found] == [0, 2, 3]
    assert [law.time for law in found] == pytest.approx([0.0, 0.5 + 0.25, 0.5 + 0.25 + 0.5 / 3], rel=1e-15)


def test_nothing_is_done_beyond_the_last_recorded_step_nor_before_a_law_is_asked_for() -> None:
    state = Counter()
    found = laws(state, PLAN, [1, 4], "counting")
    assert state.calls == []
    assert next(found).step == 1
    assert state.calls == [("advance", 0), ("law", 1)]
    assert [law.step for law in found] == [4]
    assert state.calls[-2:] == [("advance", 3), ("law", 4)]


def test_step_zero_alone_advances_nothing() -> None:
    state = Counter()
    assert [law.step for law in laws(state, PLAN, [0], "counting")] == [0]
    assert state.calls == [("law", 0)]


def test_progress_counts_the_updates() -> None:
    state, begun = Counter(), []

    def wrapper(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            begun.append((item, len(state.calls)))
            yield item

    assert list(march(state, [0, 3], "counting", wrapper)) == [0, 3]
    assert begun == [(0, 1), (1, 2), (2, 3)], "one unit of progress after each update"
