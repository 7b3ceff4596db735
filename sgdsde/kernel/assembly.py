"""Tiles of the kernel from the factors of their rows and columns, and the whole kernel from its tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._functional import FunctionalModel
from sgdsde._progress import ticker
from sgdsde._types import Params, Progress
from sgdsde.kernel.grams import Target, add_gram
from sgdsde.kernel.layer_factors import Factors, factors
from sgdsde.kernel.memory_plan import KernelPlan


def gram(
    functional: FunctionalModel,
    x1: Tensor,
    x2: Tensor | None,
    *,
    plan: KernelPlan,
    params: Params | None = None,
    progress: Progress = None,
) -> Tensor:
    """J(x1) J(x2)^T as ``plan.outputs`` says, block by block; with x2 None the lower half only, mirrored."""
    columns = x1 if x2 is None else x2
    kernel = torch.empty(_shape(plan, len(x1), len(columns)), dtype=plan.dtype, device=functional.device)
    row_starts, column_starts = range(0, len(x1), plan.rows), range(0, len(columns), plan.rows)
    ticks = ticker(progress, len(row_starts) * len(column_starts), "kernel")
    for j in column_starts:
        right = factors(functional, columns[j : j + plan.rows], plan=plan, params=params)
        for i in row_starts:
            ticks.update(1)
            if x2 is None and i < j:
                continue
            same = x2 is None and i == j
            left = right if same else factors(functional, x1[i : i + plan.rows], plan=plan, params=params)
            window = _window(kernel, plan, (i, i + plan.rows), (j, j + plan.rows))
            tile(left, right, plan=plan, out=window)
            if x2 is None and not same:
                _window(kernel, plan, (j, j + plan.rows), (i, i + plan.rows)).copy_(window.mT)
            del left  # before the next is made: the plan counts two blocks, not three
        del right
    ticks.close()
    return kernel


def tile(left: Factors, right: Factors, *, plan: KernelPlan, out: Tensor | None = None) -> Tensor:
    """K between two blocks: [b1*c, b2*c] for outputs "full", [b1, b2] for "trace", [c, b1, b2] for "per_class".

    Args:
        right: ``left`` itself gives a symmetric tile from half of the work.
        out: where to write, possibly a window of the whole kernel; default a new tensor.
    Cost: nothing is copied to or asked of the host; ``plan.workspace_bytes`` beside the factors.
    """
    if out is None:
        device = left.parts[0].x.device if left.parts else None
        out = torch.empty(_shape(plan, left.n_examples, right.n_examples), dtype=plan.dtype, device=device)
    symmetric, step = left is right, plan.tile
    for j in range(0, right.n_examples, step):
        columns = right.narrow(j, j + step)
        for i in range(j if symmetric else 0, left.n_examples, step):
            rows = columns if symmetric and i == j else left.narrow(i, i + step)
            window = _window(out, plan, (i, i + step), (j, j + step))
            _write(rows, columns, plan, window)
            if symmetric and i > j:
                _window(out, plan, (j, j + step), (i, i + step)).copy_(window.mT)
            elif symmetric:
                window.copy_(window.tril() + window.tril(-1).mT)  # equal to its transpose to the last bit
    return out


def _write(left: Factors, right: Factors, plan: KernelPlan, out: Tensor) -> None:
    if not left.parts:
        out.zero_()
    for i, (first, second) in enumerate(zip(left.parts, right.parts)):
        target = Target(out, plan.outputs, plan.n_outputs, fresh=i == 0)
        if first.term is None:
            _add_jacobian(first.x, second.x, target)
        else:
            add_gram(first.term, first, second, target)


def _add_jacobian(left: Tensor, right: Tensor, target: Target) -> None:
    out, beta = target.out, 0.0 if target.fresh else 1.0
    if target.outputs == "full":
        out.addmm_(left.flatten(0, 1), right.flatten(0, 1).mT, beta=beta)
    elif target.outputs == "trace":
        out.addmm_(left.flatten(1), right.flatten(1).mT, beta=beta)
    else:
        for entry, one, two in zip(out, left.unbind(1), right.unbind(1)):
            entry.addmm_(one, two.mT, beta=beta)


def _shape(plan: KernelPlan, n1: int, n2: int) -> tuple[int, ...]:
    c = plan.n_outputs
    return {"full": (n1 * c, n2 * c), "trace": (n1, n2), "per_class": (c, n1, n2)}[plan.outputs]


def _window(kernel: Tensor, plan: KernelPlan, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """The part of the kernel that belongs to these examples."""
    c = plan.n_outputs if plan.outputs == "full" else 1
    return kernel[..., rows[0] * c : rows[1] * c, columns[0] * c : columns[1] * c]
