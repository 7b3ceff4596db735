"""The speed of matrix products on this machine, and the memory of this process."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

REPEATS = 12
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def pin(core: int) -> None:
    """This process on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def last_core() -> int:
    """The last of the cores that this process may use: the first ones serve interrupts."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def peak_bytes() -> int:
    """The largest resident size since the start or the last :func:`reset_peak`.

    ``ru_maxrss`` of a new process may be that of its parent, so Linux's own field is preferred.
    """
    return _field("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_bytes() -> int:
    """What is resident now; the peak where the system does not tell."""
    return _field("VmRSS") or peak_bytes()


def reset_peak() -> None:
    """Count the peak from here on, where the system can do that."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def _field(name: str) -> int:
    if not STATUS.exists():
        return 0
    return next((int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith(name)), 0)


def product_rates(size: int = 1024) -> dict[str, float]:
    """Operations a processor second of a square matrix product, the best of several, by dtype."""
    import torch

    torch.set_num_threads(1)
    rates = {}
    for dtype in (torch.float32, torch.float64):
        left, right = torch.randn(2, size, size, dtype=dtype)
        best = float("inf")
        for _ in range(REPEATS):
            start = time.process_time()
            left @ right
            best = min(best, time.process_time() - start)
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / best
    return rates


if __name__ == "__main__":
    print(json.dumps(product_rates()))
