"""The network itself, trained for many runs at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.ensemble.batched_products import BatchedProducts
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.layout import Needs
from sgdsde.ensemble.rates import Update
from sgdsde.ensemble.stepper import Compiled, Loop, Stepper, Vmapped
from sgdsde.jacobian import activation_bytes
from sgdsde.problem import Problem
from sgdsde.sgd import SGD


class RealLearner:
    """The network itself: state = parameters with a leading dimension of runs.

    Args:
        stepper: makes what steps the runs, of the problem and the numbers that an example keeps; default the fastest
            that the network allows. compiled: take ``Compiled`` in place of ``Vmapped``.
    """

    label = "measured: SGD"

    def __init__(
        self, problem: Problem, stepper: Callable[[Problem, int], Stepper] | None = None, *, compiled: bool = False
    ) -> None:
        self.problem, self.device, self.dtype = problem, problem.device, problem.dtype
        activations = -(-activation_bytes(problem.functional, problem.x_train[:1])[1] // self.dtype.itemsize)
        self.stepper = _fastest(problem, activations, compiled) if stepper is None else stepper(problem, activations)

    def start(self, n_runs: int) -> Params:
        return {name: value.expand(n_runs, *value.shape).clone() for name, value in self.problem.params.items()}

    def advance(self, state: Params, buffer: Params, batches: Batches, updates: Sequence[Update]) -> Tensor:
        return self.stepper.advance(state, buffer, batches, updates)

    def gradient(self, state: Params, batches: Batches) -> tuple[Params, Tensor]:
        """Gradients and losses of the first of these batches."""
        x, y = self.stepper.batch(batches, 0)
        return self.stepper.gradient(state, x, y, None if batches.weights is None else batches.weights[0])

    def all_outputs(self, state: Params) -> tuple[Tensor, Tensor | None]:
        problem, outputs = self.problem, self.stepper.outputs
        return outputs(state, problem.x_train), None if problem.x_test is None else outputs(state, problem.x_test)

    def needs(self, sgd: SGD, examples: int) -> Needs:
        """Bytes of one run with batches of so many examples; recorded steps keep theirs while others are evaluated."""
        problem, stepper = self.problem, self.stepper
        n_params = problem.functional.n_params
        evaluated = (problem.n_train + problem.n_test) * problem.n_outputs
        size = self.dtype.itemsize
        return Needs(
            held=(2 if sgd.momentum else 1) * n_params * size + 2 * examples * torch.int64.itemsize,
            moved=(stepper.copies * n_params + 3 * examples * stepper.activations + 2 * evaluated) * size,
            together=None if self.device.type == "cuda" else stepper.runs_at_once(examples),
            what="one run (weights, gradients, activations)",
        )


def _fastest(problem: Problem, activations: int, compiled: bool) -> Stepper:
    if not problem.functional.vectorizes:
        return Loop(problem, activations)
    found = BatchedProducts.of(problem, activations)
    return (Compiled if compiled else Vmapped)(problem, activations) if found is None else found
