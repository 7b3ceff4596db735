"""One measurement in a process of its own: ``python -m benchmarks.ntk.worker CONTESTANT CASE RESULT.npy``.

Prints one line of JSON. Imports, a call on a tiny network, model and data come before the clock and before memory is
counted. The first call is timed apart (compilation, first touch of memory) and is the measurement only where it is long
and nothing was compiled in it.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import sys
import time
from typing import Any

import numpy as np

from benchmarks.ntk import machine
from benchmarks.ntk.cases import CASES, WARM_UP

LONG = 4.0
"""Seconds of a first call from which on it is not repeated in the same process."""
ENOUGH = 0.5
"""Seconds over which the calls of one process are spread."""
ADDRESS_SPACE = 20 * 2**30


def measure(contestant: str, case_name: str, path: str) -> dict[str, Any]:
    """Seconds of a call (median), of the first call, and the peak of memory above the imported libraries.

    Seconds are those of the processor, all threads of the process together: with one pinned thread the wall shows the
    same, unless something else wants the core.
    """
    module = importlib.import_module(f"benchmarks.ntk.contestants.{contestant}")
    module.prepare(WARM_UP)[0]()
    call, convert = module.prepare(CASES[case_name])
    compiles = getattr(module, "COMPILES", False)
    baseline = machine.resident_bytes()
    machine.reset_peak()
    first, result = _timed(call)
    if compiles:
        machine.reset_peak()
    times = [first]
    if compiles or first["seconds"] < LONG:
        times = []
        while sum(entry["seconds"] for entry in times) < ENOUGH or len(times) < 3:
            entry, result = _timed(call)
            times.append(entry)
            if entry["seconds"] > LONG or len(times) == 30:
                break
    peak = machine.peak_bytes()
    np.save(path, convert(result))
    return {
        **{name: statistics.median(entry[name] for entry in times) for name in first},
        "first_seconds": first["seconds"],
        "calls": len(times),
        "peak_bytes": peak - baseline,
        "absolute_bytes": peak,
    }


def _timed(call: Any) -> tuple[dict[str, float], Any]:
    """Seconds of the processor, the system's share of them (it hands out memory), seconds on the wall; the result."""
    wall, start, system = time.perf_counter(), time.process_time(), os.times().system
    result = call()
    elapsed = {"seconds": time.process_time() - start, "system_seconds": os.times().system - system}
    return elapsed | {"wall_seconds": time.perf_counter() - wall}, result


def main() -> None:
    machine.pin(int(os.environ["BENCHMARK_CORE"]))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    try:
        answer = measure(*sys.argv[1:4])
    except Exception as error:  # whatever a peer raises is its result
        answer = {"failed": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
