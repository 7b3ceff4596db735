"""Checks of a kernel's inputs, before anything is computed from them."""

from __future__ import annotations

from typing import Any

from sgdsde._checks import complaint, dense_tensor, finite_entries, nonempty
from sgdsde._functional import FunctionalModel


def check_inputs(functional: FunctionalModel, x1: Any, x2: Any = None) -> None:
    """Raise ``TypeError`` or ``ValueError``, by name, for inputs that are not finite tensors as the model takes them.

    Args:
        x1: [n1, ...]. x2: [n2, ...] with examples of the same shape, or None.
    """
    for name, x in (("x1", x1), ("x2", x2)):
        if name == "x1" or x is not None:
            _check(functional, name, x)
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        raise ValueError(complaint("x2", f"examples of shape {list(x1.shape[1:])} like x1", list(x2.shape[1:])))


def _check(functional: FunctionalModel, name: str, x: Any) -> None:
    nonempty(name, dense_tensor(name, x))
    if x.is_complex() or (x.is_floating_point() and x.dtype != functional.dtype):
        raise TypeError(complaint(name, f"of the model's dtype {functional.dtype}", x.dtype))
    if x.device != functional.device:
        raise ValueError(complaint(name, f"on the model's device {functional.device}", x.device))
    if x.is_floating_point():
        finite_entries(name, x)
