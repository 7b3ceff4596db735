"""Substeps of Euler's method: each sees the outputs as they are displaced at its own place within the step."""

from __future__ import annotations

import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import EulerMaruyama
from sgdsde.dynamics.paths.integrators.integrator import PathSetup
from tests.problems import BY_NAME


class Still:
    """Draws without noise."""

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return torch.zeros(1, *shape, dtype=torch.float64)


class Ramp:
    """A displacement that grows by the same at every step."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope

    def at(self, step: float) -> Tensor:
        return step * self.slope


def test_a_substep_sees_the_displacement_at_its_own_place():
    problem = BY_NAME["two outputs, null space"].problem()
    one, sgd, n = sgdsde.linearize(problem), sgdsde.SGD(0.3, 2), problem.n_train
    slope = torch.linspace(-1, 1, (n + 3) * 2, dtype=torch.float64).view(n + 3, 2)
    setup = PathSetup(one, sgd, sgd.plan(n, 2), 0, Ramp(slope))
    paths = EulerMaruyama(substeps=4).group(setup, range(1), Still())
    paths.advance(0, 2)
    train, test = paths.outputs(2)
    w = torch.zeros(n * 2, dtype=torch.float64)
    for substep in range(8):
        outputs = one.outputs + (one.kernel @ w).view(n, 2) + substep / 4 * slope[:n]
        w -= 0.3 / 4 * (outputs - problem.y_train).flatten() / n
    torch.testing.assert_close(train[0], one.outputs + (one.kernel @ w).view(n, 2) + 2 * slope[:n])
    torch.testing.assert_close(test[0], one.test_outputs + (one.cross_kernel @ w).view(3, 2) + 2 * slope[n:])
