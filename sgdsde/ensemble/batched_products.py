"""Steps of stacks of layers by batched matrix products, forward, backward and update by hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sgdsde._fidelity import draws
from sgdsde._functional import pulled
from sgdsde._types import Params
from sgdsde._vectorization import close
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.chain import chain_of
from sgdsde.ensemble.layers import Convolution, Layer, shrink
from sgdsde.ensemble.rates import Update
from sgdsde.ensemble.stepper import Stepper, count, gradient_at, part, taken
from sgdsde.problem import Problem

logger = logging.getLogger(__name__)

CPU_BLOCK_BYTES = 2**21
"""Weights, gradients and activations of the runs stepped together on a CPU: about what stays in its second cache."""


class BatchedProducts(Stepper):
    """Steps of runs of one stack of layers: one batched product a layer and direction, weights moved by it in place."""

    copies = 2

    def __init__(self, problem: Problem, activations: int, chain: Sequence[Layer]) -> None:
        super().__init__(problem, activations)
        self._chain = chain
        first = min(i for i, layer in enumerate(chain) if layer.names)
        self._backwards = range(len(chain) - 1, first - 1, -1)

    @classmethod
    def of(cls, problem: Problem, activations: int) -> BatchedProducts | None:
        """The stepper of a problem whose network is a stack of known layers, or None.

        It is held against plain backward passes on a few examples and two sets of weights; where it is not theirs to
        rounding, which nothing that is known does, a warning is logged and the network is left to ``vmap``.
        """
        chain = chain_of(problem.functional)
        if chain is None or (problem.device.type == "cuda" and _has_convolutions(chain)):
            return None  # on CUDA the grouped convolutions of vmap need fewer launches than one run after the other
        stepper = cls(problem, activations, chain)
        if _agrees(stepper):
            return stepper
        logger.warning("the layers of the model, taken one by one, are not the model: runs are stepped by torch.func")
        return None

    def runs_at_once(self, examples: int) -> int:
        least = 1 if _has_convolutions(self._chain) else 4  # runs of convolutions follow each other anyway
        numbers = self.problem.functional.n_params + examples * self.activations
        return max(least, CPU_BLOCK_BYTES // (numbers * self.problem.dtype.itemsize))

    def gradient(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Params, Tensor]:
        with torch.no_grad():
            outputs, kept = self._forward(state, x)
            gradients = self._backward(state, self._delta(outputs, y, weights), kept)
            return gradients, self._losses(outputs, y, weights)

    def pulled(self, state: Params, x: Tensor, cotangents: Tensor) -> tuple[Tensor, Params]:
        """Outputs [runs, B, c] of the batches x, and gradients of ``cotangents . outputs``."""
        with torch.no_grad():
            outputs, kept = self._forward(state, x)
            return outputs, self._backward(state, cotangents.clone(), kept)

    def outputs(self, state: Params, x: Tensor) -> Tensor:
        n_runs, runs = count(state), max(1, self.piece // len(x))  # all examples of some runs, or some of one run
        found = []
        with torch.no_grad():
            for start in range(0, n_runs, runs):
                some = part(state, start, start + runs)
                pieces = [rows.expand(count(some), *rows.shape) for rows in x.split(self.piece)]
                found.append(torch.cat([self._forward(some, rows, keep=False)[0] for rows in pieces], 1))
        return torch.cat(found)

    def advance(self, state: Params, buffer: Params, batches: Batches, updates: Sequence[Update]) -> Tensor:
        if not all(update.is_plain for update in updates):
            return super().advance(state, buffer, batches, updates)
        y = taken(self.problem.y_train, batches.indices)
        if batches.label_noise is not None:
            y = y + batches.label_noise
        weights = batches.weights
        with torch.no_grad():
            outputs = []
            for k, update in enumerate(updates):
                x = taken(self.problem.x_train, batches.indices[k])
                outputs.append(self._descend(state, x, y[k], None if weights is None else weights[k], update))
            return self._losses(torch.stack(outputs), y, weights)

    def _descend(self, state: Params, x: Tensor, y: Tensor, weights: Tensor | None, update: Update) -> Tensor:
        """One step without momentum, in place; the outputs before it. The learning rates ride on the deltas."""
        outputs, kept = self._forward(state, x)
        delta = self._delta(outputs, y, weights).mul_(update.lr[:, None, None])
        left = None if update.decay is None else 1 - update.lr * update.decay
        for i in self._backwards:
            layer = self._chain[i]
            pulled = layer.pull(state, delta, kept[i]) if i > self._backwards[-1] else delta
            if left is not None:
                shrink({name: state[name] for name in layer.names}, left)
            layer.descend(state, delta, kept[i])
            delta = pulled
        return outputs

    def _forward(self, state: Params, x: Tensor, *, keep: bool = True) -> tuple[Tensor, list[Any]]:
        kept, owned = [], False
        for layer in self._chain:
            x, needed = layer.forward(state, x, owned=owned, keep=keep)
            kept.append(needed)
            owned = bool(layer.names)
        return x, kept

    def _backward(self, state: Params, delta: Tensor, kept: list[Any]) -> Params:
        found: Params = {}
        for i in self._backwards:
            found |= self._chain[i].gradients(delta, kept[i])
            if i > self._backwards[-1]:
                delta = self._chain[i].pull(state, delta, kept[i])
        return {name: found[name] for name in state}

    def _delta(self, outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        """Gradient of the batch losses at the outputs [runs, B, c]."""
        each = gradient_at(self.problem.criterion, outputs, y)
        return each / outputs.shape[1] if weights is None else each * weights[..., None]

    def _losses(self, outputs: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
        rows = outputs.flatten(0, -2), y.flatten(0, outputs.ndim - 2)
        each = self.problem.criterion.per_example(*rows).view(outputs.shape[:-1])
        return each.mean(-1) if weights is None else (each * weights).sum(-1)


def _has_convolutions(chain: Sequence[Layer]) -> bool:
    return any(isinstance(layer, Convolution) for layer in chain)


def _agrees(stepper: BatchedProducts) -> bool:
    """Whether outputs and gradients are those of plain calls, for two runs away from the start and from each other."""
    functional, x = stepper.problem.functional, stepper.problem.x_train[:3]
    batches, first = torch.stack([x, x.flip(0)]), next(iter(functional.params.values()))
    state = {
        name: value + 0.1 * (value.abs().amax() + 0.1) * draws(2, *value.shape, like=value)
        for name, value in functional.params.items()
    }
    cotangents = draws(*batches.shape[:2], stepper.problem.n_outputs, like=first)
    try:
        outputs, gradients = stepper.pulled(state, batches, cotangents)
        evaluated = stepper.outputs(state, x)
    except RuntimeError:  # shapes that the layers take and these do not
        return False
    each = [{name: value[i] for name, value in state.items()} for i in range(2)]
    alone = [pulled(functional, each[i], batches[i], cotangents[i : i + 1]) for i in range(2)]
    expected = {name: torch.stack([found[0][name] for _, found in alone]) for name in state}
    values = torch.stack([alone[0][0], alone[1][0], alone[0][0], alone[1][0].flip(0)])
    return close(expected, gradients) and close({"": values}, {"": torch.cat([outputs, evaluated])})
