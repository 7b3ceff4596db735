"""Layers of many runs at once, forward and backward by hand: every layer has weights of its own for each run.

Values are [runs, B, ...], parameters [runs, ...]. A ``delta`` is the gradient of a number at the values that a layer
returned. A layer may overwrite what it is told to own, and hands its results on to be overwritten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sgdsde._types import Params
from sgdsde.ensemble.rates import over

FULL_CHANNELS = 16
"""Channels of a delta from which on torch's backward pass of a convolution fills the registers of a CPU."""


class Layer(ABC):
    """One layer of every run; abstract."""

    names: tuple[str, ...] = ()
    """Its parameters."""

    @abstractmethod
    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        """Values behind the layer, and with ``keep`` what its backward pass needs; ``owned``: x may be overwritten."""

    @abstractmethod
    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        """The delta in front of the layer; overwrites delta where it can."""

    def gradients(self, delta: Tensor, kept: Any) -> Params:
        """Gradients of its parameters, [runs, ...]."""
        return {}

    def descend(self, state: Params, delta: Tensor, kept: Any) -> None:
        """Subtract the gradients from the parameters, in place."""
        for name, gradient in self.gradients(delta, kept).items():
            state[name].sub_(gradient)


@dataclass(frozen=True)
class Affine(Layer):
    """y = m W x + k b on the last axis."""

    weight: str
    bias: str | None = None
    multiplier: float = 1.0
    bias_multiplier: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        rows, weight = _rows(x), state[self.weight].mT
        if self.bias is None:
            y = _product(rows, weight, self.multiplier)
        else:
            bias = state[self.bias][:, None]
            y = torch.baddbmm(bias, rows, weight, beta=self.bias_multiplier, alpha=self.multiplier)
        return (y if x.ndim == 3 else y.unflatten(1, x.shape[1:-1])), rows

    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        pulled = _product(_rows(delta), state[self.weight], self.multiplier)
        return pulled if delta.ndim == 3 else pulled.unflatten(1, delta.shape[1:-1])

    def gradients(self, delta: Tensor, kept: Any) -> Params:
        rows = _rows(delta)
        found = {self.weight: _product(rows.mT, kept, self.multiplier)}
        if self.bias is not None:
            found[self.bias] = rows.sum(1).mul_(self.bias_multiplier)
        return found

    def descend(self, state: Params, delta: Tensor, kept: Any) -> None:
        rows = _rows(delta)
        state[self.weight].baddbmm_(rows.mT, kept, alpha=-self.multiplier)
        if self.bias is not None:
            state[self.bias].sub_(rows.sum(1), alpha=self.bias_multiplier)


@dataclass(frozen=True)
class Convolution(Layer):
    """A two-dimensional convolution, m W * x + k b, one run after the other: on a CPU faster than grouped channels."""

    weight: str
    bias: str | None = None
    multiplier: float = 1.0
    bias_multiplier: float = 1.0
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        images = [
            functional.conv2d(image, weight, None, self.stride, self.padding, self.dilation, self.groups)
            for image, weight in zip(x, self._scaled(state))
        ]
        y = _stacked(images)
        if self.bias is not None:
            bias = state[self.bias] if self.bias_multiplier == 1 else state[self.bias] * self.bias_multiplier
            y.add_(bias[:, None, :, None, None])
        return y, (x, state[self.weight].shape[1:])

    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        weights, padding = self._scaled(state), self._mirrored_padding(state[self.weight])
        if padding is not None:
            mirrored = weights.flip((-2, -1)).transpose(1, 2)
            pairs = zip(delta, mirrored)
            return _stacked([functional.conv2d(d, w, None, 1, padding, self.dilation) for d, w in pairs])
        parts = zip(delta, kept[0], weights)
        return _stacked([self._backward(d, x, w, (True, False, False))[0] for d, x, w in parts])

    def gradients(self, delta: Tensor, kept: Any) -> Params:
        x, shape = kept
        blank = delta.new_empty(shape)
        weights = [self._backward(d, image, blank, (False, True, False))[1] for d, image in zip(delta, x)]
        found = {self.weight: _times(_stacked(weights), self.multiplier)}
        if self.bias is not None:
            found[self.bias] = _times(delta.sum((1, 3, 4)), self.bias_multiplier)
        return found

    def _mirrored_padding(self, weight: Tensor) -> tuple[int, ...] | None:
        """Padding of the convolution with mirrored weights that pulls a delta back, or None where it is not one.

        Of few channels it is up to twice as fast as torch's own backward pass, of 16 or more as fast.
        """
        if self.groups != 1 or set(self.stride) != {1} or weight.shape[1] >= FULL_CHANNELS:
            return None
        edges = tuple(d * (size - 1) - p for d, size, p in zip(self.dilation, weight.shape[3:], self.padding))
        return edges if min(edges) >= 0 else None

    def _scaled(self, state: Params) -> Tensor:
        weight = state[self.weight]
        return weight if self.multiplier == 1 else weight * self.multiplier

    def _backward(self, delta: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]) -> Sequence[Tensor]:
        found: Sequence[Tensor] = torch.ops.aten.convolution_backward(
            delta, x, weight, None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups, wanted
        )
        return found


@dataclass(frozen=True)
class Flatten(Layer):
    """Every example as a row."""

    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        return x.flatten(2), x.shape

    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        return delta.reshape(kept)


@dataclass(frozen=True)
class FromOutput(Layer):
    """An activation whose derivative its values tell: ReLU, tanh, sigmoid."""

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]

    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        y = self.in_place(x) if owned else self.function(x)
        return y, y

    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        return self.backward(delta, kept)


@dataclass(frozen=True)
class PerExample(Layer):
    """A function of every example alone, without parameters, differentiated by autograd."""

    function: Callable[[Tensor], Tensor]

    def forward(self, state: Params, x: Tensor, *, owned: bool, keep: bool) -> tuple[Tensor, Any]:
        examples = x.flatten(0, 1)
        if not keep:
            return self.function(examples).unflatten(0, x.shape[:2]), None
        with torch.enable_grad():
            leaf = examples.detach().requires_grad_()
            y = self.function(leaf)
        return y.detach().unflatten(0, x.shape[:2]), (leaf, y)

    def pull(self, state: Params, delta: Tensor, kept: Any) -> Tensor:
        leaf, y = kept
        (found,) = torch.autograd.grad(y, leaf, delta.flatten(0, 1))
        return found.unflatten(0, delta.shape[:2])


def _relu_backward(delta: Tensor, y: Tensor) -> Tensor:
    found: Tensor = torch.ops.aten.threshold_backward.grad_input(delta, y, 0, grad_input=delta)
    return found


RELU = FromOutput(torch.relu, torch.relu_, _relu_backward)
TANH = FromOutput(torch.tanh, torch.tanh_, torch.ops.aten.tanh_backward)
SIGMOID = FromOutput(torch.sigmoid, torch.sigmoid_, torch.ops.aten.sigmoid_backward)


def _rows(values: Tensor) -> Tensor:
    """[runs, rows, features]: positions of an example are rows of their own."""
    return values if values.ndim == 3 else values.flatten(1, -2)


def _product(left: Tensor, right: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return torch.bmm(left, right)
    out = left.new_empty(len(left), left.shape[1], right.shape[2])
    return out.baddbmm_(left, right, beta=0, alpha=factor)


def _times(value: Tensor, factor: float) -> Tensor:
    return value if factor == 1 else value.mul_(factor)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of all runs; no copy of a single run."""
    return parts[0][None] if len(parts) == 1 else torch.stack(list(parts))


def shrink(state: Params, factor: Tensor) -> None:
    """Multiply every run's parameters by its own factor [runs], in place."""
    for value in state.values():
        value.mul_(over(factor, value))
