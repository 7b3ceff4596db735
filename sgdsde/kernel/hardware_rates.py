"""Measured rates of matrix products and of passes over memory on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

SIZE = 768
"""Rows of the matrices: large enough for the full rate of a core, small enough for milliseconds."""


@dataclass(frozen=True)
class Rates:
    """Operations and bytes per second.

    Attributes:
        network, products: multiplications and additions in the dtype of the model and in that of the result.
        entries: numbers of the result that are read and written one by one.
    """

    network: float
    products: float
    entries: float

    @classmethod
    def measure(cls, model: torch.dtype, result: torch.dtype, device: torch.device) -> Rates:
        """The best of a few runs each, with the threads that torch uses now."""
        size = 8 * SIZE if device.type == "cuda" else SIZE
        rates = {}
        for dtype in {model, result}:
            matrix = torch.ones(size, size, dtype=dtype, device=device)
            out = torch.empty_like(matrix)
            products = _best(partial(torch.mm, matrix, matrix.mT, out=out), device)
            passes = _best(partial(out.addcmul_, matrix, matrix), device)
            rates[dtype] = (2 * size**3 / products, size**2 / passes)
        return cls(rates[model][0], *rates[result])

    def __str__(self) -> str:
        return (
            f"{self.network:.3g} operations/s in the network, {self.products:.3g} in products, "
            f"{self.entries:.3g} entries/s one by one"
        )


def _best(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(4):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
