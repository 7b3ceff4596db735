"""The squared error: the loss under which the second moments of SGD close."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_entries
from sgdsde.losses.base import Loss, largest_entries, reshaping


@dataclass(frozen=True)
class SquaredError(Loss):
    """(s/2) |f - y|^2 an example, s = ``curvature``."""

    curvature: float

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1) * (self.curvature / 2)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) * self.curvature

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        identity = torch.eye(outputs.shape[-1], dtype=outputs.dtype, device=outputs.device)
        return (self.curvature * identity).expand(*outputs.shape, outputs.shape[-1])

    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        expected = f"[{len(targets)}, {outputs.shape[1]}], the shape of the model's outputs"
        if not targets.is_floating_point():
            remedy = f"convert it with {name}.to({outputs.dtype})"
            if targets.ndim == 1:
                remedy = "for class labels use nn.CrossEntropyLoss(), or one-hot targets in floating point"
            raise TypeError(complaint(name, "floating-point under nn.MSELoss()", targets.dtype, remedy))
        if targets.ndim != 2 or targets.shape[1] != outputs.shape[1]:
            raise ValueError(complaint(name, expected, list(targets.shape), reshaping(name, targets, outputs.shape[1])))
        if targets.dtype != outputs.dtype:
            raise TypeError(complaint(name, f"of the model's dtype {outputs.dtype}", targets.dtype))
        return finite_entries(name, targets)

    def labels(self, name: str, targets: Tensor, n_outputs: int) -> Tensor:
        if n_outputs > 1:
            return largest_entries(name, targets)
        if (targets == 0).any():
            expected = "of a sign, -1 or 1, where accuracy is asked for with one output"
            remedy = "code the classes as -1 and 1, or observe the loss only"
            raise ValueError(complaint(name, expected, f"0 at example {int((targets == 0).nonzero()[0, 0])}", remedy))
        return targets[:, 0].sign()
