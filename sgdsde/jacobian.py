"""Per-example Jacobians of a network, one block of examples at a time.

J = df/dtheta at given parameters, [n*c, p] sample-major, kept as one matrix [b*c, p_k] a parameter tensor: the columns
of different tensors never have to be joined.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, jvp
from torch.overrides import BaseTorchFunctionMode, TorchFunctionMode

from sgdsde._fidelity import tensors
from sgdsde._functional import FunctionalModel, jacobian_row, pulled, vectorize
from sgdsde._types import Params

logger = logging.getLogger(__name__)

Blocks = dict[str, Tensor]
"""Columns of the Jacobian by parameter name, [b*c, p_k]."""


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
    """J v, [n, c] in float64, at most ``rows`` examples at a time; v as tensors by parameter name.

    Exactness: forward-mode derivatives in the model's dtype, where they agree with a backward pass on two examples,
        u . J v = J^T u . v; products with the Jacobian itself elsewhere (layers without forward-mode derivatives).
    Cost: about two forward passes; elsewhere that of the Jacobian.
    """
    direction = {name: direction[name] for name in functional.params}
    if _has_forward_mode(functional, x[[0, -1]], direction):
        product, step = _forward_product, min(rows, 256)  # more examples at once take memory and no less time
    else:
        product, step = _dense_product, min(rows, 8)
    return torch.cat([product(functional, x[start : start + step], direction) for start in range(0, len(x), step)])


def _forward_product(functional: FunctionalModel, x: Tensor, direction: Params) -> Tensor:
    # Attention takes a way without forward-mode derivatives in inference, but not while a mode watches.
    with torch.no_grad(), warnings.catch_warnings(), BaseTorchFunctionMode():
        # The first forward-mode call of a process compiles decompositions in a way that torch itself deprecates.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        tangent: Tensor = jvp(lambda params: functional.forward(params, x), (functional.params,), (direction,))[1]
    return tangent.double()


def _dense_product(functional: FunctionalModel, x: Tensor, direction: Params) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=functional.device)
    for name, block in jacobian(functional, x).items():
        vector = direction[name].flatten()
        for columns in column_pieces(block.shape[1]):
            total = total + block[:, columns].double() @ vector[columns].double()
    return total.view(len(x), -1)


def _has_forward_mode(functional: FunctionalModel, x: Tensor, direction: Params) -> bool:
    """Whether J v at two examples agrees with one plain backward pass, up to rounding."""
    try:
        forward = _forward_product(functional, x, direction)
    except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
        logger.info("no forward-mode derivatives: %s", error)
        return False
    weights = torch.cos(torch.arange(1.0, forward.numel() + 1, dtype=functional.dtype, device=functional.device))
    _, (gradient,) = pulled(functional, functional.params, x, weights.view(1, *forward.shape))
    parts = [(gradient[name] * vector).double() for name, vector in direction.items()]
    difference = forward.flatten() @ weights.double() - sum(part.sum() for part in parts)
    tolerance = 1e-2 if functional.device.type == "cuda" else torch.finfo(functional.dtype).eps ** 0.5
    agrees = float(difference.abs()) <= tolerance * float(sum(part.abs().sum() for part in parts))
    if not agrees:
        logger.warning("forward-mode derivatives disagree with a backward pass; the Jacobian itself is used, slowly")
    return agrees


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
    """Bytes of the largest and of all tensors that the backward pass at x needs, parameters aside.

    A forward pass that uses torch.func itself cannot be asked what it saves; there the results of all calls count.
    """
    saved = {x.data_ptr(): x.nbytes}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.data_ptr()] = tensor.nbytes
        return tensor

    leaves = {name: value.detach().requires_grad_() for name, value in functional.params.items()}
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = functional.forward(leaves, x)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        with torch.no_grad(), _Results() as results:
            functional.forward(functional.params, x)
        return results.largest, results.total + x.nbytes
    saved[outputs.data_ptr()] = outputs.nbytes
    for value in [*leaves.values(), *functional.constants.values()]:
        saved.pop(value.data_ptr(), None)
    return max(saved.values()), sum(saved.values())


class _Results(TorchFunctionMode):
    """Counts the bytes of the results of all calls."""

    largest, total = 1, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [value.numel() * value.element_size() for value in tensors(result)]
        self.largest, self.total = max([self.largest, *sizes]), self.total + sum(sizes)
        return result


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
