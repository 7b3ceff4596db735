"""What the kernel of two blocks of examples is made of, and the tile that it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.jacobian import jacobian
from sgdsde.kernel.plan import KernelPlan


@dataclass(frozen=True, eq=False)
class Factors:
    """Everything about a block of examples that a tile of the kernel needs, in the dtype of the result."""

    n_examples: int
    blocks: tuple[Tensor, ...]


def factors(functional: FunctionalModel, x: Tensor, *, plan: KernelPlan, params: Params | None = None) -> Factors:
    """The factors of the examples x, [b, ...], to be used in any number of tiles."""
    blocks = jacobian(functional, x, params=params)
    return Factors(len(x), tuple(block.to(plan.dtype) for block in blocks.values()))


def tile(left: Factors, right: Factors, *, plan: KernelPlan, out: Tensor | None = None) -> Tensor:
    """K between two blocks: [b1*c, b2*c] for outputs "full", [b1, b2] for "trace", [c, b1, b2] for "per_class".

    Args:
        out: where to write, possibly a strided window of the whole kernel; default a new tensor.
    """
    b1, b2, c = left.n_examples, right.n_examples, plan.n_outputs
    if out is None:
        shape = {"full": (b1 * c, b2 * c), "trace": (b1, b2), "per_class": (c, b1, b2)}[plan.outputs]
        out = torch.empty(shape, dtype=plan.dtype, device=left.blocks[0].device)
    out.zero_()
    for first, second in zip(left.blocks, right.blocks):
        if plan.outputs == "full":
            out.addmm_(first, second.mT)
        elif plan.outputs == "trace":
            out.addmm_(first.reshape(b1, -1), second.reshape(b2, -1).mT)
        else:
            out.baddbmm_(first.view(b1, c, -1).transpose(0, 1), second.view(b2, c, -1).permute(1, 2, 0))
    return out
