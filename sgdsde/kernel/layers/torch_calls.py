"""The calls whose effect on a parameter is known: products, convolutions, look-ups, normalizations, scales, shifts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdsde.kernel.layers.parameter_uses import Alias, Geometry, Kind


@dataclass(frozen=True)
class Call:
    """A call as its handler reads it: y from ``source``, with tensors in the roles of weight and bias.

    Attributes:
        instead: makes the result in another way, where torch's own does not work under ``vmap``.
    """

    kind: Kind
    source: Callable[[], Tensor]
    weight: Tensor | None
    bias: Tensor | None = None
    flipped: bool = False
    geometry: Geometry | None = None
    ignored: int = -1
    view: tuple[int, ...] | None = None
    instead: Callable[[], Tensor] | None = None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    return Call("matrix", lambda: input, weight, bias)


def _matmul(input: Tensor, other: Tensor) -> Call | None:
    return Call("matrix", lambda: input, other, flipped=True) if other.ndim == 2 else None


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Call | None:
    if beta != 1 or alpha != 1 or input.shape != mat2.shape[1:]:
        return None
    return Call("matrix", lambda: mat1, mat2, input, flipped=True)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    kernel = tuple(weight.shape[2:])
    strides, dilations = _each(stride, kernel), _each(dilation, kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    else:
        pads = tuple((p, p) for p in _each(0 if padding == "valid" else padding, kernel))
    geometry = Geometry(kernel, strides, dilations, pads, groups)
    return Call("convolution", lambda: input, weight, bias, geometry=geometry)


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Call | None:
    return None if scale_grad_by_freq else Call("embedding", lambda: indices, weight, ignored=padding_idx)


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Call | None:
    return Call("scale", lambda: torch.layer_norm(input, normalized_shape, None, None, eps), weight, bias)


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Call | None:
    return Call("scale", lambda: torch.rms_norm(input, normalized_shape, None, eps), weight)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Call | None:
    def normalized() -> Tensor:
        return torch.group_norm(input, num_groups, None, None, eps)

    return Call("scale", normalized, weight, bias, view=_by_channel(input))


def _batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *rest: Any
) -> Call | None:
    if rest[0]:  # training: the statistics are those of the batch
        return None

    def normalized() -> Tensor:
        return torch.batch_norm(input, None, None, mean, variance, *rest)

    return Call("scale", normalized, weight, bias, view=_by_channel(input))


def _instance_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *rest: Any
) -> Call | None:
    def normalized() -> Tensor:
        return torch.instance_norm(input, None, None, mean, variance, *rest)

    return Call("scale", normalized, weight, bias, view=_by_channel(input))


def _prelu(input: Tensor, weight: Tensor) -> Call | None:
    shape = (1,) if weight.numel() == 1 else (weight.numel(), *(1 for _ in input.shape[2:]))
    return Call(
        "scale",
        lambda: input.clamp(max=0),
        weight,
        view=shape,
        instead=lambda: torch.where(input > 0, input, input * weight.view(shape)),
    )


def _by_channel(input: Tensor) -> tuple[int, ...]:
    return (input.shape[1], *(1 for _ in input.shape[2:]))


HANDLERS: dict[Callable[..., Any], Callable[..., Call | None]] = {
    torch.nn.functional.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    torch.embedding: _embedding,
    torch.layer_norm: _layer_norm,
    torch.rms_norm: _rms_norm,
    torch.group_norm: _group_norm,
    torch.batch_norm: _batch_norm,
    torch.instance_norm: _instance_norm,
    torch.prelu: _prelu,
}
"""Readers of the arguments of a call; None: not of a kind that is known here."""

SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
PRODUCTS = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}
QUOTIENTS = {torch.div, Tensor.div, Tensor.__truediv__}
VIEWS = {
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    Tensor.unsqueeze,
    torch.unsqueeze,
    Tensor.squeeze,
    torch.squeeze,
} | {
    Tensor.flatten,
    torch.flatten,
}
FLIPS = {Tensor.t, torch.t, Tensor.transpose, torch.transpose} | {
    vars(torch._C.TensorBase)[name].__get__ for name in ("T", "mT")
}


def read(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], alias: Callable[[Any], Any]) -> Any:
    """The call as one that is known, or None."""
    try:
        if func in SUMS or func in PRODUCTS:
            return _elementwise(func in SUMS, *args, alias=alias, **kwargs)
        handler = HANDLERS.get(func)
        return None if handler is None else handler(*args, **kwargs)
    except TypeError:  # arguments that the handler does not know
        return None


def _elementwise(is_sum: bool, input: Any, other: Any, *, alias: Callable[[Any], Any]) -> Call | None:
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return None
    x, parameter = (input, other) if alias(input) is None else (other, input)
    view = tuple(parameter.shape)
    if is_sum:
        return Call("scale", lambda: x, None, parameter, view=view)
    return Call("scale", lambda: x, parameter, view=view)


def derived(func: Callable[..., Any], args: tuple[Any, ...], result: Any, alias: Callable[[Any], Any]) -> Alias | None:
    """Alias of a parameter that a result is but for a number or its shape."""
    known = [(i, alias(value)) for i, value in enumerate(args) if alias(value) is not None]
    if len(known) != 1 or not isinstance(result, Tensor):
        return None
    (place, old), source = known[0], args[known[0][0]]
    if result.dtype != source.dtype or result.numel() != source.numel():
        return None
    shape = tuple(result.shape)
    if func in PRODUCTS and len(args) == 2 and isinstance(args[1 - place], (int, float)):
        return Alias(old.name, old.scale * args[1 - place], old.flipped, shape)
    if func in QUOTIENTS and len(args) == 2 and place == 0 and isinstance(args[1], (int, float)) and args[1]:
        return Alias(old.name, old.scale / args[1], old.flipped, shape)
    if func in VIEWS and not old.flipped and place == 0:
        return Alias(old.name, old.scale, False, shape)
    if (
        func in FLIPS
        and source.ndim == 2
        and result.stride() == source.stride()[::-1]
        and result.shape == source.mT.shape
    ):
        return Alias(old.name, old.scale, not old.flipped, shape)
    return None
