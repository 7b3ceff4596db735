"""Uses of parameters in a model: the operation of a call, and its shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["matrix", "convolution", "embedding", "scale"]
"""y = x W^T, a convolution of x with W, rows of W picked by x, or x * w with broadcasting; a bias may be added."""


@dataclass(frozen=True)
class Alias:
    """A tensor that is a parameter but for a number and its shape.

    Attributes:
        name: of the parameter. scale: tensor = scale * parameter. flipped: a matrix with rows and columns exchanged.
        shape: of the tensor.
    """

    name: str
    scale: float
    flipped: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Geometry:
    """A convolution: per axis of space kernel, stride, dilation and padding (before, after), and its groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int

    def patches(self, x: Tensor) -> Tensor:
        """Input patch of each output position, [m, groups, q, positions], of images [m, channels, ...]."""
        dims = len(self.kernel)
        x = torch.nn.functional.pad(x, [size for pair in reversed(self.padding) for size in pair])
        steps = zip(x.shape[2:], self.kernel, self.stride, self.dilation)
        places = [(size - d * (k - 1) - 1) // s + 1 for size, k, s, d in steps]
        strides = x.stride()[2:]
        shape = (*x.shape[:2], *self.kernel, *places)
        windows = x.as_strided(
            shape,
            (
                *x.stride()[:2],
                *(strides[i] * self.dilation[i] for i in range(dims)),
                *(strides[i] * self.stride[i] for i in range(dims)),
            ),
            x.storage_offset(),
        )
        return windows.reshape(len(x), self.groups, -1, math.prod(places))


@dataclass(frozen=True)
class Use:
    """A call that was seen, as it will be met again in every example.

    Attributes:
        weight, bias: the trainable parameters among its arguments, or None.
        outputs: shape of its result for one example.
        flipped: the weight is [q, o] where a linear layer has [o, q].
        ignored: the index of an embedding that has no gradient. view: shape in which a scale or bias is broadcast.
    """

    kind: Kind
    weight: Alias | None
    bias: Alias | None
    outputs: tuple[int, ...]
    inputs: tuple[int, ...] = ()
    flipped: bool = False
    geometry: Geometry | None = None
    ignored: int = -1
    view: tuple[int, ...] | None = None

    @property
    def width(self) -> tuple[int, int]:
        """(q, o): what one position sees, and what it gives, in one group."""
        if self.kind == "embedding" and self.weight is not None:
            return self.weight.shape[0], self.weight.shape[1]
        if self.geometry is not None:
            channels = 1 if len(self.outputs) == len(self.geometry.kernel) + 2 else 0
            groups = self.geometry.groups
            return (
                self.inputs[channels] // groups * math.prod(self.geometry.kernel),
                self.outputs[channels] // groups,
            )
        return (self.inputs[-1] if self.inputs else 1), self.outputs[-1]

    @property
    def groups(self) -> int:
        return 1 if self.geometry is None else self.geometry.groups

    @property
    def positions(self) -> int:
        """Number of places of one example at which the same weight acts."""
        return math.prod(self.outputs) // (self.width[1] * self.groups)
