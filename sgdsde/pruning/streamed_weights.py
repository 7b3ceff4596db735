"""Weights made for each call of a linear pass, and again for its backward pass: never all of them at a time."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.pruning.weights import Subject


class StreamedWeights(Mapping[str, Tensor], ABC):
    """What stands for each weight by name, and what becomes of the gradient that reaches it; abstract.

    Use it in ``linear_outputs`` inside ``with streamed.recomputed()``, then call ``backward`` on the result.
    """

    def __init__(self, names: Mapping[str, object]) -> None:
        self._names = tuple(names)
        self._trigger = torch.zeros((), requires_grad=True)
        self._made: tuple[Callable[[], Tensor | None], str] | None = None

    @abstractmethod
    def value(self, name: str) -> Tensor:
        """A new tensor, the same at each call."""

    @abstractmethod
    def receive(self, name: str, slope: Tensor) -> None:
        """The gradient at one call."""

    def __getitem__(self, name: str) -> Tensor:
        made: Tensor = _Streamed.apply(self._trigger, self, name)
        self._made = (weakref.ref(made), name)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def recomputed(self) -> torch.autograd.graph.saved_tensors_hooks:
        """Keeps backward passes from holding these weights."""

        def pack(tensor: Tensor) -> Any:
            reference, name = self._made or (_nothing, "")
            made = reference()  # None once it is gone, and its memory another tensor's
            is_made = made is not None and made.data_ptr() == tensor.data_ptr() and made.numel() == tensor.numel()
            return (name, tensor.shape, tensor.stride()) if is_made else tensor

        def unpack(packed: Any) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            name, shape, stride = packed
            return self.value(name).as_strided(shape, stride)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _nothing() -> None:
    """What a dead reference returns."""


class _Streamed(torch.autograd.Function):
    """The weights of one call; their gradient is received and goes no further."""

    @staticmethod
    def forward(ctx: Any, trigger: Tensor, weights: StreamedWeights, name: str) -> Tensor:
        ctx.weights, ctx.name = weights, name
        return weights.value(name)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[None, None, None]:
        ctx.weights.receive(ctx.name, slope)
        return None, None, None


def powered(values: Tensor, kept: Tensor | None, power: int) -> Tensor:
    """|w|^p where kept, zero elsewhere, a new tensor."""
    result = values.abs()
    result = result if power == 1 else result.pow_(power)
    return result if kept is None else result.mul_(kept)


ROWS = 64
"""Rows of a weight that are made at once."""


class FlowWeights(StreamedWeights):
    """|w|^p of the kept weights; the scores |w|^p dR/d(|w|^p) gather in ``scores``."""

    def __init__(self, subject: Subject, kept: Params, power: int) -> None:
        super().__init__(subject.weights)
        self._subject, self._kept, self._power = subject, kept, power
        self.scores: Params = {}

    def value(self, name: str) -> Tensor:
        return powered(self._subject.values(name), self._kept.get(name), self._power)

    def receive(self, name: str, slope: Tensor) -> None:
        share = torch.empty_like(slope)
        values, kept = self._subject.values(name), self._kept[name]
        for row in range(0, len(slope), ROWS):
            some = slice(row, row + ROWS)
            torch.mul(powered(values[some], kept[some], self._power), slope[some], out=share[some])
        self.scores[name] = self.scores[name].add_(share) if name in self.scores else share


class LiveWeights(StreamedWeights):
    """1 for the kept weights; those that a gradient reaches gather in ``live``."""

    def __init__(self, masks: Params) -> None:
        super().__init__(masks)
        self._masks = masks
        self.live: Params = {name: torch.zeros_like(mask) for name, mask in masks.items()}

    def value(self, name: str) -> Tensor:
        return self._masks[name].to(torch.float64)

    def receive(self, name: str, slope: Tensor) -> None:
        self.live[name] |= self._masks[name] & (slope > 0)
