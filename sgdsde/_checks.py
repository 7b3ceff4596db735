"""Argument checks with one wording: what was expected, what came, what to do.

Every function returns the checked value in its canonical type, or raises ``ValueError`` (``TypeError`` for a value of
the wrong kind). The messages read ``{name} must be {expected}, got {received}; {remedy}``.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def complaint(name: str, expected: str, received: object, remedy: str = "") -> str:
    """The sentence that every check raises, for checks that live beside what they check."""
    sentence = f"{name} must be {expected}, got {received}"
    return f"{sentence}; {remedy}" if remedy else sentence


def finite_number(name: str, value: Any, remedy: str = "") -> float:
    """A finite real number as a float; booleans and complex numbers are refused."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(complaint(name, "a real number", f"{value!r} of type {type(value).__name__}", remedy))
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(complaint(name, "below 1.8e308", "a number beyond the range of float64", remedy)) from None
    if not math.isfinite(number):
        raise ValueError(complaint(name, "finite", value, remedy))
    return number


def positive_number(name: str, value: Any, remedy: str = "") -> float:
    """A finite number above zero."""
    number = finite_number(name, value, remedy)
    if number <= 0:
        raise ValueError(complaint(name, "positive", value, remedy))
    return number


def nonnegative_number(name: str, value: Any, remedy: str = "") -> float:
    """A finite number, zero allowed."""
    number = finite_number(name, value, remedy)
    if number < 0:
        raise ValueError(complaint(name, "zero or positive", value, remedy))
    return number


def fraction(name: str, value: Any, remedy: str = "") -> float:
    """A number in [0, 1]."""
    number = finite_number(name, value, remedy)
    if not 0 <= number <= 1:
        raise ValueError(complaint(name, "in [0, 1]", value, remedy))
    return number


def fraction_below_one(name: str, value: Any, remedy: str = "") -> float:
    """A number in [0, 1)."""
    number = finite_number(name, value, remedy)
    if not 0 <= number < 1:
        raise ValueError(complaint(name, "in [0, 1)", value, remedy))
    return number


def whole_number(name: str, value: Any, minimum: int = 0, remedy: str = "") -> int:
    """An integer not below ``minimum``; 8.0 is accepted as 8, 8.5 is refused."""
    number = finite_number(name, value, remedy)
    if number != int(number):
        raise ValueError(complaint(name, "a whole number", value, remedy))
    if number < minimum:
        raise ValueError(complaint(name, f"at least {minimum}", value, remedy))
    return int(value) if isinstance(value, numbers.Integral) else int(number)  # beyond 2**53 a float is another number


def word(name: str, value: Any, allowed: Iterable[str]) -> str:
    """One of a closed set of words."""
    options = tuple(allowed)
    if value not in options:
        raise ValueError(complaint(name, "one of " + ", ".join(map(repr, options)), repr(value)))
    return value


def real_floating(name: str, value: Any, remedy: str = "") -> Tensor:
    """A real floating-point tensor with only finite entries and no empty dimension."""
    if not isinstance(value, Tensor):
        raise TypeError(complaint(name, "a torch.Tensor", type(value).__name__, remedy or "use torch.as_tensor(...)"))
    if value.is_complex() or not value.is_floating_point():
        hint = remedy or f"convert it with {name}.to(torch.float32)"
        raise TypeError(complaint(name, "a real floating-point tensor", value.dtype, hint))
    nonempty(name, value)
    finite_entries(name, value)
    return value


def dense_tensor(name: str, value: Any) -> Tensor:
    """A tensor that holds each of its numbers; several tensors, sparse, quantized and nested ones are refused."""
    if not isinstance(value, Tensor):
        several = list(value.values()) if isinstance(value, dict) else value
        remedy = "use torch.as_tensor(...)"
        if isinstance(several, tuple | list) and any(isinstance(part, Tensor) for part in several):
            remedy = "join its tensors in one and split that in the forward of a module around the model"
        raise TypeError(complaint(name, "a torch.Tensor", type(value).__name__, remedy))
    if value.is_nested:
        raise TypeError(complaint(name, "a dense tensor", "a nested tensor", f"use {name}.to_padded_tensor(0.0)"))
    if value.is_quantized:
        raise TypeError(complaint(name, "a dense tensor", "a quantized tensor", f"use {name}.dequantize()"))
    if value.layout != torch.strided:
        raise TypeError(complaint(name, "a dense tensor", f"one of layout {value.layout}", f"use {name}.to_dense()"))
    return value


def nonempty(name: str, value: Tensor) -> Tensor:
    """A tensor with at least one entry."""
    if value.numel() == 0:
        raise ValueError(complaint(name, "non-empty", f"shape {list(value.shape)}", "pass at least one example"))
    return value


def finite_entries(name: str, value: Tensor) -> Tensor:
    """A tensor without NaN or infinity; the message counts the bad entries and gives the first."""
    if value.is_floating_point() and torch.isfinite(value.sum()):  # a finite sum has finite terms, and costs less
        return value
    bad = ~torch.isfinite(value)
    if bad.any():
        first = [int(i) for i in bad.nonzero()[0]]
        received = f"{int(bad.sum())} NaN or infinite entries, the first at index {first}"
        raise ValueError(complaint(name, "finite everywhere", received, "remove or repair these examples"))
    return value
