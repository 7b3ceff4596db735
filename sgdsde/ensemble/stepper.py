"""How several runs of one network are stepped together: the seam behind which the ways to do it are interchangeable.

``BatchedProducts`` for stacks of dense and convolutional layers, ``Vmapped`` for other networks that ``torch.func`` can
vectorize, ``Loop`` for those that it cannot. All of them take the same steps on the same batches, to rounding.
"""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from sgdsde._functional import value_and_gradient, vectorize
from sgdsde._types import Params
from sgdsde._vectorization import close
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.rates import Update
from sgdsde.losses import Loss, TorchLoss
from sgdsde.problem import Problem

logger = logging.getLogger(__name__)

CPU_CACHE_BYTES = 2**20
"""Activations of one piece of an evaluation pass on a CPU: twice as fast as the whole set at once (width 1024)."""

CUDA_PIECE_BYTES = 2**28
"""Activations of one piece on a CUDA device, where only the number of launches matters."""

CPU_GROUP_BYTES = 2**22
"""Weights stepped together by ``torch.func.vmap`` on a CPU: beyond, they fall out of the cache; below, the overhead of
a call dominates."""


class Stepper(ABC):
    """Steps and evaluations of several runs; abstract. A state holds parameters with a leading dimension of runs.

    Args:
        activations: numbers that one example keeps for a backward pass.
    """

    copies = 3
    """Tensors as large as the weights that a step makes for the runs that it moves."""

    def __init__(self, problem: Problem, activations: int) -> None:
        self.problem, self.activations = problem, activations

    @abstractmethod
    def gradient(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Params, Tensor]:
        """Gradients [runs, ...] of the mean losses of the batches x [runs, B, ...], and these losses [runs].

        Args:
            weights: of the examples, [runs, B], in place of 1/B.
        """

    @abstractmethod
    def outputs(self, state: Params, x: Tensor) -> Tensor:
        """Outputs [runs, n, c] of every run at the same examples x [n, ...]; no derivatives."""

    def runs_at_once(self, examples: int) -> int:
        """Runs whose step on batches of this size is fastest together on a CPU."""
        return max(4, CPU_GROUP_BYTES // (self.problem.functional.n_params * self.problem.dtype.itemsize))

    def advance(self, state: Params, buffer: Params, batches: Batches, updates: Sequence[Update]) -> Tensor:
        """Take one step a batch, in place. Returns the batch losses [K, runs]."""
        losses = []
        for k, update in enumerate(updates):
            x, y = self.batch(batches, k)
            gradients, loss = self.gradient(state, x, y, None if batches.weights is None else batches.weights[k])
            for name, value in state.items():
                update.apply(value, buffer[name], gradients[name])
            losses.append(loss)
        return torch.stack(losses)

    def batch(self, batches: Batches, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [runs, B, ...] of one step, label noise included."""
        y = taken(self.problem.y_train, batches.indices[k])
        return taken(self.problem.x_train, batches.indices[k]), y if batches.label_noise is None else (
            y + batches.label_noise[k]
        )

    @property
    def piece(self) -> int:
        """Activations of so many examples, over all runs, are made at once by an evaluation."""
        allowed = CPU_CACHE_BYTES if self.problem.device.type == "cpu" else CUDA_PIECE_BYTES
        return max(1, allowed // (self.activations * self.problem.dtype.itemsize))


class Vmapped(Stepper):
    """``torch.func.vmap`` over runs."""

    def __init__(self, problem: Problem, activations: int) -> None:
        super().__init__(problem, activations)
        self._gradient = vectorize(grad_and_value(partial(batch_loss, problem)))
        self._forward = vectorize(problem.forward, in_dims=(0, None))

    def gradient(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Params, Tensor]:
        found: tuple[Params, Tensor] = self._gradient(state, x, y, *(() if weights is None else (weights,)))
        return found

    def outputs(self, state: Params, x: Tensor) -> Tensor:
        n_runs, runs = count(state), self.piece // len(x)
        if runs <= 1:
            return one_by_one(self.problem, state, x, self.piece)
        with torch.no_grad():
            return torch.cat([self._forward(part(state, i, i + runs), x) for i in range(0, n_runs, runs)])


class Compiled(Vmapped):
    """``Vmapped`` whose gradients ``torch.compile`` turns into code, checked at its first step against the others.

    Where they cannot be compiled (no C++ compiler, an operation that torch cannot follow) or are others, this is said
    and the runs are stepped as by ``Vmapped``.
    """

    def __init__(self, problem: Problem, activations: int) -> None:
        super().__init__(problem, activations)
        each = grad_and_value(partial(batch_loss, problem))

        def gradients(*args: Tensor) -> tuple[Params, Tensor]:
            found: tuple[Params, Tensor] = vmap(each)(*args)
            return found

        # Torch compiles what has the same code a few times only, whatever it belongs to.
        own = FunctionType(gradients.__code__.replace(), globals(), closure=gradients.__closure__)
        self._compiled: Callable[..., tuple[Params, Tensor]] | None
        self._compiled = torch.compile(own, fullgraph=True, dynamic=False)
        self._checked: set[tuple[torch.Size, bool]] = set()

    def gradient(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Params, Tensor]:
        if self._compiled is not None:
            kind = x.shape, weights is None  # each has code of its own
            if kind not in self._checked:
                what = "compiling steps of %d runs with batches of %d: half a minute, seconds where torch kept them"
                logger.info(what, *x.shape[:2])
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the compiler's, about its own affairs
                    found = self._compiled(state, x, y, *(() if weights is None else (weights,)))
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                logger.warning("steps are not compiled, torch.compile failed with %s: %s", type(error).__name__, reason)
                self._compiled = None
            else:
                if kind in self._checked or self._is_right(found, super().gradient(state, x, y, weights)):
                    self._checked.add(kind)
                    return found
        return super().gradient(state, x, y, weights)

    def _is_right(self, found: tuple[Params, Tensor], expected: tuple[Params, Tensor]) -> bool:
        """Of the runs that are finite; else nothing is compiled from here on."""
        alive = torch.isfinite(expected[1])
        for value in expected[0].values():
            alive = alive & value.flatten(1).isfinite().all(1)
        one, other = ({**gradients, "loss": loss} for gradients, loss in (expected, found))
        same = not alive.any() or close(
            {name: value[alive] for name, value in one.items()}, {name: value[alive] for name, value in other.items()}
        )
        if not same:
            logger.warning("steps are not compiled: the compiled gradients are not those of the model")
            self._compiled = None
        return same


class Loop(Stepper):
    """One run after the other, by plain backward passes: for networks that ``vmap`` cannot take (recurrent layers)."""

    def gradient(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Params, Tensor]:
        runs = []
        for i in range(len(x)):
            data = (x[i], y[i]) if weights is None else (x[i], y[i], weights[i])
            alone = {name: value[i] for name, value in state.items()}
            runs.append(value_and_gradient(partial(_of_params, self.problem, data), alone))
        gradients = {name: torch.stack([gradient[name] for _, gradient in runs]) for name in state}
        return gradients, torch.stack([loss for loss, _ in runs])

    def outputs(self, state: Params, x: Tensor) -> Tensor:
        return one_by_one(self.problem, state, x, self.piece)


def batch_loss(problem: Problem, params: Params, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Loss of one run's batch: the mean, or the weighted sum of the examples' losses."""
    outputs = problem.forward(params, x)
    if weights is None:
        return problem.criterion.mean(outputs, y)
    return problem.criterion.per_example(outputs, y) @ weights


def _of_params(problem: Problem, data: tuple[Tensor, ...], params: Params) -> Tensor:
    return batch_loss(problem, params, *data)


def one_by_one(problem: Problem, state: Params, x: Tensor, piece: int) -> Tensor:
    """Outputs [runs, n, c] by plain calls, for so many examples at once."""
    with torch.no_grad():
        alone = [{name: value[i] for name, value in state.items()} for i in range(count(state))]
        return torch.stack([torch.cat([problem.forward(run, rows) for rows in x.split(piece)]) for run in alone])


def gradient_at(criterion: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Gradient of every example's loss at its outputs, [runs, B, c], for targets [runs, B, ...]."""
    if not isinstance(criterion, TorchLoss):
        return criterion.gradient(outputs, targets)
    return criterion.gradient(outputs.flatten(0, 1), targets.flatten(0, 1)).view(outputs.shape)


def taken(values: Tensor, indices: Tensor) -> Tensor:
    """values[indices], [*indices.shape, ...], by the fastest call for it."""
    return values.index_select(0, indices.flatten()).unflatten(0, indices.shape)


def count(state: Params) -> int:
    """Number of runs of a state."""
    return len(next(iter(state.values())))


def part(state: Params, start: int, stop: int) -> Params:
    """Some of the runs of a state, in the same memory."""
    return {name: value[start:stop] for name, value in state.items()}
