"""Losses as the theory needs them: a mean over examples, its value and its gradient at the outputs.

L = (1/n) sum_i l(f_i, y_i), in the normalization of the torch module that the user passed:

    nn.MSELoss()            l = |f - y|^2 / c,        gradient s (f - y) with s = 2/c
    nn.CrossEntropyLoss()   l = -log softmax(f)[y],   gradient softmax(f) - onehot(y)   (label smoothing included)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, finite_entries


class Loss(ABC):
    """A per-example loss; every shape may carry leading dimensions (runs, paths)."""

    @abstractmethod
    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """l(f_i, y_i): outputs [..., n, c] to [..., n]."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """r_i = d l_i / d f_i: [..., n, c]."""

    @abstractmethod
    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        """The targets of ``len(targets)`` examples, checked against one batch of outputs [., c]."""

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What the torch module returns on the whole set: [..., n, c] to [...]."""
        return self.per_example(outputs, targets).mean(-1)


@dataclass(frozen=True)
class SquaredError(Loss):
    """(s/2) |f - y|^2 a example, s = ``curvature``."""

    curvature: float

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().sum(-1) * (self.curvature / 2)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) * self.curvature

    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        expected = f"[{len(targets)}, {outputs.shape[1]}], the shape of the model's outputs"
        if not targets.is_floating_point():
            remedy = f"convert it with {name}.to({outputs.dtype})"
            if targets.ndim == 1:
                remedy = "for class labels use nn.CrossEntropyLoss(), or one-hot targets in floating point"
            raise TypeError(complaint(name, "floating-point under nn.MSELoss()", targets.dtype, remedy))
        if targets.ndim != 2 or targets.shape[1] != outputs.shape[1]:
            remedy = f"use {name}[:, None]" if targets.ndim == 1 else "match the model's last layer"
            raise ValueError(complaint(name, expected, list(targets.shape), remedy))
        if targets.dtype != outputs.dtype:
            raise TypeError(complaint(name, f"of the model's dtype {outputs.dtype}", targets.dtype))
        return finite_entries(name, targets)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-sum_a q_a log softmax(f)_a, q the smoothed one-hot target or the given probabilities."""

    label_smoothing: float = 0.0

    def probabilities(self, targets: Tensor, outputs: Tensor) -> Tensor:
        """The target distribution [..., n, c]."""
        if not targets.is_floating_point():
            # By comparison: torch's one_hot looks at the values and cannot be vectorized over runs.
            classes = torch.arange(outputs.shape[-1], device=targets.device)
            targets = (targets[..., None] == classes).to(outputs.dtype)
        return targets * (1 - self.label_smoothing) + self.label_smoothing / outputs.shape[-1]

    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -(self.probabilities(targets, outputs) * outputs.log_softmax(-1)).sum(-1)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        distribution = self.probabilities(targets, outputs)
        return outputs.softmax(-1) * distribution.sum(-1, keepdim=True) - distribution

    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        c = outputs.shape[1]
        if targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(complaint(name, "int64 class indices or probabilities", targets.dtype))
        if targets.is_floating_point():
            if targets.ndim != 2 or targets.shape[1] != c:
                remedy = "for class indices use .long()"
                raise ValueError(complaint(name, f"class probabilities [n, {c}]", list(targets.shape), remedy))
            finite_entries(name, targets)
            if targets.min() < 0 or (targets.sum(1) - 1).abs().max() > 1e-3:
                raise ValueError(complaint(name, "probabilities that add up to 1", "other numbers"))
            return targets.to(outputs.dtype)
        if targets.ndim != 1:
            raise ValueError(complaint(name, "class indices [n]", list(targets.shape), "use .squeeze(1)"))
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= c:
            raise ValueError(complaint(name, f"class indices in [0, {c})", f"values in [{low}, {high}]"))
        return targets.long()


def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether the output is on the target's side: same sign for one output, same largest entry for several.

    Args:
        outputs: [..., n, c]. targets: [n, c], or class indices [n].
    Returns:
        Booleans [..., n]; an output that is not finite is wrong.
    """
    if outputs.shape[-1] == 1 and targets.is_floating_point():
        right = (outputs * targets > 0)[..., 0]
    else:
        classes = targets.argmax(-1) if targets.is_floating_point() else targets
        right = outputs.argmax(-1) == classes
    return right & torch.isfinite(outputs).all(-1)


def as_loss(loss: object, n_outputs: int) -> Loss:
    """The torch loss module in the library's form.

    Raises:
        ValueError: a reduction other than "mean", class weights or an ignored index (each divides by something other
            than the number of examples). TypeError: any other loss.
    """
    if not isinstance(loss, nn.MSELoss | nn.CrossEntropyLoss):
        received = repr(loss) if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        remedy = "create the module, nn.MSELoss()" if isinstance(loss, type) else "other losses are not supported"
        raise TypeError(complaint("loss", "nn.MSELoss() or nn.CrossEntropyLoss()", received, remedy))
    if loss.reduction != "mean":
        remedy = "use reduction='mean' and multiply lr by the batch size"
        raise ValueError(complaint("loss.reduction", "'mean'", repr(loss.reduction), remedy))
    if isinstance(loss, nn.MSELoss):
        return SquaredError(2.0 / n_outputs)
    if loss.weight is not None:
        remedy = "it divides by the weights of each batch, which is no mean over examples"
        raise ValueError(complaint("loss.weight", "None", "class weights", remedy))
    if loss.ignore_index != -100:
        remedy = "remove these examples from the data"
        raise ValueError(complaint("loss.ignore_index", "unused", loss.ignore_index, remedy))
    return CrossEntropy(loss.label_smoothing)
