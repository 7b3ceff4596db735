"""Gradient confusion along training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._types import Progress
from sgdsde.dynamics.moments.state import march
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath, PathWalk
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.regimes.confusion import GradientConfusion, gradient_confusion
from sgdsde.sgd import SGD, check_sgd

RECORDED = 8
"""Steps at which it is measured when the caller names none."""


@dataclass(frozen=True, eq=False)
class ConfusionPath:
    """Gradient confusion along full-batch descent of the real network.

    Attributes:
        steps: [T], int64. losses: training loss there, [T]. confusions: one a step.
    """

    steps: Tensor
    losses: Tensor
    confusions: tuple[GradientConfusion, ...]

    @property
    def bounds(self) -> Tensor:
        """The confusion at each step, [T]."""
        return torch.tensor([each.bound for each in self.confusions], dtype=torch.float64)

    @property
    def largest(self) -> float:
        """The one number that the published theorem takes for the whole path."""
        return float(self.bounds.max())


def confusion_path(
    problem: Problem, sgd: SGD, n_steps: int, *, record: Sequence[int] | None = None, progress: Progress = None
) -> ConfusionPath:
    """Gradient confusion along full-batch descent with these words, the kernel made anew at every recorded step.

    Args:
        record: steps; default 8, geometric, with 0, 1 and n_steps.
    Raises:
        ValueError: the path diverges; names the step.
    Cost: one full-batch gradient a step, a kernel tile by tile a recorded step.
    """
    n_steps = whole_number("n_steps", n_steps)
    check_sgd(sgd)
    if record is None:
        spaced = np.geomspace(1, max(n_steps, 1), RECORDED - 1).round().astype(int)
        record = sorted({0, min(1, n_steps), n_steps, *(int(k) for k in spaced if k < n_steps)})
    steps = recorded_steps(n_steps, record)
    losses, found = [], []
    walk = PathWalk(MeanPath.start(problem, sgd, sgd.plan(problem.n_train, n_steps)))
    for k in march(walk, steps.tolist(), "gradient confusion", progress):
        outputs = walk.path.outputs(k)[: problem.n_train]
        losses.append(float(problem.criterion.mean(outputs, problem.y_train)))
        found.append(gradient_confusion(problem, params=walk.path.params))
    return ConfusionPath(steps, torch.tensor(losses, dtype=torch.float64), tuple(found))
