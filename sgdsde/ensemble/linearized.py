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
from sgdsde.ensemble.rates import Update
from sgdsde.ensemble.stepper import gradient_at, taken
from sgdsde.kernel import KernelOperator, StackedKernel, rows_times
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

SUM = 0
"""Of torch's modes of a bag of columns."""


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Batches of K steps.

    Attributes:
        places: of outputs among all, [K, runs, B c]. targets: [K, runs, B, ...].
        factors: of the examples, weights and learning rates, [K, runs, B or 1, 1].
        starts: where each run's places begin in those of a step, [runs].
    """

    places: Tensor
    targets: Tensor
    factors: Tensor
    starts: Tensor


BAG_FRACTION = 1 / 4
"""Drawn examples, as a fraction of all, up to which picking their columns is faster than a product with all of them."""


class LinearizedLearner:
    """The linearized model in output space: state = outputs [runs, n + m, c], train first.

    A step moves all outputs by -lr K(all, batch) r(batch) / B. Of a kernel that is a matrix the columns of the batch
    are summed as they are, unless the batch is a large part of the training set; no run's weights are gathered.
    """

    label = "measured: SGD of the linearized model"

    def __init__(self, linearization: Linearization) -> None:
        self.problem = problem = linearization.problem
        self._d = problem.n_train * problem.n_outputs
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
        outputs = state["outputs"]
        rows = outputs.flatten(1)
        trained, finite = rows[:, : self._d], []
        alone = updates[0].is_plain and updates[0].decay is None
        drawn = self._drawn(batches, torch.stack([update.lr for update in updates]) if alone else None)
        for k, update in enumerate(updates):
            finite.append(trained.sum(1))
            moved = self._move(rows, drawn, k)
            if alone:
                rows.sub_(moved)
            else:
                decayed = None if update.decay is None else self._weights(outputs)
                update.apply(outputs, buffer["outputs"], moved.view(outputs.shape), decayed)
        return torch.stack(finite)

    def gradient(self, state: Params, batches: Batches) -> tuple[Params, Tensor]:
        """What the first of these batches moves the outputs by, for a learning rate of -1, and sums of the outputs."""
        outputs = state["outputs"]
        rows = outputs.flatten(1)
        moved = self._move(rows, self._drawn(batches), 0).view(outputs.shape)
        return {"outputs": moved}, rows[:, : self._d].sum(1)

    def _weights(self, outputs: Tensor) -> Tensor:
        if self._offset is None:
            received = "a linearization without weight_outputs"
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", received, remedy))
        return outputs + self._offset

    def _drawn(self, batches: Batches, lr: Tensor | None = None) -> _Drawn:
        """The batches of K steps, their moves times the learning rates [K, runs] if given."""
        indices, c = batches.indices, self.problem.n_outputs
        places = indices if c == 1 else (indices[..., None] * c + torch.arange(c, device=self.device)).flatten(2)
        targets = taken(self.targets, indices)
        if batches.label_noise is not None:
            targets = targets + batches.label_noise
        even = torch.full((1, 1), 1 / indices.shape[2], dtype=self.dtype, device=self.device)
        factors = even if batches.weights is None else batches.weights[..., None]
        if lr is not None:
            factors = factors * lr[..., None, None]
        factors = factors.expand(*indices.shape[:2], -1, -1)
        starts = torch.arange(0, places[0].numel(), places.shape[2], device=self.device)
        return _Drawn(places, targets, factors, starts)

    def _move(self, rows: Tensor, drawn: _Drawn, k: int) -> Tensor:
        """K(all, batch) r(batch) / B of every run, times its learning rate if there is one; [runs, (n + m) c]."""
        places, targets = drawn.places[k], drawn.targets[k]
        at = rows.gather(1, places).view(*targets.shape[:2], -1)
        residual = gradient_at(self.problem.criterion, at, targets).mul_(drawn.factors[k])
        return self._columns_times(places, residual.view(places.shape), drawn.starts)

    def _columns_times(self, places: Tensor, factors: Tensor, starts: Tensor) -> Tensor:
        """Sums of the kernel's columns [runs, rows], the columns at these places times these factors [runs, B c]."""
        if self._columns is not None and places.shape[1] <= BAG_FRACTION * self._d:
            flat, each = places.flatten(), factors.flatten()
            return torch.embedding_bag(self._columns, flat, starts, False, SUM, False, each)[0]
        counted = torch.zeros(len(places), self._d, dtype=factors.dtype, device=factors.device)
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
