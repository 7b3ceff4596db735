"""The parts of the limit along a path: which paths hold, how many are walked, which examples stand for all, what it
costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.stability import along_path, max_lr, max_lr_along_path
from tests.live_memory import live_peak
from tests.problems import LARGER, seeded_module

STEPS = 160


def problem_of(n: int, width: int, *, dtype: torch.dtype = torch.float64, n_outputs: int = 1) -> sgdsde.Problem:
    model = seeded_module(
        lambda: nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, n_outputs)), 5
    ).to(dtype)
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(n, 6, generator=generator), torch.randn(n, n_outputs, generator=generator)
    return sgdsde.Problem(model, x.to(dtype), y.to(dtype), loss=nn.MSELoss())


def trial(n_paths: int = 5) -> along_path._Trial:
    class Ticks:
        def update(self, n: int) -> None: ...
        def close(self) -> None: ...

    return along_path._Trial(problem_of(4, 2), sgdsde.SGD(1.0, 2), STEPS, n_paths, 0, 0.5, Ticks())


@pytest.mark.parametrize("n_paths", [1, 2, 3, 4, 5])
def test_most_of_the_paths_decide_and_no_more_are_walked_than_that_takes(n_paths: int, monkeypatch: Any) -> None:
    """Every pattern of paths that hold and do not; of an even number half is not most."""
    for pattern in itertools.product((True, False), repeat=n_paths):
        walked: list[int] = []

        def holds(self: Any, lr: float, run: int, pattern: Any = pattern, walked: Any = walked) -> bool:
            walked.append(run)
            return pattern[run]

        monkeypatch.setattr(along_path._Trial, "_path_holds", holds)
        assert trial(n_paths).holds(0.1) == (2 * sum(pattern) > n_paths)
        assert walked == list(range(len(walked)))
        decided = [k for k in range(n_paths + 1) if 2 * max(sum(pattern[:k]), k - sum(pattern[:k])) > n_paths]
        assert len(walked) == (decided[0] if decided else n_paths)


def walk(monkeypatch: Any, losses: dict[int, float], contracting: Iterable[int]) -> bool:
    """Whether a path holds whose loss is 1 but at these steps, and whose kernel is below its limit at some steps."""
    monkeypatch.setattr(along_path, "sampled_path", lambda problem, sgd, record, **words: iter(record))
    monkeypatch.setattr(along_path._Trial, "_loss", lambda self, step: losses.get(step, 1.0))
    monkeypatch.setattr(along_path._Trial, "_contracts", lambda self, step, lr: step in contracting)
    return trial()._path_holds(0.1, 0)


def test_a_path_holds_where_its_kernel_does_at_the_middle_at_three_quarters_or_at_the_end(monkeypatch: Any) -> None:
    places = range(0, STEPS + 1, STEPS // along_path.RECORDED)
    assert [step for step in places if walk(monkeypatch, {}, [step])] == [STEPS // 2, 3 * STEPS // 4, STEPS]
    assert walk(monkeypatch, {}, places)
    assert not walk(monkeypatch, {}, [])


def test_a_path_holds_where_the_median_of_its_last_quarter_is_no_higher_than_its_start(monkeypatch: Any) -> None:
    """With any of its records after the start higher than that, or one of them not finite."""
    spacing = STEPS // along_path.RECORDED
    last = range(3 * STEPS // 4 + spacing, STEPS + 1, spacing)
    for n_higher in range(len(last) + 1):
        for higher in itertools.combinations(last, n_higher):
            lower = dict.fromkeys(last, 0.5) | dict.fromkeys(higher, 2.0)
            assert walk(monkeypatch, lower, [STEPS]) == (n_higher < len(last) / 2), higher
    first = dict.fromkeys(range(spacing, last[0], spacing), 2.0)
    assert walk(monkeypatch, first, [STEPS])
    assert walk(monkeypatch, dict.fromkeys(range(STEPS + 1), 1.0), [STEPS]), "as high as the start"
    for step in (0, spacing, STEPS):
        for value in (math.inf, math.nan):
            assert not walk(monkeypatch, {step: value}, [STEPS])


@pytest.mark.parametrize(
    ("outputs", "chosen"), [(6, [0, 12, 23]), (2, [0]), (1, [0]), (48, range(24)), (500, range(24))]
)
def test_evenly_spaced_examples_stand_for_all(outputs: int, chosen: Iterable[int], monkeypatch: Any) -> None:
    """So many outputs at most, of 24 examples with two each, from the first example to the last."""
    monkeypatch.setattr(along_path, "OUTPUTS", outputs)
    problem, some = LARGER.problem(), list(chosen)
    few = sgdsde.Problem(problem.model, problem.x_train[some], problem.y_train[some], loss=nn.MSELoss())
    found = max_lr_along_path(problem, 3, n_steps=4, n_paths=1, precision=10.0)
    assert found.at_initialization == pytest.approx(max_lr(few, 3), rel=1e-8)


class Watched:
    """A caller's bar that keeps the cost and the number of units."""

    def __call__(self, items: Any) -> Iterator[int]:
        self.cost, self.units = items.cost, len(items)
        return iter(items)


def cost_of(problem: sgdsde.Problem, **words: Any) -> tuple[Any, int]:
    watched = Watched()
    max_lr_along_path(problem, 4, **({"n_steps": 16, "n_paths": 1, "precision": 0.5} | words), progress=watched)
    return watched.cost, watched.units


def test_a_unit_of_the_bar_is_one_path_and_the_cost_is_that_of_all(monkeypatch: Any) -> None:
    asked: list[tuple[int, int]] = []

    def step_seconds(problem: sgdsde.Problem, batch_size: int, n_steps: int) -> float:
        asked.append((batch_size, n_steps))
        return 0.01

    monkeypatch.setattr(along_path, "step_seconds", step_seconds)
    units = {}
    for n_paths, n_steps in ((1, 8), (1, 24), (3, 8)):
        cost, units[n_paths] = cost_of(problem_of(6, 3), n_paths=n_paths, n_steps=n_steps)
        assert cost.seconds == pytest.approx(0.01 * n_steps * units[n_paths])
        assert asked[-1] == (4, n_steps * units[n_paths])
    assert units[3] == 3 * units[1]


@pytest.mark.parametrize(("n", "width", "dtype"), [
    (256, 8, torch.float64), (24, 8, torch.float64), (24, 200, torch.float32),
], ids=["large kernel", "small", "many weights"])  # fmt: skip
def test_the_bytes_that_are_said_are_about_those_that_it_holds(n: int, width: int, dtype: torch.dtype) -> None:
    problem = problem_of(n, width, dtype=dtype)
    cost, _ = cost_of(problem)
    assert 0.4 * cost.bytes < live_peak(lambda: cost_of(problem)) <= cost.bytes + 2**17
