"""Tensors that require gradients and are none of the model's parameters: is SGD meant to move them? Nobody can tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel


def check_nothing_is_captured(functional: FunctionalModel, x: Tensor) -> None:
    """Compares what two calls at x [n, ...] differentiate besides the parameters; what a call makes itself is its own.

    Of a module nothing in its outputs may. A function of given parameters may add what it likes, as one that centers
    its outputs with the initial model does, but not decide the gradients of its parameters by it.

    Raises:
        ValueError: names the shape of the tensor.
    """
    first = _found(functional, x)
    second = _found(functional, x) if first else {}
    others = [leaf for key, leaf in first.items() if key in second]
    if others:
        received = f"a tensor {list(others[0].shape)} that requires gradients and is no parameter of the model"
        remedy = "make it one (nn.Parameter, nn.ParameterDict)" if functional.module else "pass it among the parameters"
        remedy = f"{remedy} if SGD trains it; if not, use its .detach()"
        raise ValueError(complaint("forward", "a function of the model's parameters and its input", received, remedy))


def _found(functional: FunctionalModel, x: Tensor) -> dict[int, Tensor]:
    """Leaves by their number, the parameters not among them; keeps them alive, so that no two calls share a number."""
    leaves = {name: value.detach().requires_grad_() for name, value in functional.params.items()}
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = functional.call(leaves, x)
        if not _leaves([outputs], leaves.values()):
            return {}
        if functional.module is not None:
            return _leaves([outputs], leaves.values())
        given = list(leaves.values())
        slopes = torch.autograd.grad(outputs.sum(), given, create_graph=True, allow_unused=True)
    return _leaves([slope for slope in slopes if slope is not None], given)


def _leaves(tensors: Iterable[Tensor], known: Iterable[Tensor]) -> dict[int, Tensor]:
    """The leaves that a backward pass from these tensors reaches, but for the known ones."""
    given, found = {id(value) for value in known}, dict[int, Tensor]()
    waiting: list[Any] = [value.grad_fn for value in tensors if value.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in given:
            found[id(leaf)] = leaf
        more = [other for other, _ in node.next_functions if other is not None and other not in seen]
        seen.update(more)
        waiting += more
    return found
