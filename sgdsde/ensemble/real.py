"""The network itself, trained for many runs at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from sgdsde import _memory
from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan

CPU_RUNS_AT_ONCE = 16
"""Runs stepped together on a CPU: beyond, weights fall out of the cache and nothing is gained."""


class RealLearner:
    """The network itself: state = parameters with a leading dimension of runs."""

    label = "measured: SGD"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.functional: FunctionalModel = problem.functional
        self.device, self.dtype = problem.device, problem.dtype
        self._gradient = grad_and_value(self._batch_loss)
        if self.functional.vectorizes:
            self._gradient = vmap(self._gradient)

    def start(self, n_runs: int) -> Params:
        return {name: value.expand(n_runs, *value.shape).clone() for name, value in self.problem.params.items()}

    def weights(self, name: str, value: Tensor) -> Tensor:
        return value

    def gradient(self, state: Params, indices: Tensor, label_noise: Tensor | None) -> tuple[Params, Tensor]:
        x, y = self.problem.x_train[indices], self.problem.y_train[indices]
        if label_noise is not None:
            y = y + label_noise
        if self.functional.vectorizes:
            return self._gradient(state, x, y)
        runs = [
            _plain_gradient(self._batch_loss, {name: value[i] for name, value in state.items()}, x[i], y[i])
            for i in range(len(indices))
        ]
        gradients = {name: torch.stack([gradient[name] for gradient, _ in runs]) for name in state}
        return gradients, torch.stack([loss for _, loss in runs])

    def outputs(self, state: Params, x: Tensor) -> Tensor:
        """[runs, n, c]."""
        with torch.no_grad():
            if self.functional.vectorizes:
                return vmap(self.problem.forward, in_dims=(0, None))(state, x)
            n_runs = len(next(iter(state.values())))
            runs = ({name: value[i] for name, value in state.items()} for i in range(n_runs))
            return torch.stack([self.problem.forward(params, x) for params in runs])

    def all_outputs(self, state: Params) -> tuple[Tensor, Tensor | None]:
        problem = self.problem
        test = None if problem.x_test is None else self.outputs(state, problem.x_test)
        return self.outputs(state, problem.x_train), test

    def runs_at_once(self, sgd: SGD, plan: StepPlan, memory: int | None, n_runs: int) -> int:
        batch = int(plan.batch_size.max()) if len(plan) else 1
        copies = 4 if sgd.momentum == 0 else 5
        evaluated = max(self.problem.n_train, self.problem.n_test)
        activations = _activation_numbers(self.functional, self.problem.x_train[:1]) * (3 * batch + evaluated)
        per_run = (copies * self.functional.n_params + activations) * self.dtype.itemsize
        most = n_runs if self.device.type == "cuda" else CPU_RUNS_AT_ONCE
        what = "one run (weights, gradients, activations)"
        return _memory.rows_within(_memory.budget(memory, self.device), per_run, min(n_runs, most), what)

    def _batch_loss(self, params: Params, x: Tensor, y: Tensor) -> Tensor:
        return self.problem.criterion.mean(self.problem.forward(params, x), y)


def _plain_gradient(
    loss: Callable[[Params, Tensor, Tensor], Tensor], params: Params, x: Tensor, y: Tensor
) -> tuple[Params, Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        value = loss(leaves, x, y)
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, gradients)), value.detach()


def _activation_numbers(functional: FunctionalModel, x: Tensor) -> int:
    """Numbers stored by the autograd graph of one example: every tensor saved for the backward pass, once."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    leaves = {name: value.detach().requires_grad_() for name, value in functional.params.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.forward(leaves, x)
    known = {value.data_ptr() for value in leaves.values()}
    return sum(size for pointer, size in saved.items() if pointer not in known) + x.numel()
