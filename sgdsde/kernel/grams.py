"""A term of the kernel from inputs of a layer and gradients at its results.

y_t = W x_t + b,   K[(i,a),(j,b)] = sum over s, t of (x_it . x_js + 1) (d_iat . d_jbs),   d_iat = df_a(x_i) / dy_t
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.kernel.factors import Factor
from sgdsde.kernel.plan import KernelPlan
from sgdsde.kernel.terms import Term


def add_gram(term: Term, first: Factor, second: Factor, plan: KernelPlan, out: Tensor, fresh: bool) -> None:
    """Adds the term to a tile ``out``, or writes it there when ``fresh``.

    One position: the product above, entry by entry. Several, where a sum over outputs or one output is wanted: the
    same over positions. Several positions and all pairs of outputs: the product of the first factor with the gradients
    of the columns comes first, T^2 (q + c o) + c^2 T o in place of T^2 (q + c^2 o) operations.
    """
    inputs = _input_gram(term, first.x, second.x).to(out.dtype)
    several = plan.outputs == "full" and plan.n_outputs > 1
    if first.deltas is None or first.deltas.ndim == 2:
        if fresh:
            out.zero_()
        _add_constant(inputs, first.deltas, plan, out)
    elif term.positions == 1:
        _add_one_position(inputs, first.deltas, _deltas(second), plan, out, fresh)
    elif several:
        if fresh:
            out.zero_()
        _add_positions_and_outputs(inputs, first.deltas, _deltas(second), out)
    else:
        _add_positions(inputs, first.deltas, _deltas(second), plan, out, fresh)


def _deltas(factor: Factor) -> Tensor:
    assert factor.deltas is not None
    return factor.deltas


def _input_gram(term: Term, first: Tensor, second: Tensor) -> Tensor:
    """[b1*T, b2*T]: x_it . x_js, plus the square of the bias's scale."""
    if term.lookup:
        left, right = first.flatten()[:, None], second.flatten()
        return (left == right) & (left >= 0)
    gram = first.flatten(0, 1) @ second.flatten(0, 1).mT
    return gram if term.bias is None else gram.add_(term.bias_scale**2)


def _add_constant(inputs: Tensor, deltas: Tensor | None, plan: KernelPlan, out: Tensor) -> None:
    c, (b1, b2) = plan.n_outputs, inputs.shape
    if deltas is None and (plan.outputs != "full" or c == 1):
        out.add_(inputs, alpha=c if plan.outputs == "trace" else 1)
    elif deltas is None:
        out.view(b1, c, b2, c).diagonal(dim1=1, dim2=3).add_(inputs[:, :, None])
    elif plan.outputs == "full":
        out.view(b1, c, b2, c).addcmul_(inputs[:, None, :, None], (deltas @ deltas.mT)[None, :, None, :])
    else:
        squares = deltas.square().sum(1)
        squares = squares.sum() if plan.outputs == "trace" else squares[:, None, None]
        out.addcmul_(inputs, squares)


def _add_one_position(
    inputs: Tensor, first: Tensor, second: Tensor, plan: KernelPlan, out: Tensor, fresh: bool
) -> None:
    c, (b1, b2) = plan.n_outputs, inputs.shape
    if plan.outputs == "per_class":
        for a, entry in enumerate(out):
            product = torch.mm(first[:, a, 0], second[:, a, 0].mT)
            _accumulate(entry, product, inputs, fresh)
        return
    if plan.outputs == "trace":
        _accumulate(out, torch.mm(first.flatten(1), second.flatten(1).mT), inputs, fresh)
        return
    left, right = first.flatten(0, 2), second.flatten(0, 2)
    # Long rows: broadcasting over the c outputs of a column would make loops of c numbers, ten times slower.
    tile, factor = out.view(b1, c, b2 * c), inputs.repeat_interleave(c, 1)[:, None]
    if fresh:
        out.addmm_(left, right.mT, beta=0)
        tile.mul_(factor)
    else:
        tile.addcmul_((left @ right.mT).view(b1, c, b2 * c), factor)


def _add_positions(inputs: Tensor, first: Tensor, second: Tensor, plan: KernelPlan, out: Tensor, fresh: bool) -> None:
    b1, b2 = len(first), len(second)
    if plan.outputs == "trace":  # [b, T, c, o]
        pairs = [(out, first.flatten(2).flatten(0, 1), second.flatten(2).flatten(0, 1))]
    else:  # [b, c, T, o]
        entries = out if plan.outputs == "per_class" else out[None]
        pairs = [(entry, first[:, a].flatten(0, 1), second[:, a].flatten(0, 1)) for a, entry in enumerate(entries)]
    for entry, left, right in pairs:
        product = torch.mm(left, right.mT).mul_(inputs).view(b1, -1, b2, len(inputs) // b1).sum((1, 3))
        entry.copy_(product) if fresh else entry.add_(product)


def _add_positions_and_outputs(inputs: Tensor, first: Tensor, second: Tensor, out: Tensor) -> None:
    b1, c, places, o = first.shape
    b2 = len(second)
    per_column = inputs.view(b1 * places, b2, places).transpose(0, 1)  # [b2, b1 T, S]
    moved = torch.bmm(per_column, second.transpose(1, 2).reshape(b2, places, c * o))  # [b2, b1 T, c o]
    moved = moved.view(b2, b1, places, c, o).permute(1, 2, 4, 0, 3).reshape(b1, places * o, b2 * c)
    out.add_(torch.bmm(first.reshape(b1, c, places * o), moved).view(b1 * c, b2 * c))


def _accumulate(out: Tensor, product: Tensor, inputs: Tensor, fresh: bool) -> None:
    if fresh:
        torch.mul(product, inputs, out=out)
    else:
        out.addcmul_(product, inputs)
