"""Sample paths against torch, torchsde, diffrax and sdeint: path-steps a second, 1000 paths, one pinned thread.

Contestants of one environment take turns in one fresh process, processes one round after the other; rates are those of
the processor's time (of the clock on CUDA), calls before the measurement take compilation and imports. E |e|^2 at the
end is compared with its closed form for Euler's method, of the exact step for that; a contestant more than five
standard errors away gets no rate. ``floor`` is one product and its normal numbers, ``fused`` the shortest step by hand.
Environments: ``make bench-peers``, or ``DIFFRAX=/path/to/python`` and ``TORCHSDE=/path/of/packages``; rows without one
are left out.

    .venv/bin/python -m benchmarks.bench_paths                    # six minutes; results/paths.json, docs/benchmarks.md
    .venv/bin/python -m benchmarks.bench_paths --device cuda      # the rows of a device, TF32 among them
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ntk import machine
from benchmarks.paths.page import write_page
from benchmarks.paths.setting import COLUMNS, Setting
from sgdsde import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "paths.json"
DIFFRAX = Path(os.environ.get("DIFFRAX", ROOT / "build" / "peers" / "diffrax" / "bin" / "python"))
TORCHSDE = Path(os.environ.get("TORCHSDE", ROOT / "build" / "peers" / "torch"))
OURS = "floor,fused,sgdsde_euler,sgdsde_exact,sgdsde_second_order,user"
GROUPS = {
    "cpu": (OURS, "torchsde_own,torchsde_given,torchsde_matrices", "sdeint_euler", "diffrax_euler"),
    "cuda": (f"{OURS},sgdsde_tf32", "torchsde_own,torchsde_given", "diffrax_euler"),
}
ALLOWED = 5.0
"""Standard errors between a second moment and its closed form."""
EXACT_STEPS = (("constant", "sgdsde_exact"), ("constant", "fused"))


def in_fresh_process(names: str, columns: list[str], device: str) -> dict[str, Any]:
    """What one process measured by column and contestant; empty where its environment is missing."""
    python, folders = Path(sys.executable), [ROOT]
    if "diffrax" in names:
        python = DIFFRAX
    if "torchsde" in names:
        folders.append(TORCHSDE)
    if not python.exists() or ("torchsde" in names and not (TORCHSDE / "torchsde").exists()):
        return {}
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    words = {**os.environ, **threads, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    words |= {"JAX_PLATFORMS": device}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "found.json"
        command = [str(python), "-W", "ignore", "-m", "benchmarks.paths.worker", names, str(result)]
        command += ["--device", device, "--columns", *columns]
        subprocess.run(command, cwd=ROOT, env=words, check=True)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def deviation(column: str, name: str, found: dict[str, Any], known: dict[tuple[str, bool, int], float]) -> float:
    """Of the second moment from its closed form, in standard errors."""
    key = (column, (COLUMNS[column][0], name) in EXACT_STEPS, found["n_steps"])
    if key not in known:
        setting = Setting(*COLUMNS[column])
        known[key] = (setting.exact if key[1] else setting.euler)(found["n_steps"])
    return (found["mean"] - known[key]) / found["error"]


def measured(columns: list[str], device: str, n_rounds: int) -> dict[str, dict[str, Any]]:
    """By column and contestant: rates, and the largest deviation of a second moment, in standard errors."""
    result: dict[str, dict[str, Any]] = {column: {} for column in columns}
    known: dict[tuple[str, bool, int], float] = {}
    for number in range(n_rounds):
        for names in GROUPS[device]:
            for column, contestants in in_fresh_process(names, columns, device).items():
                for name, found in contestants.items():
                    entry = result[column].setdefault(name, {"rates": [], "deviations": []})
                    entry["rates"] += found["rates"]
                    if "rounding" in found:
                        entry["rounding"] = found["rounding"]
                    if name != "floor" and name != "sgdsde_second_order":
                        entry["deviations"].append(deviation(column, name, found, known))
            print(f"round {number + 1}: {names}", flush=True)
    return {column: {name: summary(entry) for name, entry in found.items()} for column, found in result.items()}


def summary(entry: dict[str, Any]) -> dict[str, Any]:
    rates, worst = entry["rates"], max(map(abs, entry["deviations"]), default=0.0)
    told = {"median": statistics.median(rates), "smallest": min(rates), "largest": max(rates)}
    return {**told, "standard_errors": worst, **({"rounding": entry["rounding"]} if "rounding" in entry else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=tuple(GROUPS), default="cpu")
    parser.add_argument("--columns", nargs="+", choices=tuple(COLUMNS), default=list(COLUMNS))
    options = parser.parse_args()
    content = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found = measured(options.columns, options.device, options.rounds)
    wrong = {
        f"{column}, {name}": entry["standard_errors"]
        for column, contestants in found.items()
        for name, entry in contestants.items()
        if entry["standard_errors"] > ALLOWED
    }
    if wrong:
        print(json.dumps(found))
        raise SystemExit(f"second moments more than {ALLOWED} standard errors from their closed form: {wrong}")
    environment = {**provenance.machine(), "versions": provenance.versions(), "rounds": options.rounds}
    if options.device == "cpu":
        environment["products"] = machine.product_rates()
    content[options.device] = {"environment": environment, "columns": found}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    write_page(content)


if __name__ == "__main__":
    main()
