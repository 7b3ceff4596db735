"""The network itself, trained for many runs at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value

from sgdsde import _memory
from sgdsde._functional import FunctionalModel, value_and_gradient, vectorize
from sgdsde._types import Params
from sgdsde.ensemble.variants import Draw
from sgdsde.jacobian import activation_bytes
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

CPU_GROUP_BYTES = 2**22
"""Weights stepped together on a CPU: beyond, they fall out of the cache; below, the overhead of a call dominates."""

CPU_CACHE_BYTES = 2**20
"""Activations of one piece of an evaluation pass on a CPU: twice as fast as the whole set at once (width 1024)."""

CUDA_PIECE_BYTES = 2**28
"""Activations of one piece on a CUDA device, where only the number of launches matters."""


class RealLearner:
    """The network itself: state = parameters with a leading dimension of runs."""

    label = "measured: SGD"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.functional: FunctionalModel = problem.functional
        self.device, self.dtype = problem.device, problem.dtype
        self._activations = -(-activation_bytes(problem.functional, problem.x_train[:1])[1] // self.dtype.itemsize)
        self._gradient = grad_and_value(self._batch_loss)
        if self.functional.vectorizes:
            self._gradient = vectorize(self._gradient)

    def start(self, n_runs: int) -> Params:
        return {name: value.expand(n_runs, *value.shape).clone() for name, value in self.problem.params.items()}

    def weights(self, name: str, value: Tensor) -> Tensor:
        return value

    def gradient(self, state: Params, draw: Draw, label_noise: Tensor | None) -> tuple[Params, Tensor]:
        x, y = self.problem.x_train[draw.indices], self.problem.y_train[draw.indices]
        if label_noise is not None:
            y = y + label_noise
        data = (x, y) if draw.weights is None else (x, y, draw.weights)
        if self.functional.vectorizes:
            return self._gradient(state, *data)
        runs = [
            value_and_gradient(
                partial(_called_with, self._batch_loss, [part[i] for part in data]),
                {name: value[i] for name, value in state.items()},
            )
            for i in range(len(draw.indices))
        ]
        gradients = {name: torch.stack([gradient[name] for _, gradient in runs]) for name in state}
        return gradients, torch.stack([loss for loss, _ in runs])

    def outputs(self, state: Params, x: Tensor) -> Tensor:
        """[runs, n, c], in pieces whose activations stay in the cache: several runs, or part of one run's examples."""
        n_runs, n = len(next(iter(state.values()))), len(x)
        piece = CPU_CACHE_BYTES if self.device.type == "cpu" else CUDA_PIECE_BYTES
        examples = max(1, piece // (self._activations * self.dtype.itemsize))
        runs = min(n_runs, examples // n) if self.functional.vectorizes else 1
        with torch.no_grad():
            if runs > 1:
                forward = vectorize(self.problem.forward, in_dims=(0, None))
                groups = [{name: value[i : i + runs] for name, value in state.items()} for i in range(0, n_runs, runs)]
                return torch.cat([forward(group, x) for group in groups])
            alone = [{name: value[i] for name, value in state.items()} for i in range(n_runs)]
            parts = x.split(examples)
            return torch.stack([torch.cat([self.problem.forward(run, part) for part in parts]) for run in alone])

    def all_outputs(self, state: Params) -> tuple[Tensor, Tensor | None]:
        problem = self.problem
        test = None if problem.x_test is None else self.outputs(state, problem.x_test)
        return self.outputs(state, problem.x_train), test

    def runs_at_once(self, sgd: SGD, examples: int, memory: int | None, n_runs: int) -> int:
        copies = 4 if sgd.momentum == 0 else 5
        evaluated = (self.problem.n_train + self.problem.n_test) * self.problem.n_outputs
        numbers = copies * self.functional.n_params + 3 * examples * self._activations + 2 * evaluated
        per_run = numbers * self.dtype.itemsize
        in_cache = max(4, CPU_GROUP_BYTES // (self.functional.n_params * self.dtype.itemsize))
        most = n_runs if self.device.type == "cuda" else in_cache
        what = "one run (weights, gradients, activations)"
        return _memory.rows_within(_memory.budget(memory, self.device), per_run, min(n_runs, most), what)

    def _batch_loss(self, params: Params, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        outputs = self.problem.forward(params, x)
        if weights is None:
            return self.problem.criterion.mean(outputs, y)
        return self.problem.criterion.per_example(outputs, y) @ weights


def _called_with(loss: Callable[..., Tensor], data: list[Tensor], params: Params) -> Tensor:
    return loss(params, *data)
