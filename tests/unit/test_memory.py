"""Budgets in bytes, and progress that counts every unit of work once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import _memory
from sgdsde._progress import ticker

CPU = torch.device("cpu")


def test_the_default_budget_is_a_quarter_of_what_is_free(monkeypatch):
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 1000)
    assert _memory.budget(None, CPU) == 250
    assert _memory.budget(123, CPU) == 123


def test_free_memory_is_known():
    assert _memory.free_bytes(CPU) > 2**20


def test_rows_fill_what_is_left():
    assert _memory.rows_within(100, 10, 50, "a row") == 10
    assert _memory.rows_within(100, 10, 5, "a row") == 5
    assert _memory.rows_within(100, 10, 50, "a row", fixed=45) == 5
    message = "memory must be at least 60 bytes, got 54; a row needs 10 bytes beside 50; raise it or shrink the problem"
    with pytest.raises(MemoryError, match=re.escape(message)):
        _memory.rows_within(54, 10, 50, "a row", fixed=50)


class Counted:
    """A wrapper of an iterable as tqdm is one."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.seen: list[int] = []

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        items = list(items)
        self.totals.append(len(items))
        self.seen.append(0)
        for item in items:
            self.seen[-1] += 1
            yield item


@pytest.mark.parametrize("go", ["kernel", "predict", "real", "linearized"])
def test_progress_reaches_its_end(go):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(nn.Linear(3, 1), x, x[:, :1], loss=nn.MSELoss())
    linearization, sgd, progress = sgdsde.linearize(problem), sgdsde.SGD(0.01, 2), Counted()
    calls = {
        "kernel": lambda: sgdsde.empirical_ntk(problem.model, x, progress=progress),
        "predict": lambda: sgdsde.predict(linearization, sgd, 5, progress=progress),
        "real": lambda: sgdsde.run_ensemble(problem, sgd, 5, 3, progress=progress),
        "linearized": lambda: sgdsde.run_ensemble(linearization, sgd, 5, 3, progress=progress),
    }
    calls[go]()
    assert progress.totals
    assert progress.seen == progress.totals


def test_silence_is_the_default(capfd):
    for progress in (None, False):
        ticks = ticker(progress, 3, "work")
        ticks.update(2)
        ticks.close()
    assert capfd.readouterr() == ("", "")


def test_true_draws_a_bar(capfd):
    ticks = ticker(True, 4, "some work")
    ticks.update(4)
    ticks.close()
    assert "some work: 100%" in capfd.readouterr().err


def test_updates_past_the_end_do_no_harm():
    progress = Counted()
    ticks = ticker(progress, 3, "work")
    ticks.update(5)
    ticks.close()
    assert progress.seen == [3]


def test_more_than_fits_is_refused_by_count(monkeypatch):
    monkeypatch.setattr(_memory, "free_bytes", lambda device: 4 * 10**9)
    _memory.check_count("n_runs", 10**6, 1000, "runs")
    message = (
        "n_runs must be at most 1,000,000 with a quarter of the free memory, got 1,000,001; runs take 1,000 bytes each"
    )
    with pytest.raises(MemoryError, match=re.escape(message)):
        _memory.check_count("n_runs", 10**6 + 1, 1000, "runs")
    with pytest.raises(MemoryError, match=re.escape("10**15 or more")):
        _memory.check_count("n_runs", 10**400, 1000, "runs")


def test_more_runs_than_fit_are_refused_at_once():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(nn.Linear(3, 1), x, x[:, :1], loss=nn.MSELoss())
    for call in (
        lambda: sgdsde.run_ensemble(problem, sgdsde.SGD(0.1, 2), 3, 10**12),
        lambda: sgdsde.predict(problem, sgdsde.SGD(0.1, 2), 3, dynamics=sgdsde.dynamics.SDEPaths(10**12)),
        lambda: sgdsde.predict(problem, sgdsde.SGD(0.1, 2), 3, dynamics=sgdsde.dynamics.LinearizedSGD(10**12)),
    ):
        with pytest.raises(MemoryError, match=r"n_(runs|paths) must be at most"):
            call()
