"""Rates and second moments of some contestants in this process, in turns, one column after the other.

python -m benchmarks.paths.worker floor,fused,sgdsde result.json [--device cuda] [--columns "state, d = 64"]
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.ntk import machine
from benchmarks.paths.setting import COLUMNS, Setting

HOMES = {
    "floor": "torch_paths", "fused": "torch_paths", "user": "torch_paths", "torchsde_own": "torch_paths",
    "torchsde_given": "torch_paths", "torchsde_matrices": "torch_paths", "sdeint_euler": "torch_paths",
    "sgdsde_euler": "own_paths", "sgdsde_exact": "own_paths", "sgdsde_second_order": "own_paths",
    "sgdsde_tf32": "own_paths", "diffrax_euler": "diffrax_paths",
}  # fmt: skip
SECONDS, PILOT, TURNS, MOST = 0.3, 8, 2, 2000
"""Seconds of a timed call, steps of the call that decides how many that are, calls of a contestant, steps at most."""

ONLY = {"sgdsde_exact": "constant", "sgdsde_euler": "state", "sgdsde_second_order": "state", "sgdsde_tf32": "state"}
"""Contestants that integrate one of the two equations."""
MATRICES = 256
"""The largest d of the contestant that makes a matrix for each path: beyond, 1000 of them take gigabytes."""


def timed(run: Callable[[int], Any], n_steps: int, device: str) -> tuple[float, Any]:
    clock = time.process_time if device == "cpu" else time.perf_counter
    call = run.prepared(n_steps) if hasattr(run, "prepared") else lambda: run(n_steps)
    start = clock()
    states = call()
    if device != "cpu":
        states = states.cpu()
    return clock() - start, states


def measured(setting: Setting, names: list[str], device: str) -> dict[str, Any]:
    runs, found = {}, {}
    for name in names:
        if ONLY.get(name, setting.kind) != setting.kind or (name == "torchsde_matrices" and setting.d > MATRICES):
            continue
        module = importlib.import_module(f"benchmarks.paths.{HOMES[name]}")
        run = runs[name] = getattr(module, name)(setting, device)
        run(2)
        seconds = timed(run, PILOT, device)[0]
        found[name] = {"n_steps": max(4, min(MOST, int(PILOT * SECONDS / seconds))), "rates": []}
    for _ in range(TURNS):
        for name, run in runs.items():
            n_steps = found[name]["n_steps"]
            seconds, states = timed(run, n_steps, device)
            found[name]["rates"].append((n_steps - getattr(run, "before", 0)) * len(states) / seconds)
            if hasattr(run, "rounding"):
                found[name]["rounding"] = run.rounding
            squares = (states.astype(float) if hasattr(states, "astype") else states.double().numpy()) ** 2
            sizes = squares.sum(1)
            found[name] |= {"mean": float(sizes.mean()), "error": float(sizes.std() / len(sizes) ** 0.5)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names")
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--columns", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS))
    options = parser.parse_args()
    machine.pin(machine.last_core())
    names, found = options.names.split(","), {}
    for column in options.columns:
        setting = Setting(*COLUMNS[column])
        found[column] = measured(setting, names, options.device)
        options.result.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
