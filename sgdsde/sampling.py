"""The minibatches that the runs of an ensemble draw, from named streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._streams import BLOCK, numpy_stream
from sgdsde.sgd import SGD, StepPlan

AT_ONCE = 2**15
"""Indices drawn by one call."""

PADDING = -1
"""Entry that fills the rows of smaller batches in ``batch_indices``."""


def batch_indices(sgd: SGD, n: int, n_steps: int, *, seed: int, run: int) -> Tensor:
    """The batches of one run of ``run_ensemble``: int64 [n_steps, B].

    Where batch sizes differ (an epoch's last batch, a batch-size schedule) B is the largest and shorter rows end with
    ``sampling.PADDING`` = -1.

    Args:
        n: number of training examples. seed, run: the ensemble's seed and the number of the run in it.
    Cost: draws the whole block of 64 runs that this run belongs to.
    """
    n_steps = whole_number("n_steps", n_steps)
    run = whole_number("run", run)
    plan = sgd.plan(whole_number("n", n, minimum=1), n_steps)
    widest = int(plan.batch_size.max()) if n_steps else 0
    batches = torch.full((n_steps, widest), PADDING, dtype=torch.int64)
    for k, indices in enumerate(block_batches(plan, whole_number("seed", seed), run // BLOCK)):
        batches[k, : indices.shape[1]] = torch.from_numpy(indices[run % BLOCK])
    return batches


def block_batches(plan: StepPlan, seed: int, block: int, *, purpose: str = "batches") -> Iterator[np.ndarray]:
    """Batches of the 64 runs of a block for each step of the plan: int64 [64, B_k]; another purpose, other draws.

    Cost: 64 B numbers a step; without replacement 64 n uniform keys a step, of which the B smallest are the batch.
    """
    stream = numpy_stream(seed, purpose, block)
    n = plan.n_train
    if plan.sampling == "with_replacement":
        yield from _independent(plan, stream)
        return
    order = np.empty((BLOCK, 0), dtype=np.int64)
    for size, used in zip(plan.batch_size.tolist(), plan.used.tolist()):
        if size == n:  # in one order for all, so that runs of full-batch descent agree to the last bit
            yield np.tile(np.arange(n), (BLOCK, 1))
        elif plan.sampling == "without_replacement":
            keys = stream.random((BLOCK, n))
            yield np.argpartition(keys, size - 1, axis=1)[:, :size]
        else:
            if used == 0:
                order = stream.permuted(np.broadcast_to(np.arange(n), (BLOCK, n)), axis=1)
            yield order[:, used : used + size]


def _independent(plan: StepPlan, stream: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches drawn with replacement; those of several steps in one call are the same numbers, in less time."""
    for start, stop in plan.segments(0, len(plan)):
        size = int(plan.batch_size[start])
        at_once = max(1, AT_ONCE // (BLOCK * size))
        for first in range(start, stop, at_once):
            yield from stream.integers(0, plan.n_train, size=(min(at_once, stop - first), BLOCK, size))
