"""Interface of a loss, and the criterion by which an output is right."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sgdsde._checks import complaint


class Loss(ABC):
    """A per-example loss; every shape may carry leading dimensions (runs, paths)."""

    @abstractmethod
    def per_example(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """l(f_i, y_i): outputs [..., n, c] to [..., n]."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """r_i = d l_i / d f_i: [..., n, c]."""

    @abstractmethod
    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """G_i = d^2 l_i / d f_i^2: [..., n, c, c], symmetric.

        Raises:
            ValueError: the loss has no second derivative; names it.
        """

    def averages(self, outputs: Tensor, weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Averages of r_i [n, c], G_i and r_i r_i^T [n, c, c] over outputs [p, n, c] with weights [p].

        Fastest where the outputs of each example lie together in memory.
        """
        gradient = self.gradient(outputs, targets)
        weighted = weights[:, None, None] * gradient
        hessian = torch.einsum("p,piab->iab", weights, self.hessian(outputs, targets))
        return weighted.sum(0), hessian, weighted.permute(1, 2, 0) @ gradient.transpose(0, 1)

    @abstractmethod
    def check_targets(self, name: str, targets: Tensor, outputs: Tensor) -> Tensor:
        """The targets of ``len(targets)`` examples, checked against one batch of outputs [., c]."""

    @abstractmethod
    def labels(self, name: str, targets: Tensor, n_outputs: int) -> Tensor:
        """Right answer of each example: a class index, or for one output the sign -1 or 1; [n].

        Raises:
            ValueError: under this loss, or with these targets, no output is right or wrong.
        """

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, as the torch module returns it on the whole set: [..., n, c] to [...]."""
        return self.per_example(outputs, targets).mean(-1)

    @property
    def kink(self) -> str:
        """The jump that was seen in the gradient, in words; empty where the loss has a second derivative."""
        return ""

    @property
    def fingerprint(self) -> str:
        """Identifier of this loss, the same in every process."""
        return repr(self)


def is_right(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the output agrees with the label: the class of the largest entry, or for real labels the sign.

    Args:
        outputs: [..., n, c]. labels: those of ``Loss.labels``, [n].
    Returns:
        Booleans [..., n]; an output that is not finite is wrong.
    """
    right = (outputs[..., 0] * labels > 0) if labels.is_floating_point() else outputs.argmax(-1) == labels
    return right & torch.isfinite(outputs).all(-1)


def in_dtype(targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Targets that are numbers in this dtype; classes as they are."""
    return targets.to(dtype) if targets.is_floating_point() else targets


def reshaping(name: str, targets: Tensor, n_outputs: int) -> str:
    """What to do about targets that are not [n, c]."""
    if targets.ndim > 2 and targets[0].numel() == n_outputs:
        return f"use {name}.flatten(1), the order of nn.Flatten() at the model's end"
    if targets.ndim == 1 and n_outputs == 1:
        return f"use {name}[:, None]"
    return f"let the model's last layer give {targets[0].numel()} outputs, or pass {n_outputs} targets an example"


def largest_entries(name: str, targets: Tensor) -> Tensor:
    """The class of each row of targets [n, c], [n]; a row without a single largest entry is refused."""
    top = targets.topk(min(2, targets.shape[1]), dim=1)
    if targets.shape[1] > 1:
        tied = top.values[:, 0] == top.values[:, 1]
        if tied.any():
            expected = "of rows with one largest entry, where accuracy is asked for"
            row = int(tied.nonzero()[0])
            raise ValueError(complaint(name, expected, f"row {row}: {targets[row].tolist()}", "observe the loss only"))
    return top.indices[:, 0]
