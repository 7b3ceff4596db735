"""Recorded steps and observables of a trajectory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word
from sgdsde._types import Observable

N_RECORDED = 50

MOST_RECORDED = 100_000
"""Recorded steps of a trajectory."""

MOST_STEPS = 2**53
"""Steps that float64, in which powers of steps are taken, can tell apart."""


def recorded_steps(n_steps: int, record: Sequence[int] | None = None) -> Tensor:
    """The steps to record, sorted and without repetition, int64; by default about 50, geometric, with 0, 1, n_steps."""
    if n_steps > MOST_STEPS:
        raise ValueError(complaint("n_steps", "at most 2**53", f"{n_steps:,}", "no training is that long"))
    if record is None:
        spaced = np.geomspace(1, max(n_steps, 1), num=min(N_RECORDED, max(n_steps, 1)))
        return torch.from_numpy(np.unique(np.concatenate([[0], np.rint(spaced)])).astype(np.int64)[: n_steps + 1])
    if not isinstance(record, Iterable) or getattr(record, "ndim", 1) == 0:
        raise TypeError(complaint("record", "a sequence of steps", repr(record), "use record=[0, 1, 10]"))
    if isinstance(record, Sized) and len(record) > MOST_RECORDED:
        remedy = "omit record for about 50 geometric steps"
        raise ValueError(complaint("record", f"at most {MOST_RECORDED:,} steps", f"{len(record):,}", remedy))
    steps = sorted({whole_number("record", step) for step in record})
    if not steps:
        raise ValueError(complaint("record", "at least one step", "none", "omit it for about 50 geometric steps"))
    if steps[-1] > n_steps:
        raise ValueError(complaint("record", f"within 0 ... n_steps={n_steps}", f"step {steps[-1]}", "raise n_steps"))
    return torch.tensor(steps, dtype=torch.int64)


def check_observables(observe: Iterable[str]) -> None:
    if isinstance(observe, str):
        raise TypeError(complaint("observe", "a tuple of words", repr(observe), f"use observe=({observe!r},)"))
    for name in observe:
        word("observe", name, get_args(Observable))
