"""The empirical kernel against the tools that people would use instead, in fresh processes, one round after the other.

Every process is pinned to one core and has one thread. Each result is compared with a float64 reference made by one
backward pass per output; what is wrong gets no time. A contestant gets no further round of a case after half a minute
of calls. Peers live in environments of their own: `make bench-peers`. Results go to benchmarks/results/ntk.json and
into the tables of docs/benchmarks.md.

    python -m benchmarks.bench_ntk                                  # the committed numbers, fourteen minutes
    python -m benchmarks.bench_ntk --rounds 1 --cases cnn_full --output build/dry.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ntk import machine
from benchmarks.ntk.cases import CASES, SHARED, TIMED
from benchmarks.ntk.contestants import NAMES
from benchmarks.ntk.page import tables, write_page
from benchmarks.ntk.reference import reference
from benchmarks.ntk.summary import Record, by_case, largest_error, spread
from sgdsde import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ntk.json"
PEERS = ROOT / "build" / "peers"
CACHE = ROOT / "build" / "benchmarks"
SECONDS_ALLOWED = 300
ENOUGH = 30.0
"""Seconds of calls after which a contestant gets no further round of a case."""
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
HAND_WRITTEN = "layer_structure"
KEPT = ("jax", "jaxlib", "neural-tangents", "nngeometry", "backpack-for-pytorch")
"""Packages whose versions are told."""


def place_of(contestant: str) -> tuple[Path, list[Path]]:
    """The interpreter that has this contestant's libraries, and folders with more of them."""
    if contestant == "neural_tangents":
        return PEERS / "jax" / "bin" / "python", []
    return Path(sys.executable), [PEERS / "torch"] if contestant in ("nngeometry", "backpack") else []


def run_once(contestant: str, case: str, core: int, result: Path) -> dict[str, Any]:
    """What one fresh process measured, or why it did not."""
    python, folders = place_of(contestant)
    if not all(path.exists() for path in (python, *folders)):
        return {"failed": "not installed: make bench-peers"}
    paths = os.pathsep.join(map(str, (ROOT, *folders)))
    environment = {**os.environ, **ONE_THREAD, "BENCHMARK_CORE": str(core), "PYTHONPATH": paths}
    command = [str(python), "-W", "ignore", "-m", "benchmarks.ntk.worker", contestant, case, str(result)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS_ALLOWED
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {SECONDS_ALLOWED} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"failed": f"ended with exit status {done.returncode}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def rounds(
    cases: Sequence[str], contestants: Sequence[str], n_rounds: int, core: int
) -> tuple[dict[tuple[str, str], Record], dict[str, list[float]]]:
    """Records by (case, contestant) and the rates of matrix products, everything interleaved."""
    records: dict[tuple[str, str], Record] = {}
    rates: dict[str, list[float]] = {}
    references = {name: reference(CASES[name], CACHE) for name in cases}
    shared = {case.name for case in SHARED}
    for number in range(n_rounds):
        for dtype, rate in measured_rates(core).items():
            rates.setdefault(dtype, []).append(rate)
        for case in cases:
            for contestant in contestants:
                if case in shared and (number or contestant == HAND_WRITTEN):
                    continue  # these show errors, not times; the hand-written chains share nothing
                record = records.setdefault((case, contestant), Record())
                if record.failed or sum(entry["seconds"] for entry in record.rounds) > ENOUGH:
                    continue
                add_round(record, contestant, case, core, references[case])
                print(f"round {number + 1}, {case}, {contestant}: {told(record)}", flush=True)
    return records, rates


def measured_rates(core: int) -> dict[str, float]:
    """Matrix-product rates of a fresh process on the same core."""
    command = [sys.executable, "-c", f"from benchmarks.ntk import machine as m; m.pin({core}); import json; "]
    command[-1] += "print(json.dumps(m.product_rates()))"
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def add_round(record: Record, contestant: str, case: str, core: int, expected: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "kernel.npy"
        answer = run_once(contestant, case, core, result)
        if "failed" in answer:
            record.failed = answer["failed"]
            return
        record.rounds.append(answer)
        record.errors.append(largest_error(np.load(result), expected))


def told(record: Record) -> str:
    if record.failed:
        return record.failed
    last = record.rounds[-1]
    return f"{last['seconds']:.4f} s, {last['peak_bytes'] / 2**20:.0f} MiB, error {record.errors[-1]:.1e}"


def environment(n_rounds: int) -> dict[str, Any]:
    """Machine and versions; its load is that before the first measurement."""
    peers = {"torch": metadata.version("torch"), "numpy": metadata.version("numpy")}
    for name in ("jax", "torch"):
        path = ROOT / "benchmarks" / "peers" / f"{name}.txt"
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
        peers |= dict(line.split("==") for line in lines if line.split("==")[0] in KEPT)
    return {
        **provenance.machine(),
        "threads": 1,
        "rounds": n_rounds,
        "load_at_the_start": os.getloadavg()[0],
        "versions": peers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=[case.name for case in TIMED + SHARED])
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--core", type=int, default=machine.last_core())
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    start = environment(options.rounds)
    records, rates = rounds(options.cases, options.contestants, options.rounds, options.core)
    rate = statistics.median(rates["float32"])
    described = {**start, "products_per_second": {name: spread(values) for name, values in rates.items()}}
    content = {"environment": described, "cases": by_case(records, rate)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    if options.output == RESULT:
        write_page(tables(content))


if __name__ == "__main__":
    main()
