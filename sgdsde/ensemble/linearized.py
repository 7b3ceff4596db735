"""SGD of the linearized model, in output space."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._streams import BLOCK
from sgdsde._types import Params
from sgdsde.ensemble.variants import Draw
from sgdsde.kernel import KernelOperator, StackedKernel, rows_times
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD


class LinearizedLearner:
    """The linearized model in output space: state = outputs [runs, n + m, c], train first.

    A step moves all outputs by -lr K(all, train) r(batch) / B, with r zero outside the batch.
    """

    label = "measured: SGD of the linearized model"

    def __init__(self, linearization: Linearization) -> None:
        self.problem = linearization.problem
        kernel, cross = linearization.kernel, linearization.cross_kernel
        self.kernel: Tensor | KernelOperator = kernel
        if isinstance(kernel, Tensor) and isinstance(cross, Tensor):
            self.kernel = torch.cat([kernel, cross])
        elif cross is not None:
            self.kernel = StackedKernel([kernel, cross])
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

    def weights(self, name: str, value: Tensor) -> Tensor:
        if self._offset is None:
            received = "a linearization without weight_outputs"
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", received, remedy))
        return value + self._offset

    def gradient(self, state: Params, draw: Draw, label_noise: Tensor | None) -> tuple[Params, Tensor]:
        n, c = self.problem.n_train, self.problem.n_outputs
        outputs, indices, weights = state["outputs"][:, :n], draw.indices, draw.weights
        runs, size = indices.shape
        if weights is None:
            weights = torch.full((), 1 / size, dtype=self.dtype, device=self.device).expand_as(indices)
        counts = torch.zeros(runs, n, dtype=self.dtype, device=self.device)
        counts.scatter_add_(1, indices, weights)
        residual = self.problem.criterion.gradient(outputs, self.targets)
        weighted = residual * counts[..., None]
        if label_noise is not None and isinstance(self.problem.criterion, SquaredError):
            places = indices[..., None].expand(-1, -1, c)
            weighted.scatter_add_(1, places, label_noise * (-self.problem.criterion.curvature * weights[..., None]))
        move = rows_times(weighted.reshape(runs, n * c), self.kernel)
        return {"outputs": move.view(runs, -1, c)}, residual.sum((1, 2))

    def all_outputs(self, state: Params) -> tuple[Tensor, Tensor | None]:
        outputs, n = state["outputs"], self.problem.n_train
        return outputs[:, :n], outputs[:, n:] if self.problem.n_test else None

    def runs_at_once(self, sgd: SGD, examples: int, memory: int | None, n_runs: int) -> int:
        per_run = 8 * self.initial.numel() * self.dtype.itemsize
        available = _memory.budget(memory, self.device)
        return _memory.rows_within(available, per_run, min(n_runs, 16 * BLOCK), "one run of the linearized model")
