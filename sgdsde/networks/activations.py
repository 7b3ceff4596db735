"""The activations that have a name, in one table for the networks and for mean-field theory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sgdsde._checks import complaint

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,  # slope 0.01, torch's default
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": functional.gelu,  # x Phi(x), not its tanh approximation
    "silu": functional.silu,
    "elu": functional.elu,
    "softplus": functional.softplus,  # torch continues it linearly above 20: an error of 2e-9
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
}
"""Elementwise functions by name, each exactly what the torch layer of that name computes with its defaults."""


def resolve_activation(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The elementwise function that an activation names; a callable or an ``nn.Module`` is returned as it is.

    Raises:
        ValueError: an unknown name, or a module that works in place (a residual stream would be overwritten).
        TypeError: a module class in place of a module, or something that cannot be called.
    """
    names = ", ".join(map(repr, ACTIVATIONS))
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            remedy = "pass any elementwise callable or nn.Module for another"
            raise ValueError(complaint("activation", f"one of {names}", repr(activation), remedy))
        return ACTIVATIONS[activation]
    if isinstance(activation, type):
        remedy = f"pass an instance: {activation.__name__}()"
        raise TypeError(complaint("activation", "a name, a callable or an nn.Module", activation, remedy))
    if not callable(activation):
        received = f"{activation!r} of type {type(activation).__name__}"
        raise TypeError(complaint("activation", f"a callable, an nn.Module or one of {names}", received))
    if isinstance(activation, nn.Module) and any(getattr(part, "inplace", False) for part in activation.modules()):
        remedy = "construct it with inplace=False"
        raise ValueError(complaint("activation", "a module that leaves its input alone", activation, remedy))
    return activation
