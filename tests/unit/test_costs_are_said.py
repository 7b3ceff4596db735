"""Every stage says before it starts what it will cost, in the log and to the bar, and measures nothing for nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import pytest

import sgdsde
from sgdsde import _progress, prediction, stability
from sgdsde._progress import SharedBar, StageCost, announced, covered, ticker
from sgdsde.diagnosis import assembly
from sgdsde.dynamics import MomentEquations
from tests.problems import digits_problem

SGD = sgdsde.SGD(0.05, 4)


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    return digits_problem(12, n_test=4, width=16)


class Watched:
    """A wrapper of iterables that remembers what was logged before each bar, its cost and how far it came."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.said: list[list[str]] = []
        self.costs: list[StageCost | None] = []
        self.totals: list[int] = []
        self.seen: list[int] = []

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        self.said.append([record.getMessage() for record in self.caplog.records])
        self.costs.append(getattr(items, "cost", None))
        self.totals.append(len(list(items)))
        self.seen.append(0)
        place = len(self.seen) - 1

        def units() -> Iterator[int]:
            for item in items:
                self.seen[place] += 1
                yield item

        return units()


CALLS = {
    "predict": lambda one, progress: sgdsde.predict(one, SGD, 20, progress=progress),
    "run_ensemble": lambda one, progress: sgdsde.run_ensemble(one, SGD, 20, 4, progress=progress),
    "diagnose": lambda one, progress: sgdsde.diagnose(one, SGD, 20, progress=progress),
    "error_budget": lambda one, progress: sgdsde.error_budget(one, SGD, 20, 4, progress=progress),
    "sweep": lambda one, progress: sgdsde.sweep(one, lr=[0.01, 0.02], batch_size=4, n_steps=20, progress=progress),
    "predict_many": lambda one, progress: sgdsde.predict_many(one, [SGD, sgdsde.SGD(0.02, 4)], 200, progress=progress),
    "max_lr_along_path": lambda one, progress: stability.max_lr_along_path(one, 4, n_steps=8, progress=progress),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_bar_has_a_cost_that_was_said_before_it_began(problem, name, caplog):
    caplog.set_level(logging.INFO, logger="sgdsde")
    watched = Watched(caplog)
    CALLS[name](problem, watched)
    assert watched.totals, "no bar"
    assert watched.seen == watched.totals, "every bar reaches its end"
    for cost, said in zip(watched.costs, watched.said):
        if cost is not None:
            assert cost.seconds > 0
            assert any(line.startswith(f"{cost.name}: ") and "MiB" in line for line in said)
    assert any(cost is not None for cost in watched.costs)
    assert watched.costs[-1] is not None
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_costs_are_told_in_plain_training_runs(problem, caplog):
    caplog.set_level(logging.INFO, logger="sgdsde")
    sgdsde.predict(problem, SGD, 100)
    assert any("plain training runs" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", CALLS)
def test_a_long_stage_without_a_bar_says_so_by_default(problem, name, caplog, monkeypatch):
    monkeypatch.setattr(_progress, "LONG", 0.0)
    CALLS[name](problem, None)
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("pass progress=True for a bar" in line for line in said)
    if name in ("sweep", "diagnose", "predict_many", "max_lr_along_path"):
        with_bar = [line for line in said if line.endswith("a bar") and not line.startswith("kernel:")]
        assert sum("pass progress" in line for line in with_bar) == 1, "once"


def test_a_short_stage_is_silent_and_measures_nothing(problem, caplog, monkeypatch):
    def measured(*_: object) -> float:
        raise AssertionError("nobody sees the cost")

    monkeypatch.setattr(prediction, "step_seconds", measured)
    sgdsde.predict(problem, SGD, 100)
    sgdsde.sweep(problem, lr=[0.01, 0.02], batch_size=4, n_steps=20)
    assert not caplog.records


def test_the_bar_of_a_diagnosis_ends_with_the_diagnosis(problem, caplog, monkeypatch):
    """Before the last check it is short of its end, after the return it is there."""
    watched, before = Watched(caplog), []
    last = assembly.summary

    def summary(*arguments):
        before.append((watched.seen[-1], watched.totals[-1]))
        return last(*arguments)

    monkeypatch.setattr(assembly, "summary", summary)
    sgdsde.diagnose(sgdsde.linearize(problem), SGD, 20, progress=watched)
    (seen, total), *_ = before
    assert 0 < seen < total
    assert watched.seen == watched.totals
    assert len(watched.seen) == 1, "one bar"


def test_a_cost_that_is_not_known_is_said_to_be_unknown(problem, caplog):
    caplog.set_level(logging.INFO, logger="sgdsde")
    sgdsde.predict(problem, SGD, 20, dynamics=MomentEquations())
    assert any("MomentEquations: time not known beforehand" in record.getMessage() for record in caplog.records)


def test_a_covered_part_says_nothing(caplog):
    caplog.set_level(logging.INFO, logger="sgdsde")
    assert announced(StageCost("part", 100.0, 1), covered) is covered
    assert not caplog.records


def test_a_drawn_bar_names_the_cost_and_ends_full(capfd):
    ticks = ticker(announced(StageCost("work", 3.0, 1), True), 8, "some work")
    ticks.update(5)
    ticks.close()
    drawn = capfd.readouterr().err
    assert "some work, about 3 s: 100%" in drawn
    assert "8/8" in drawn


def test_parts_share_a_bar_by_their_weights(caplog):
    watched = Watched(caplog)
    bar = SharedBar(watched, {"first": 1.0, "second": 3.0}, "both")
    for _ in bar.part("first")(range(7)):
        pass
    assert abs(watched.seen[0] - 250) <= 1
    for unit in bar.part("second")(range(10)):
        if unit == 4:
            break  # the fifth unit is begun, four are done
    assert abs(watched.seen[0] - 550) <= 1
    bar.close()
    assert watched.seen == watched.totals == [1000]
