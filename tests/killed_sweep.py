"""A sweep that is killed again and again: ``python -m tests.killed_sweep FOLDER KILLS SEED whole|small``.

The whole sweep has 40 settings with two blocks of runs each, the small one 4.

Prints one line of JSON: ``kills``, ``whole`` (sweeps that reached their end), ``same`` (of these, those whose rows have
the bits of an uninterrupted one), ``lost`` (finished parts that were missing or changed after a kill), ``temporary``
(kills that left a half-written file), ``together`` (of three sweeps at once in one folder, those with the same bits).
Children are forked, so that a kill costs no imports.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import sgdsde
from tests.problems import mlp_problem

GRIDS: dict[str, dict[str, Any]] = {
    "whole": {"lr": [0.01, 0.02, 0.03, 0.05, 1e3], "batch_size": [1, 2, 3, 5], "momentum": [0.0, 0.5], "n_steps": 30},
    "small": {"lr": [0.01, 0.02], "batch_size": [1, 2], "n_steps": 10},
}


def rows(problem: sgdsde.Problem, grid: dict[str, Any], folder: Path) -> bytes:
    """The rows of the sweep, as bytes that differ where any bit does."""
    found = sgdsde.sweep(problem, **grid, measured=True, n_runs=70, checkpoint=folder)
    return pickle.dumps([sorted(row.items()) for row in found.rows])


def forked(problem: sgdsde.Problem, grid: dict[str, Any], folder: Path, result: str = "rows") -> int:
    """The process of a sweep that writes its rows when it is done."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            folder.with_name(result).write_bytes(rows(problem, grid, folder))
            status = 0
        finally:
            os._exit(status)
    return child


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npz") if not path.name.startswith(".")}


def main(folder: Path, n_kills: int, seed: int, grid: dict[str, Any]) -> dict[str, int]:
    problem, draw = mlp_problem(), random.Random(seed)
    expected = rows(problem, grid, folder / "uninterrupted")
    started = time.monotonic()
    os.waitpid(forked(problem, grid, folder / "timed"), 0)
    seconds = time.monotonic() - started
    counts = {"kills": 0, "whole": 0, "same": 0, "lost": 0, "temporary": 0}
    kept: dict[str, bytes] = {}
    while counts["kills"] < n_kills or not counts["whole"]:
        child = forked(problem, grid, folder / "sweep")
        wait = draw.uniform(0, seconds / 4) if counts["kills"] < n_kills else 10 * seconds + 60
        deadline, status = time.monotonic() + wait, None
        while status is None and time.monotonic() < deadline:
            pid, code = os.waitpid(child, os.WNOHANG)
            status = code if pid else None
            time.sleep(0.002)
        if status is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            counts["kills"] += 1
            counts["temporary"] += bool(list((folder / "sweep").glob(".*.tmp*")))
            now = parts(folder / "sweep")
            counts["lost"] += sum(now.get(name) != content for name, content in kept.items())
            kept = now
            continue
        counts["whole"] += 1
        counts["same"] += status == 0 and (folder / "rows").read_bytes() == expected
        shutil.rmtree(folder / "sweep")
        kept = {}
    children = [forked(problem, grid, folder / "shared", f"rows-{number}") for number in range(3)]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    counts["together"] = sum(
        status == 0 and (folder / f"rows-{number}").read_bytes() == expected for number, status in enumerate(statuses)
    )
    return counts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), GRIDS[sys.argv[4]])) + "\n")
