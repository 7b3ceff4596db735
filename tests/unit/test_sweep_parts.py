"""Sweeps setting by setting: the rows of a sweep in one piece, the same bits after kills and in any number of jobs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import sgdsde
from sgdsde import CheckpointWarning, LimitFraction
from sgdsde.stability import max_lr
from tests.command_line import call_python
from tests.problems import LARGER, mlp_problem

GRID: dict[str, Any] = {
    "lr": [0.01, LimitFraction(0.5), LimitFraction(1.5)],
    "batch_size": [2, 3],
    "n_steps": 5,
    "measured": True,
    "n_runs": 70,
    "seed": 2,
}


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    return mlp_problem()


def assert_same_bits(found: sgdsde.Sweep, expected: sgdsde.Sweep) -> None:
    assert len(found) == len(expected)
    for row, other in zip(found.rows, expected.rows):
        assert repr(sorted(row.items())) == repr(sorted(other.items()))


def assert_close(row: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert row.keys() == other.keys()
    for name, value in row.items():
        assert (
            value == pytest.approx(other[name], rel=1e-9, abs=1e-12)
            if isinstance(value, float)
            else value == other[name]
        )


def test_setting_by_setting_a_sweep_has_the_rows_of_one_in_one_piece(problem: sgdsde.Problem, tmp_path: Path) -> None:
    whole, by_setting = sgdsde.sweep(problem, **GRID), sgdsde.sweep(problem, **GRID, n_jobs=1)
    assert len(whole) == len(by_setting) == 12
    for row, other in zip(by_setting.rows, whole.rows):
        assert_close(row, other)
    kept = sgdsde.sweep(problem, **GRID, checkpoint=tmp_path / "sweep")
    assert_same_bits(kept, by_setting)
    # A prediction and two blocks a setting; past the limit there is no prediction.
    assert len(list((tmp_path / "sweep").glob("*.npz"))) == 6 * 3 - 2


class Killed(Exception):  # noqa: N818
    pass


def test_an_interrupted_sweep_goes_on_and_makes_nothing_twice(problem: sgdsde.Problem, tmp_path: Path) -> None:
    expected = sgdsde.sweep(problem, **GRID, checkpoint=tmp_path / "whole")

    def progress(items: Iterable[int]) -> Iterator[int]:
        units = list(items)
        if len(units) != 18:  # another stage
            yield from units
            return
        yield from units[:7]
        raise Killed

    with pytest.raises(Killed):
        sgdsde.sweep(problem, **GRID, checkpoint=tmp_path / "killed", progress=progress)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.npz")}
    assert 6 <= len(kept) <= 9
    found = sgdsde.sweep(problem, **GRID, checkpoint=tmp_path / "killed")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert_same_bits(found, expected)


def test_settings_that_share_a_basis_are_the_same_after_a_loss_of_some(tmp_path: Path) -> None:
    linearization = sgdsde.linearize(LARGER.problem())
    rates = [share * max_lr(linearization, 2) for share in (0.1, 0.3, 0.5, 5.0)]
    grid: dict[str, Any] = {"batch_size": [2, 3, 6], "lr": rates, "n_steps": 700}
    expected = sgdsde.sweep(linearization, **grid, checkpoint=tmp_path / "sweep")
    for number in (0, 5):
        (tmp_path / "sweep" / f"setting-{number:04}-predicted.npz").unlink()
    assert_same_bits(sgdsde.sweep(linearization, **grid, checkpoint=tmp_path / "sweep"), expected)
    for row, other in zip(sgdsde.sweep(linearization, **grid).rows, expected.rows):
        assert_close(row, other)


def test_a_damaged_or_foreign_setting_is_named_and_made_again(problem: sgdsde.Problem, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    expected = sgdsde.sweep(problem, **GRID, checkpoint=folder)
    damaged, foreign = folder / "setting-0003-predicted.npz", folder / "setting-0001-runs-000064-000070.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    foreign.write_bytes((folder / "setting-0002-runs-000064-000070.npz").read_bytes())
    with pytest.warns(CheckpointWarning) as caught:
        found = sgdsde.sweep(problem, **GRID, checkpoint=folder)
    assert sorted(damaged.name in str(each.message) for each in caught) == [False, True]
    assert sorted(foreign.name in str(each.message) for each in caught) == [False, True]
    assert_same_bits(found, expected)


def test_the_checkpoint_of_another_sweep_is_refused(problem: sgdsde.Problem, tmp_path: Path) -> None:
    words: dict[str, Any] = {"lr": [0.01], "batch_size": [2], "n_steps": 3}

    def call(trained: Any = problem, **others: Any) -> sgdsde.Sweep:
        return sgdsde.sweep(trained, **(words | others), checkpoint=tmp_path / "sweep")

    plain = call()
    for others, message in (
        ({"lr": [0.01, 0.02]}, "learning rates of"),
        ({"batch_size": [3]}, "settings 0 of"),
        ({"batch_size": [2, 3]}, "settings 1 of"),
        ({"n_steps": 4}, "n_steps of"),
        ({"record": [1]}, "record of"),
        ({"seed": 1}, "seed of"),
        ({"dynamics": sgdsde.dynamics.GradientFlow()}, "dynamics of"),
        ({"trained": sgdsde.linearize(problem)}, "trained of"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**others)
    measured = call(measured=True, n_runs=4)
    assert_same_bits(sgdsde.Sweep(measured.rows[:1]), plain)
    assert math.isfinite(measured.rows[1]["train_loss"])


@pytest.mark.parametrize("n_jobs", [0, 1.0, True, "2"])
def test_a_number_of_jobs_is_a_number(problem: sgdsde.Problem, n_jobs: Any) -> None:
    with pytest.raises(ValueError, match="n_jobs must be"):
        sgdsde.sweep(problem, lr=0.1, batch_size=2, n_steps=1, n_jobs=n_jobs)


def killed(n_kills: int, size: str, folder: Path) -> dict[str, int]:
    answer = call_python("-m", "tests.killed_sweep", str(folder), str(n_kills), "0", size, timeout=600)
    assert answer.returncode == 0, answer.stderr
    counts = json.loads(answer.stdout)
    assert counts["kills"] == n_kills
    assert counts["lost"] == 0
    assert counts["same"] == counts["whole"] >= 1
    assert counts["together"] == 3
    return counts


def test_a_sweep_that_is_killed_three_times_has_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    killed(3, "small", tmp_path)


@pytest.mark.slow
def test_a_sweep_that_is_killed_fifty_times_has_the_bits_of_an_uninterrupted_one(tmp_path: Path) -> None:
    counts = killed(50, "whole", tmp_path)
    assert counts["temporary"] >= 1  # kills in the middle of writing: measured 36 and 41 of 50
