"""Criteria that look at the loss: its gradient (SNIP), and what removal does to the gradient (GraSP)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._checks import positive_number
from sgdsde._types import Params
from sgdsde.pruning.criteria import Criterion, Draw
from sgdsde.pruning.weights import Subject

ROWS = 256
"""Examples of one backward pass."""


@dataclass(frozen=True)
class SNIP(Criterion):
    """|w dL/dw|, the first-order change of the loss when the weight goes: the sensitivity of the loss to its mask.

    Normalization does not matter, and neither does where the scale of a layer stands.
    Source: Lee et al., arXiv:1810.02340. The authors prune biases too; here they stay.
    """

    needs_data: ClassVar[bool] = True

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        losses = Losses(subject, kept, draw, "SNIP")
        return {name: (losses.leaves[name].detach() * g).abs() for name, g in losses.gradient().items()}


@dataclass(frozen=True)
class GraSP(Criterion):
    """w (H g): kept are the weights whose removal would lower the gradient's norm most, so that training can go on.

    Shrinking w to (1 - e) w changes |g|^2 by -2 e w (H g): to preserve the gradient the largest -w (H g) must go. The
    authors' code and one fork remove this end, an older fork the opposite one.

    Args:
        temperature: T, the loss is taken at outputs / T. The authors' code has T = 200; its masks differ from those of
            T = 1 in a third of the weights kept.
    Source: Wang et al., arXiv:2002.07376.
    """

    temperature: float = 1.0
    needs_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_number("temperature", self.temperature)

    def _score(self, subject: Subject, kept: Params, draw: Draw) -> Params:
        losses = Losses(subject, kept, draw, "GraSP", temperature=self.temperature)
        product = losses.hessian_product(losses.gradient())
        return {name: losses.leaves[name].detach() * value for name, value in product.items()}


class Losses:
    """The mean loss of a problem as a function of the prunable weights, in float64, by blocks of examples."""

    def __init__(self, subject: Subject, kept: Params, draw: Draw, criterion: str, *, temperature: float = 1.0) -> None:
        assert subject.problem is not None
        self._subject, self._problem, self._temperature = subject, subject.problem, temperature
        self._x, self._y = subject.examples(criterion, draw.indices(subject.problem.n_train))
        self._rest = subject.rest()
        self.leaves = {name: (subject.values(name) * kept[name]).requires_grad_() for name in subject.weights}

    def gradient(self) -> Params:
        """dL/dw by name."""
        total = {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        for loss in self._blocks():
            self._accumulate(total, loss)
        return total

    def hessian_product(self, vectors: Params) -> Params:
        """H v by name, v by name."""
        total = {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        for loss in self._blocks():
            slopes = torch.autograd.grad(
                loss, list(self.leaves.values()), create_graph=True, allow_unused=True, materialize_grads=True
            )
            along = sum((slope * vectors[name]).sum() for name, slope in zip(self.leaves, slopes))
            assert isinstance(along, Tensor)
            if along.requires_grad:  # a loss that is linear in the weights has no second derivative
                self._accumulate(total, along)
        return total

    def _accumulate(self, total: Params, value: Tensor) -> None:
        leaves = list(self.leaves.values())
        slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        for name, slope in zip(self.leaves, slopes):
            total[name] += slope

    def _blocks(self) -> Iterator[Tensor]:
        """Shares of the mean loss."""
        criterion, n = self._problem.criterion, len(self._x)
        for start in range(0, n, ROWS):
            rows = slice(start, start + ROWS)
            with torch.enable_grad():
                outputs = self._subject.forward(self._rest | self.leaves, self._x[rows]) / self._temperature
                yield criterion.mean(outputs, self._y[rows]) * (len(self._x[rows]) / n)
