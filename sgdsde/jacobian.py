"""Per-example Jacobians of a network, one block of examples at a time.

J = df/dtheta at given parameters, [n*c, p] sample-major, kept as one matrix [b*c, p_k] a parameter tensor: the columns
of different tensors never have to be joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev

from sgdsde._functional import FunctionalModel, jacobian_row, vectorize
from sgdsde._types import Params

Blocks = dict[str, Tensor]
"""By parameter name: the Jacobian's columns of that parameter, [b*c, p_k]."""


def jacobian(functional: FunctionalModel, x: Tensor, *, params: Params | None = None) -> Blocks:
    """Jacobian of the outputs at the examples x, by parameter.

    Args:
        x: [b, ...]. params: where to linearize; default the model's own. A subset leaves the rest constant.
    Returns:
        Matrices [b*c, p_k], rows sample-major (entry i*c + a), in the model's dtype.
    Exactness: reverse-mode derivatives, to rounding.
    Cost: one forward pass and c backward passes an example, vectorized over both; b c p numbers, and while it runs
        the activations and some of their gradients for all outputs (``ExampleBytes``). Models that torch.func cannot
        vectorize: b c plain backward passes.
    """
    at = functional.params if params is None else params
    others = {name: value for name, value in functional.params.items() if name not in at}
    if not functional.vectorizes:
        return _by_rows(functional, at, others, x)
    stacked = vectorize(jacrev(_single_output(functional, others)), in_dims=(None, 0))(at, x)
    return {name: value.detach().reshape(-1, at[name].numel()) for name, value in stacked.items()}


def jacobian_product(functional: FunctionalModel, x: Tensor, direction: Params, *, rows: int) -> Tensor:
    """J v, [n, c] in float64, from blocks of ``rows`` examples; v as tensors by parameter name."""
    pieces = []
    for start in range(0, len(x), rows):
        total = torch.zeros((), dtype=torch.float64, device=functional.device)
        for name, block in jacobian(functional, x[start : start + rows]).items():
            vector = direction[name].flatten()
            for columns in column_pieces(block.shape[1]):
                total = total + block[:, columns].double() @ vector[columns].double()
        pieces.append(total)
    return torch.cat(pieces).view(len(x), -1)


def column_pieces(width: int) -> list[slice]:
    """The columns of a block, in pieces of which a copy in another dtype is small beside the block."""
    step = _piece(width)
    return [slice(start, start + step) for start in range(0, width, step)]


def _piece(width: int) -> int:
    return max(1024, -(-width // 32))


@dataclass(frozen=True)
class ExampleBytes:
    """Bytes that the Jacobian of one example takes.

    Attributes:
        held: the Jacobian itself. making: beside it while it is made. copying: a piece of it in float64.
    """

    held: int
    making: int
    copying: int

    @classmethod
    def of(cls, functional: FunctionalModel, params: Params, example: Tensor, n_outputs: int) -> ExampleBytes:
        """An upper estimate from one forward pass of one example [1, ...].

        While it is made the Jacobian stands beside the activations that the backward pass needs and a handful of
        gradients of the largest of them, for all outputs at once; 7 covers the networks that were measured (dense,
        convolutional, attention), of which convolutions take the most.
        """
        sizes = [value.numel() for value in params.values()]
        largest, total = activation_bytes(functional, example)
        width = min(max(sizes), _piece(max(sizes)))
        return cls(
            held=n_outputs * sum(sizes) * functional.dtype.itemsize,
            making=total + 7 * n_outputs * largest + 4 * example.numel() * example.dtype.itemsize + 16 * 1024,
            copying=8 * n_outputs * width,
        )


def activation_bytes(functional: FunctionalModel, x: Tensor) -> tuple[int, int]:
    """Bytes of the largest and of all tensors that the backward pass at x needs, parameters aside."""
    saved = {tensor.data_ptr(): tensor.nbytes for tensor in (x, functional.forward(functional.params, x))}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    leaves = {name: value.detach().requires_grad_() for name, value in functional.params.items()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.forward(leaves, x)
    for value in [*leaves.values(), *functional.constants.values()]:
        saved.pop(value.data_ptr(), None)
    return max(saved.values()), sum(saved.values())


def _single_output(functional: FunctionalModel, others: Params) -> Callable[[Params, Tensor], Tensor]:
    def output(params: Params, example: Tensor) -> Tensor:
        return functional.forward({**others, **params}, example[None])[0]

    return output


def _by_rows(functional: FunctionalModel, at: Params, others: Params, x: Tensor) -> Blocks:
    everything = {**others, **at}
    n_outputs = functional.forward(everything, x[:1]).shape[1]
    blocks = {name: value.new_empty(len(x) * n_outputs, value.numel()) for name, value in at.items()}
    basis = torch.eye(n_outputs, dtype=functional.dtype, device=functional.device)
    for i in range(len(x)):
        for a, cotangent in enumerate(basis):
            row = jacobian_row(functional, everything, x[i : i + 1], cotangent)
            for name, block in blocks.items():
                block[i * n_outputs + a] = row[name].flatten()
    return blocks
