"""SGD of the linearized model, in output space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._types import Params
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.layout import Needs
from sgdsde.ensemble.rates import Update, over
from sgdsde.ensemble.stepper import gradient_at, taken
from sgdsde.kernel import KernelOperator, StackedKernel, rows_times
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

SUM = 0
"""Of torch's modes of a bag of columns."""


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Batches of K steps: places of outputs among all [K, runs, B c], targets [K, runs, B, c], weights or None."""

    places: Tensor
    targets: Tensor
    weights: Tensor | None


BAG_FRACTION = 1 / 4
"""Drawn examples, as a fraction of all, up to which picking their columns is faster than a product with all of them."""


class LinearizedLearner:
    """The linearized model in output space: state = outputs [runs, n + m, c], train first.

    A step moves all outputs by -lr K(all, batch) r(batch) / B. Of a kernel that is a matrix the columns of the batch
    are summed as they are, unless the batch is a large part of the training set; no run's weights are gathered.
    """

    label = "measured: SGD of the linearized model"

    def __init__(self, linearization: Linearization) -> None:
        self.problem = linearization.problem
        kernel, cross = linearization.kernel, linearization.cross_kernel
        self.kernel: KernelOperator | None = None
        self._columns: Tensor | None = None  # [n*c, (n + m)*c]
        if isinstance(kernel, Tensor) and (cross is None or isinstance(cross, Tensor)):
            self._columns = _transposed(kernel, cross)
        else:
            self.kernel = StackedKernel([kernel] if cross is None else [kernel, cross])
        outputs, test = linearization.outputs, linearization.test_outputs
        self.initial = outputs if test is None else torch.cat([outputs, test])
        self.targets = linearization.targets
        weights, test_weights = linearization.weight_outputs, linearization.test_weight_outputs
        self._offset = None
        if weights is not None:
            self._offset = (weights if test_weights is None else torch.cat([weights, test_weights])) - self.initial
        self.device, self.dtype = outputs.device, outputs.dtype

    def start(self, n_runs: int) -> Params:
        return {"outputs": self.initial.expand(n_runs, *self.initial.shape).clone()}

    def advance(self, state: Params, buffer: Params, batches: Batches, updates: Sequence[Update]) -> Tensor:
        """One step a batch, in place. Returns [K, runs], finite where the outputs at the training set are."""
        finite, outputs, drawn = [], state["outputs"], self._drawn(batches)
        for k, update in enumerate(updates):
            finite.append(outputs[:, : self.problem.n_train].sum((1, 2)))
            if update.is_plain and update.decay is None:
                outputs.sub_(self._move(outputs, drawn, k, update.lr))
                continue
            decayed = None if update.decay is None else self._weights(outputs)
            update.apply(outputs, buffer["outputs"], self._move(outputs, drawn, k), decayed)
        return torch.stack(finite)

    def gradient(self, state: Params, batches: Batches) -> tuple[Params, Tensor]:
        """What the first of these batches moves the outputs by, for a learning rate of -1, and sums of the outputs."""
        outputs = state["outputs"]
        return {"outputs": self._move(outputs, self._drawn(batches), 0)}, outputs[:, : self.problem.n_train].sum((1, 2))

    def _weights(self, outputs: Tensor) -> Tensor:
        if self._offset is None:
            received = "a linearization without weight_outputs"
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", received, remedy))
        return outputs + self._offset

    def _drawn(self, batches: Batches) -> _Drawn:
        indices, c = batches.indices, self.problem.n_outputs
        places = indices if c == 1 else (indices[..., None] * c + torch.arange(c, device=self.device)).flatten(2)
        targets = taken(self.targets, indices)
        if batches.label_noise is not None:
            targets = targets + batches.label_noise
        return _Drawn(places, targets, batches.weights)

    def _move(self, outputs: Tensor, drawn: _Drawn, k: int, lr: Tensor | None = None) -> Tensor:
        """K(all, batch) r(batch) / B of every run, times its learning rate if given; [runs, n + m, c]."""
        places, targets = drawn.places[k], drawn.targets[k]
        at = outputs.flatten(1).gather(1, places).view(targets.shape[0], -1, self.problem.n_outputs)
        residual = gradient_at(self.problem.criterion, at, targets)
        if drawn.weights is not None:
            residual.mul_(drawn.weights[k][..., None])
        elif lr is None:
            residual.mul_(1 / targets.shape[1])
        else:
            lr = lr / targets.shape[1]
        if lr is not None:
            residual.mul_(over(lr, residual))
        return self._columns_times(places, residual.flatten(1)).view(outputs.shape)

    def _columns_times(self, places: Tensor, factors: Tensor) -> Tensor:
        """Sums of the kernel's columns [runs, rows], the columns at these places times these factors [runs, B c]."""
        d = self.problem.n_train * self.problem.n_outputs
        if self._columns is not None and places.shape[1] <= BAG_FRACTION * d:
            starts = torch.arange(0, places.numel(), places.shape[1], device=self.device)
            flat, each = places.flatten(), factors.flatten()
            return torch.embedding_bag(self._columns, flat, starts, False, SUM, False, each)[0]
        counted = torch.zeros(len(places), d, dtype=factors.dtype, device=factors.device)
        counted.scatter_add_(1, places, factors)
        if self._columns is not None:
            return counted @ self._columns
        assert self.kernel is not None
        return rows_times(counted, self.kernel)

    def all_outputs(self, state: Params) -> tuple[Tensor, Tensor | None]:
        outputs, n = state["outputs"], self.problem.n_train
        return outputs[:, :n], outputs[:, n:] if self.problem.n_test else None

    def needs(self, sgd: SGD, examples: int) -> Needs:
        """Bytes of one run with batches of so many examples."""
        copies, size = 2 if sgd.momentum else 1, self.dtype.itemsize
        held = copies * self.initial.numel() * size + 2 * examples * torch.int64.itemsize
        moved = (8 - copies) * self.initial.numel() * size
        return Needs(held, moved, None, "one run of the linearized model")


def _transposed(kernel: Tensor, cross: Tensor | None) -> Tensor:
    """[kernel; cross]^T in contiguous rows; a symmetric kernel alone as it is."""
    if cross is not None:
        return torch.cat([kernel.mT, cross.mT], dim=1)
    return kernel if kernel.is_contiguous() and torch.equal(kernel, kernel.mT) else kernel.mT.contiguous()
