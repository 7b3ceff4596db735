"""A network some of whose weights are held at zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PrunedNetwork(nn.Module):
    """f(theta * mask, x): the masks are buffers, gradients pass through them, and removed weights are stored as zeros.

    Removed weights have no gradient, so that SGD with momentum and decay leaves them at zero, and the tangent kernel is
    that of the kept weights. ``Masks.apply`` makes one.

    Args:
        network: the network, which becomes a part of this module; its removed weights are set to zero.
        masks: bool tensors by parameter name, True = kept; shapes as the parameters'.
        factors: by parameter name, numbers that multiply the weights in the forward pass, of a shape that broadcasts
            against the weight; learning rates seen by the weights are multiplied by their squares.
    Raises:
        KeyError, AttributeError: a name that is no parameter.
    """

    def __init__(
        self, network: nn.Module, masks: Mapping[str, Tensor], factors: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self._names, factors = tuple(masks), factors or {}
        self._scaled = tuple(name for name in self._names if name in factors)
        self.train(network.training)
        for index, name in enumerate(self._names):
            value = _parameter(network, name)
            mask = masks[name].to(device=value.device, dtype=torch.bool)
            with torch.no_grad():
                value.masked_fill_(~mask, 0)
            self.register_buffer(f"mask_{index}", mask.clone())
            if name in factors:
                self.register_buffer(f"factor_{index}", factors[name].to(value).clone())

    def mask_tensors(self) -> dict[str, Tensor]:
        """The masks by the names that the parameters have in ``network``."""
        return {name: self.get_buffer(f"mask_{index}") for index, name in enumerate(self._names)}

    def factor_tensors(self) -> dict[str, Tensor]:
        """The factors of the forward pass by name, of the weights that have one."""
        places = {name: index for index, name in enumerate(self._names)}
        return {name: self.get_buffer(f"factor_{places[name]}") for name in self._scaled}

    def masked_weights(self) -> dict[str, Tensor]:
        """The pruned weights as the network's layers see them, by name, differentiable."""
        masks, factors = self.mask_tensors(), self.factor_tensors()
        weights = {name: _parameter(self.network, name) * mask for name, mask in masks.items()}
        return {name: value * factors[name] if name in factors else value for name, value in weights.items()}

    def forward(self, *inputs: Any) -> Any:
        return call_with(self.network, self.masked_weights(), inputs)

    def extra_repr(self) -> str:
        masks = self.mask_tensors().values()
        kept, total = sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)
        return f"density={kept / max(total, 1):.4g}"


def owned_copy(module: nn.Module) -> nn.Module:
    """A copy with tensors of its own, also where hooks (pruning, the older weight norm) left results on layers."""
    left = (value for layer in module.modules() for value in vars(layer).values() if isinstance(value, Tensor))
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in left if not value.is_leaf})


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], inputs: tuple[Any, ...]) -> Any:
    """``module(*inputs)`` with these tensors in place of parameters and buffers, wherever the module holds them.

    ``torch.func.functional_call`` leaves a replaced tensor behind in a layer that the module holds under two names.
    """
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for holder, local, name in _places(module):
            if name in tensors:
                replaced.append((holder, local, holder[local]))
                holder[local] = tensors[name]
        return module(*inputs)
    finally:
        for holder, local, value in replaced:
            holder[local] = value


def _places(module: nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    """Where each parameter and buffer is held: the dictionary, the key, and the first name of the tensor."""
    names: dict[int, str] = {}
    found = []
    for prefix, layer in module.named_modules():
        for holder in (layer._parameters, layer._buffers):
            for local, value in holder.items():
                if value is not None:
                    name = names.setdefault(id(value), f"{prefix}.{local}" if prefix else local)
                    found.append((holder, local, name))
    return found


def _parameter(network: nn.Module, name: str) -> Tensor:
    """By name; under ``functional_call`` the tensor that stands in its place."""
    layer, _, local = name.rpartition(".")
    value = network.get_submodule(layer)._parameters[local]
    assert value is not None
    return value
