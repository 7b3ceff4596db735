"""J J^T block by block, from Jacobians that are made when they are needed."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._functional import FunctionalModel
from sgdsde._progress import ticker
from sgdsde._types import Params, Progress
from sgdsde.jacobian import Blocks, column_pieces, jacobian
from sgdsde.kernel.plan import KernelPlan


def gram(
    functional: FunctionalModel,
    x1: Tensor,
    x2: Tensor | None,
    *,
    plan: KernelPlan,
    params: Params | None = None,
    progress: Progress = None,
) -> Tensor:
    """J(x1) J(x2)^T by blocks; with x2 None the lower half only, mirrored."""
    columns = x1 if x2 is None else x2
    c = plan.n_outputs
    kernel = torch.empty(len(x1) * c, len(columns) * c, dtype=plan.dtype, device=functional.device)
    row_starts, column_starts = range(0, len(x1), plan.rows), range(0, len(columns), plan.rows)
    ticks = ticker(progress, len(row_starts) * len(column_starts), "kernel")
    for j in column_starts:
        right = jacobian(functional, columns[j : j + plan.rows], params=params)
        for i in row_starts:
            ticks.update(1)
            if x2 is None and i < j:
                continue
            same = x2 is None and i == j
            left = right if same else jacobian(functional, x1[i : i + plan.rows], params=params)
            block = kernel[i * c : (i + plan.rows) * c, j * c : (j + plan.rows) * c]
            _contract(left, right, out=block)
            if x2 is None and not same:
                kernel[j * c : (j + plan.rows) * c, i * c : (i + plan.rows) * c] = block.mT
            del left  # before the next is made: the plan counts two blocks, not three
        del right
    ticks.close()
    return kernel


def _contract(left: Blocks, right: Blocks, *, out: Tensor) -> None:
    """Writes left right^T, in place: a copy of a block may be as large as the result."""
    keep = 0.0
    for name, first in left.items():
        second = right[name]
        for columns in column_pieces(first.shape[1]):
            row_piece = first[:, columns].to(out.dtype)
            column_piece = row_piece if second is first else second[:, columns].to(out.dtype)
            out.addmm_(row_piece, column_piece.mT, beta=keep)
            keep = 1.0
