"""A term of the kernel from inputs of a layer and gradients at its results.

y_t = W x_t + b,   K[(i,a),(j,b)] = sum over s, t of (x_it . x_js + 1) (d_iat . d_jbs),   d_iat = df_a(x_i) / dy_t
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.kernel.flop_model import Outputs
from sgdsde.kernel.layer_factors import Factor
from sgdsde.kernel.layers.parameter_terms import Term


@dataclass(frozen=True, eq=False)
class Target:
    """A tile to be written.

    Attributes:
        out: the tile, possibly a window of a larger tensor. outputs, n_outputs: which entries it holds, c.
        fresh: nothing is there yet; else the term is added.
    """

    out: Tensor
    outputs: Outputs
    n_outputs: int
    fresh: bool

    def put(self, product: Tensor) -> None:
        if self.fresh:
            self.out.copy_(product)
        else:
            self.out.add_(product)


def add_gram(term: Term, first: Factor, second: Factor, target: Target) -> None:
    """Add the term to a tile.

    One position: the product above, entry by entry. Several, where a sum over outputs or one output is wanted: the
    same over positions. Several positions and all pairs of outputs: the product of the first factor with the gradients
    of the columns comes first, T^2 (q + c o) + c^2 T o in place of T^2 (q + c^2 o) operations.
    """
    inputs = _input_gram(term, first.x, second.x).to(target.out.dtype)
    left, right = first.deltas, second.deltas
    if left is None or right is None or left.ndim == 2:
        _add_constant(inputs, left, target)
    elif term.positions == 1:
        _add_one_position(inputs, left, right, target)
    elif target.outputs == "full" and target.n_outputs > 1:
        _add_positions_and_outputs(inputs, left, right, target)
    else:
        _add_positions(inputs, left, right, target)


def _input_gram(term: Term, first: Tensor, second: Tensor) -> Tensor:
    """[b1*T, b2*T]: x_it . x_js, plus the square of the bias's scale."""
    if term.lookup:
        left, right = first.flatten()[:, None], second.flatten()
        return (left == right) & (left >= 0)
    gram = first.flatten(0, 1) @ second.flatten(0, 1).mT
    return gram if term.bias is None else gram.add_(term.bias_scale**2)


def _add_constant(inputs: Tensor, deltas: Tensor | None, target: Target) -> None:
    out, c, (b1, b2) = target.out, target.n_outputs, inputs.shape
    if target.fresh:
        out.zero_()
    if deltas is None and (target.outputs != "full" or c == 1):
        out.add_(inputs, alpha=c if target.outputs == "trace" else 1)
    elif deltas is None:
        out.view(b1, c, b2, c).diagonal(dim1=1, dim2=3).add_(inputs[:, :, None])
    elif target.outputs == "full":
        out.view(b1, c, b2, c).addcmul_(inputs[:, None, :, None], (deltas @ deltas.mT)[None, :, None, :])
    else:
        squares = deltas.square().sum(1)
        out.addcmul_(inputs, squares.sum() if target.outputs == "trace" else squares[:, None, None])


def _add_one_position(inputs: Tensor, first: Tensor, second: Tensor, target: Target) -> None:
    """Deltas [b, c, 1, o], for the trace [b, 1, c, o]."""
    out, c, (b1, b2) = target.out, target.n_outputs, inputs.shape
    if target.outputs == "full":
        left, right = first.flatten(0, 2), second.flatten(0, 2)
        # Long rows: broadcasting over the c outputs of a column would make loops of c numbers, ten times slower.
        tile, inputs = out.view(b1, c, b2 * c), inputs[:, :, None].expand(b1, b2, c).reshape(b1, 1, b2 * c)
        if target.fresh:
            out.addmm_(left, right.mT, beta=0)
            tile.mul_(inputs)
        else:
            tile.addcmul_((left @ right.mT).view(b1, c, b2 * c), inputs)
        return
    for entry, left, right in _entries(first, second, target):
        product = torch.mm(left.flatten(1), right.flatten(1).mT)
        if target.fresh:
            torch.mul(product, inputs, out=entry)
        else:
            entry.addcmul_(product, inputs)


def _add_positions(inputs: Tensor, first: Tensor, second: Tensor, target: Target) -> None:
    """Deltas [b, c, T, o], for the trace [b, T, c, o]."""
    b1, b2, places = len(first), len(second), len(inputs) // len(first)
    for entry, left, right in _entries(first, second, target):
        product = torch.mm(left.reshape(b1 * places, -1), right.reshape(b2 * places, -1).mT).mul_(inputs)
        product = product.view(b1, places, b2, places).sum((1, 3))
        Target(entry, target.outputs, target.n_outputs, target.fresh).put(product)


def _entries(first: Tensor, second: Tensor, target: Target) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The matrices [b1, b2] of a tile that do not mix outputs, with the deltas of each."""
    if target.outputs == "trace":
        return [(target.out, first, second)]
    entries = target.out if target.outputs == "per_class" else target.out[None]
    return list(zip(entries.unbind(0), first.unbind(1), second.unbind(1)))


def _add_positions_and_outputs(inputs: Tensor, first: Tensor, second: Tensor, target: Target) -> None:
    b1, c, places, o = first.shape
    b2 = len(second)
    per_column = inputs.view(b1 * places, b2, places).transpose(0, 1)  # [b2, b1 T, S]
    moved = torch.bmm(per_column, second.transpose(1, 2).reshape(b2, places, c * o))  # [b2, b1 T, c o]
    moved = moved.view(b2, b1, places, c, o).permute(1, 2, 4, 0, 3).reshape(b1, places * o, b2 * c)
    target.put(torch.bmm(first.reshape(b1, c, places * o), moved).view(b1 * c, b2 * c))
