"""The speed of this machine and of training on it, for costs that are said before a stage starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from sgdsde._progress import StageCost
from sgdsde.problem import Problem

SPECTRUM_ROWS = 320
"""Rows of the matrix whose eigendecomposition is timed."""

WORTH_MEASURING = 4.0
"""Seconds of a stage from which on the tenth of a second of a measurement is nothing."""

STEP_OVERHEAD = 2e-4
"""Seconds of a training step beside its three passes through the network, on a processor."""

CALL_OVERHEAD = 5e-4
"""Seconds of a step of a small network, and of one of many runs, that do not grow with the batch or the runs."""

COLUMN_ENTRIES = 5e9
"""Entries a second of the columns of a kernel that a step of linearized SGD adds up."""

WORTH_A_PASS = 64
"""Training steps from which on two forward passes of a batch are nothing."""


@dataclass(frozen=True)
class Machine:
    """Operations a second of products in float64, entries a second, seconds of an eigendecomposition of 320 rows."""

    products: float
    entries: float
    spectrum_seconds: float

    @classmethod
    def measured(cls) -> Machine:
        """The speed with the threads that torch uses now: a tenth of a second, once for each number of threads."""
        return _measured(torch.get_num_threads())

    @classmethod
    def worth(cls, seconds: Callable[[Machine], float]) -> Machine:
        """The measured speed where the stage is long enough for it, else that of a core of an everyday processor."""
        return cls.measured() if seconds(EVERYDAY) > WORTH_MEASURING else EVERYDAY

    def spectrum(self, d: int) -> float:
        """Seconds of an eigendecomposition of d rows."""
        return self.spectrum_seconds * (d / SPECTRUM_ROWS) ** 3


EVERYDAY = Machine(products=3e10, entries=5e8, spectrum_seconds=0.02)
"""One core of a laptop or server of the 2020s: right within a factor of three or so."""


@lru_cache(maxsize=16)
def _measured(n_threads: int) -> Machine:
    return time_machine()


def time_machine() -> Machine:
    """The speed of this machine, measured now."""
    matrix = torch.ones(768, 768, dtype=torch.float64)
    out = torch.empty_like(matrix)
    products = _shortest(lambda: torch.mm(matrix, matrix, out=out))
    passes = _shortest(lambda: out.addcmul_(matrix, matrix))
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(SPECTRUM_ROWS, SPECTRUM_ROWS, dtype=torch.float64, generator=generator)
    symmetric = half @ half.mT
    return Machine(2 * 768**3 / products, 768**2 / passes, _shortest(lambda: torch.linalg.eigh(symmetric)))


def step_seconds(problem: Problem, batch_size: int, n_steps: int) -> float:
    """Seconds of one plain training step: three times a forward pass of one batch, and a constant.

    The pass is measured where so many steps are asked about that it is nothing; else counted from the weights, as if
    each were used once an example.
    """
    if n_steps < WORTH_A_PASS:
        size = sum(value.numel() for value in problem.params.values())
        return 6 * size * batch_size / EVERYDAY.products + STEP_OVERHEAD
    x = problem.x_train
    batch = x[:batch_size] if batch_size <= len(x) else x[torch.arange(batch_size, device=x.device) % len(x)]

    def forward() -> None:
        with torch.no_grad():
            problem.forward(problem.params, batch).sum().item()  # waits for the device

    return 3 * _shortest(forward, repeats=2) + STEP_OVERHEAD


def runs_seconds(problem: Problem, batch_size: int, n_steps: int, n_runs: int, groups: int) -> float:
    """Seconds of real runs that are stepped together in so many groups: what a further run adds, and the calls."""
    size = sum(value.numel() for value in problem.params.values())
    alone = step_seconds(problem, batch_size, n_steps * n_runs)
    further = max(alone - CALL_OVERHEAD, 6 * size * batch_size / (2 * EVERYDAY.products))
    return n_steps * (n_runs * further + groups * 2 * CALL_OVERHEAD)


def linearized_runs_seconds(rows: int, d: int, examples: int, machine: Machine) -> float:
    """Seconds of one step of one run of the linearized model: columns of the kernel, or the product with all of it."""
    return min(2 * d * rows / machine.products, examples * rows / COLUMN_ENTRIES) + 6 * rows / machine.entries


def spectrum_cost(d: int, name: str = "eigenbasis", part: float = 1.0) -> StageCost:
    """The cost of decomposing d rows, or of work that takes a part of that."""

    def seconds(machine: Machine) -> float:
        return part * machine.spectrum(d)

    return StageCost(name, seconds(Machine.worth(seconds)), round(part * 4 * 8 * d**2))


def _shortest(work: Callable[[], object], repeats: int = 4) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
