"""One weight, the same input for every example: the expected loss of SGD in closed form."""

from __future__ import annotations

import numpy as np

import sgdsde
from tests.problems import linear_problem

TARGETS = np.array([1.0, -0.5, 2.0, 0.25, -1.25, 0.5])
START = 4.0


def problem() -> sgdsde.Problem:
    """f = w for each of six examples, w_0 = 4, targets with mean 1/3 and variance 1.14."""
    return linear_problem(np.ones((6, 1, 1)), TARGETS[:, None], [START])


def expected_loss(lr: float, batch_size: int, step: np.ndarray | int) -> np.ndarray:
    """v + E (w_k - mean)^2, from w_{k+1} - mean = (1 - 2 lr)(w_k - mean) + 2 lr noise, noise of variance v / B."""
    shrink = (1 - 2 * lr) ** 2
    powers = shrink ** np.asarray(step, dtype=float)
    variance = TARGETS.var()
    moved = powers * (START - TARGETS.mean()) ** 2 + 4 * lr**2 * variance / batch_size * (1 - powers) / (1 - shrink)
    return variance + moved
