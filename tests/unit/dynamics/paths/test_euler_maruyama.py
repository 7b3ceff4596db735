"""Substeps of Euler's method: each sees the outputs as they are displaced at its own place within the step."""

from __future__ import annotations

import dataclasses
import math

import pytest
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


class Counted:
    """Uneven draws of three paths, others at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def normal(self, purpose: str, *shape: int) -> Tensor:
        self.calls += 1
        numbers = torch.arange(3 * shape[0], dtype=torch.float64).view(3, *shape)
        return torch.sin(7 * numbers + self.calls)


WORDS: dict[str, dict[str, object]] = {
    "with replacement": {},
    "without": {"sampling": "without_replacement"},
    "whole batches": {"sampling": "without_replacement", "batch_size": "all"},
    "schedule": {"lr": lambda k: 0.2 / (k + 1)},
}


@pytest.mark.parametrize("substeps", [1, 3])
@pytest.mark.parametrize("tested", [True, False], ids=["test set", "no test set"])
@pytest.mark.parametrize("name", WORDS)
def test_three_paths_step_by_step(name: str, tested: bool, substeps: int) -> None:
    """w' = w - lr r (1/n + sqrt(phi / (B n)) (xi - mean xi)), f = f_0 + K w, path after path."""
    problem = BY_NAME["two outputs, null space"].problem()
    if not tested:
        problem = dataclasses.replace(problem, x_test=None, y_test=None)
    one, n = sgdsde.linearize(problem), problem.n_train
    words = {"lr": 0.1, "batch_size": 2} | WORDS[name]
    words["batch_size"] = n if words["batch_size"] == "all" else words["batch_size"]
    sgd = sgdsde.SGD(**words)
    paths = EulerMaruyama(substeps=substeps).group(PathSetup(one, sgd, sgd.plan(n, 3), 0), range(3), Counted())
    paths.advance(0, 1)
    paths.advance(1, 3)
    draws, w = Counted(), torch.zeros(3, n * 2, dtype=torch.float64)
    left = {"with replacement": 1.0, "schedule": 1.0, "without": (n - 2) / (n - 1), "whole batches": 0.0}[name]
    for k in range(3):
        lr = (0.2 / (k + 1) if name == "schedule" else 0.1) / substeps
        for _ in range(substeps):
            xi = draws.normal("", n) if left else torch.zeros(3, n, dtype=torch.float64)
            for path in range(3):
                r = 2 / 2 * (one.outputs + (one.kernel @ w[path]).view(n, 2) - problem.y_train)
                noise = math.sqrt(left * substeps / (sgd.batch_size_at(k) * n)) * (xi[path] - xi[path].mean())
                w[path] -= lr * (r * (1 / n + noise)[:, None]).flatten()
    train, test = paths.outputs(3)
    torch.testing.assert_close(train, one.outputs + (w @ one.kernel).view(3, n, 2), rtol=1e-12, atol=1e-13)
    if tested:
        torch.testing.assert_close(
            test, one.test_outputs + (w @ one.cross_kernel.mT).view(3, 3, 2), rtol=1e-12, atol=1e-13
        )
    else:
        assert test is None
