"""Work split over the ranks of a process group: the same bits for any number, and an error where one is lost."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde._ranks import Ranks
from tests.command_line import call_python
from tests.problems import mlp_problem
from tests.ranks import everything, kept

TIMEOUT = 60.0
SHORT = 8.0
"""Of a group whose ranks are made to wait for it, in seconds."""


def run(count: int, folder: Path, work: str, fault: str = "none", timeout: float = TIMEOUT) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    answer = call_python("-m", "tests.ranks", str(count), str(folder), work, fault, str(timeout), timeout=240)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def assert_same_bits(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same_bits(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_same_bits(one, other)
    elif isinstance(expected, bytes):
        assert found == expected
    else:
        assert np.array_equal(np.asarray(found), np.asarray(expected), equal_nan=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process without a group gives."""
    return everything(mlp_problem(), tmp_path_factory.mktemp("alone"))


def compared(count: int, folder: Path, alone: Any) -> None:
    assert [each["end"] for each in run(count, folder, "everything")] == ["done"] * count
    for number in range(count):
        assert_same_bits(pickle.loads((folder / f"rank-{number}.pkl").read_bytes()), alone)
    assert len(alone["tiles"]) == 10


def test_two_ranks_have_the_bits_of_one_process(tmp_path: Path, alone: Any) -> None:
    compared(2, tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 4])
def test_any_number_of_ranks_has_the_bits_of_one_process(count: int, tmp_path: Path, alone: Any) -> None:
    compared(count, tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    ("fault", "message", "limit"),
    [
        ("killed", "group must be .* ranks alive.*a rank was lost", TIMEOUT),
        ("stopped", "group must be .* ranks alive.*longer than the timeout", SHORT + 15),
        ("error", "failed with MemoryError: of this rank", TIMEOUT),
        ("seed", "the ensemble must be that of rank 0", TIMEOUT),
    ],
)
def test_what_befalls_one_rank_is_an_error_of_all_in_time(
    count: int, fault: str, message: str, limit: float, tmp_path: Path
) -> None:
    ends = run(count, tmp_path, "ensemble", fault, SHORT if fault == "stopped" else TIMEOUT)
    for each in ends[:-1]:
        assert re.search(message, each["end"]), each
        assert each["seconds"] < limit
    last = {"killed": "killed", "stopped": "killed", "error": "MemoryError: of this rank"}
    assert last.get(fault, "ValueError") in ends[-1]["end"]


@pytest.mark.slow
def test_after_the_loss_of_a_rank_an_ensemble_goes_on_with_another_number_of_them(tmp_path: Path) -> None:
    ends = run(2, tmp_path / "ranks", "kept", "killed")
    assert ends[1]["end"] == "killed"
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "ranks" / "checkpoint").glob("*.npz")}
    assert 1 <= len(parts) < 6
    (tmp_path / "ranks" / "store").unlink()
    assert [each["end"] for each in run(3, tmp_path / "ranks", "kept")] == ["done"] * 3
    assert parts == {path: path.stat().st_mtime_ns for path in parts}
    found = pickle.loads((tmp_path / "ranks" / "rank-2.pkl").read_bytes())
    assert_same_bits(found, kept(mlp_problem(), tmp_path))


@pytest.mark.parametrize("group", ["gloo", 2, object()])
def test_what_is_no_group_is_refused(group: Any) -> None:
    problem = mlp_problem()
    with pytest.raises(TypeError, match="group must be a ProcessGroup"):
        sgdsde.run_ensemble(problem, sgdsde.SGD(0.1, 2), 1, 1, group=group)
    with pytest.raises(TypeError, match="group must be a ProcessGroup"):
        sgdsde.dynamics.SDEPaths(group=group)


def test_alone_work_is_made_in_order_and_errors_stay_what_they_are() -> None:
    ranks = Ranks(None)
    assert list(ranks.rounds([3, 1, 2], lambda job: 10 * job)) == [[(3, 30)], [(1, 10)], [(2, 20)]]
    assert ranks.dealt([ranks.own([3, 1, 2])]) == [3, 1, 2]
    with pytest.raises(KeyError, match="lost"):
        ranks.gather(lambda: {}["lost"])
    (found,) = ranks.gather(lambda: torch.ones(2))
    assert torch.equal(found, torch.ones(2))
