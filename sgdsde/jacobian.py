"""Per-example Jacobians of a network, one block of examples at a time.

J = df/dtheta at given parameters, [n*c, p] sample-major, kept as one matrix [b*c, p_k] a parameter tensor: the columns
of different tensors never have to be joined.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from sgdsde._functional import FunctionalModel, jacobian_row
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
    Cost: one forward pass and c backward passes an example, vectorized over both; b c p numbers, and about as many
        again while it runs. Models that torch.func cannot vectorize: b c plain backward passes.
    """
    at = functional.params if params is None else params
    others = {name: value for name, value in functional.params.items() if name not in at}
    if not functional.vectorizes:
        return _by_rows(functional, at, others, x)
    stacked = vmap(jacrev(_single_output(functional, others)), in_dims=(None, 0))(at, x)
    return {name: value.detach().reshape(-1, at[name].numel()) for name, value in stacked.items()}


def jacobian_product(functional: FunctionalModel, x: Tensor, direction: Params, *, rows: int) -> Tensor:
    """J v, [n, c] in float64, from blocks of ``rows`` examples; v as tensors by parameter name."""
    pieces = []
    for start in range(0, len(x), rows):
        blocks = jacobian(functional, x[start : start + rows])
        pieces.append(sum(block.double() @ direction[name].double().flatten() for name, block in blocks.items()))
    return torch.cat([torch.as_tensor(piece) for piece in pieces]).view(len(x), -1)


def bytes_per_example(functional: FunctionalModel, params: Params, n_outputs: int) -> int:
    """Peak bytes an example while its Jacobian is made and contracted.

    The Jacobian itself, the same again for the backward pass that makes it, and one float64 copy of the largest block.
    """
    sizes = [value.numel() for value in params.values()]
    itemsize = functional.dtype.itemsize
    return n_outputs * (2 * itemsize * sum(sizes) + 8 * max(sizes)) + 64 * 1024


def _single_output(functional: FunctionalModel, others: Params) -> Callable[[Params, Tensor], Tensor]:
    def output(params: Params, example: Tensor) -> Tensor:
        return functional.forward({**others, **params}, example[None])[0]

    return output


def _by_rows(functional: FunctionalModel, at: Params, others: Params, x: Tensor) -> Blocks:
    rows: dict[str, list[Tensor]] = {name: [] for name in at}
    everything = {**others, **at}
    for i in range(len(x)):
        n_outputs = functional.forward(everything, x[i : i + 1]).shape[1]
        for cotangent in torch.eye(n_outputs, dtype=functional.dtype, device=functional.device):
            row = jacobian_row(functional, everything, x[i : i + 1], cotangent)
            for name in at:
                rows[name].append(row[name].flatten())
    return {name: torch.stack(parts) for name, parts in rows.items()}
