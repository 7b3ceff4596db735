"""The real network along full-batch descent: how far its kernel moves, and with it the limit on the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._types import Progress
from sgdsde.dynamics.moments.state import march
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath, PathWalk, kernel_between
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

PARTS = (0.25, 0.5, 1.0)
"""Of the steps: where the kernel is made anew."""


@dataclass(frozen=True, eq=False)
class KernelPath:
    """Full-batch descent of the real network with the momentum, decay and schedule of an SGD.

    Attributes:
        losses: training loss at the recorded steps, [T]. drifts: |K_k - K_0| / |K_0| in Frobenius norm, by step.
        linearizations: with kernel and outputs of the training set at that step; of the test set those of the start.
    """

    losses: Tensor
    drifts: dict[int, float]
    linearizations: dict[int, Linearization]

    @property
    def drift(self) -> float:
        """The largest."""
        return max(self.drifts.values())


def kernel_path(linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress) -> KernelPath:
    """The path to the last recorded step, which must not be 0.

    Raises:
        ValueError: the path diverges; names the step.
    Cost: one full-batch gradient a step, three kernels.
    """
    problem, n_steps = linearization.problem, record[-1]
    at, wanted = {max(1, round(part * n_steps)) for part in PARTS}, set(record)
    walk = PathWalk(MeanPath.start(problem, sgd, sgd.plan(problem.n_train, n_steps)))
    losses, drifts, later = [], {}, {}
    start = linearization.dense_kernel
    for k in march(walk, sorted(at | wanted), "mean path", progress):
        reached = walk.path.outputs(k)[: problem.n_train]
        if k in wanted:
            losses.append(float(problem.criterion.mean(reached, problem.y_train)))
        if k in at:
            kernel = kernel_between(problem, walk.path.params, problem.x_train).to(start)
            drifts[k] = float((kernel - start).norm() / start.norm())
            cross, test_outputs = linearization.cross_kernel, linearization.test_outputs
            later[k] = Linearization(problem, kernel, cross, reached.to(start), test_outputs)
    return KernelPath(torch.tensor(losses, dtype=torch.float64), drifts, later)
