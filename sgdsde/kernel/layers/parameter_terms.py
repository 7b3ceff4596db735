"""The kernel as a sum of terms, one for each parameter or for a weight with its bias."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.kernel.layers.capture import Observation, Watched
from sgdsde.kernel.layers.parameter_uses import Alias, Use

Way: TypeAlias = Literal["gram", "jacobian"]
"""Contraction of a term: from inputs and gradients at the results, or from the columns of the Jacobian."""


@dataclass(frozen=True)
class Term:
    """The part of the kernel that belongs to a weight (and a bias that always acts with it), or to one parameter.

    Attributes:
        name: of the parameter whose Jacobian this is. bias: the parameter that joins it, in the gram way.
        size: parameters. uses: which calls make it; none: its Jacobian comes from torch.func.
        width: (q, o), positions: T of the gram way. delta: what is known of the gradients at the results.
    """

    name: str
    size: int
    shape: tuple[int, ...]
    uses: tuple[int, ...] = ()
    bias: str | None = None
    bias_scale: float = 0.0
    width: tuple[int, int] = (0, 0)
    positions: int = 0
    lookup: bool = False
    delta: Literal["any", "constant", "identity"] = "any"

    @property
    def has_gram(self) -> bool:
        return self.positions > 0

    @property
    def label(self) -> str:
        return self.name if self.bias is None else f"{self.name}, {self.bias}"

    def parts(self, params: Params) -> list[Term]:
        """The weight by itself, and the bias by itself where one joins it."""
        weight = replace(self, bias=None, bias_scale=0.0, size=params[self.name].numel())
        if self.bias is None:
            return [weight]
        like = params[self.bias]
        return [weight, Term(self.bias, like.numel(), tuple(like.shape), self.uses)]


def terms_of(params: Params, watched: Watched, others: Collection[str]) -> tuple[Term, ...]:
    """One term for each parameter that acts, a bias joining its weight where both act in one and the same call."""
    by_name: dict[str, list[int]] = {name: [] for name in params}
    for i, use in enumerate(watched.uses):
        for alias in {alias.name for alias in (use.weight, use.bias) if alias is not None}:
            by_name[alias].append(i)
    terms, joined = [], set()
    for name, places in by_name.items():
        if not places and name not in others:
            continue
        term = Term(name, params[name].numel(), tuple(params[name].shape), tuple(places))
        uses = [watched.uses[i] for i in places]
        if places and _outer(name, uses):
            positions = sum(use.positions for use in uses)
            lookup = uses[0].kind == "embedding"
            term = replace(term, width=uses[0].width, positions=positions, lookup=lookup)
            bias = uses[0].bias
            if bias is not None and by_name[bias.name] == places and len(places) == 1:
                joined.add(bias.name)
                size = term.size + params[bias.name].numel()
                term = replace(term, bias=bias.name, bias_scale=bias.scale, size=size)
        terms.append(term)
    return tuple(term for term in terms if term.name not in joined)


def _outer(name: str, uses: list[Use]) -> bool:
    """Whether the parameter is a matrix that acts in the same way everywhere: inputs and gradients suffice."""
    weights = [use.weight for use in uses]
    if any(alias is None or alias.name != name for alias in weights):
        return False
    if any(use.bias is not None and use.bias.name == name for use in uses):
        return False
    first = uses[0]
    layouts = {(use.flipped != alias.flipped, use.width) for use, alias in zip(uses, weights) if alias is not None}
    kinds = {use.kind for use in uses}
    if len(layouts) > 1 or first.groups > 1:
        return False
    if kinds == {"embedding"}:
        return all(alias is not None and alias.scale == 1 for alias in weights)
    return kinds <= {"matrix", "convolution"} and not any(use.groups > 1 for use in uses)


def inputs_of(term: Term, watched: Watched, seen: Observation, dtype: torch.dtype) -> Tensor:
    """X of the gram way, [b, T, q]; indices [b, T] of an embedding, -1 and below where it has no gradient."""
    pieces = []
    for i in term.uses:
        use, source = watched.uses[i], seen.sources[i]
        assert source is not None
        assert use.weight is not None
        if term.lookup:
            indices = source.flatten(1)
            pieces.append(indices.masked_fill(indices == use.ignored, -1) if use.ignored >= 0 else indices)
        else:
            piece = _positions(use, source, dtype)  # may be the caller's own inputs: never change it in place
            pieces.append(piece if use.weight.scale == 1 else piece * use.weight.scale)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def _positions(use: Use, source: Tensor, dtype: torch.dtype) -> Tensor:
    b, q = len(source), use.width[0]
    if use.geometry is None:
        return source.to(dtype).reshape(b, -1, q)
    patches = use.geometry.patches(_images(use, source.to(dtype)))  # [b*m, 1, q, S]
    return patches.reshape(b, -1, q, patches.shape[-1]).transpose(2, 3).reshape(b, -1, q)


def _images(use: Use, source: Tensor) -> Tensor:
    """[b, ..., channels, space] as [m, channels, space]."""
    assert use.geometry is not None
    return source.reshape(-1, *source.shape[-1 - len(use.geometry.kernel) :])


def deltas_of(term: Term, watched: Watched, seen: Observation, dtype: torch.dtype) -> Tensor:
    """D of the gram way, [b, c, T, o]."""
    pieces = [_results(watched.uses[i], seen.deltas[i].to(dtype)) for i in term.uses]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _results(use: Use, delta: Tensor) -> Tensor:
    """[b, c, outputs] as [b, c, T, groups * o]."""
    b, c = delta.shape[:2]
    if use.kind != "convolution":
        return delta.reshape(b, c, -1, use.outputs[-1])
    assert use.geometry is not None
    channels = use.outputs[-1 - len(use.geometry.kernel)]
    return (
        delta.reshape(b, c, -1, channels, math.prod(use.outputs[-len(use.geometry.kernel) :]))
        .transpose(3, 4)
        .reshape(b, c, -1, channels)
    )


def jacobian_of(term: Term, watched: Watched, seen: Observation, dtype: torch.dtype) -> Tensor:
    """Jacobian of the parameter ``term.name``, [b, c, *shape], summed over its uses."""
    if not term.uses:
        return seen.gradients[term.name].to(dtype)
    total: Tensor | None = None
    for i in term.uses:
        use, delta = watched.uses[i], seen.deltas[i].to(dtype)
        for alias, make in ((use.weight, _weight_jacobian), (use.bias, _bias_jacobian)):
            if alias is not None and alias.name == term.name:
                piece = make(use, seen.sources[i], delta)
                piece = _as_parameter(piece, alias, term.shape)
                total = piece if total is None else total + piece
    assert total is not None
    return total


def _as_parameter(piece: Tensor, alias: Alias, shape: tuple[int, ...]) -> Tensor:
    piece = piece.reshape(*piece.shape[:2], *alias.shape)
    if alias.flipped:
        piece = piece.mT
    piece = piece.reshape(*piece.shape[:2], *shape)
    return piece if alias.scale == 1 else piece * alias.scale


def _weight_jacobian(use: Use, source: Tensor | None, delta: Tensor) -> Tensor:
    assert source is not None
    b, c = delta.shape[:2]
    if use.kind == "scale":
        source = source.to(delta.dtype)
        lined_up = source.reshape(b, 1, *(1 for _ in range(delta.ndim - source.ndim - 1)), *source.shape[1:])
        return _summed(delta * lined_up, use)
    if use.kind == "embedding":
        return _scattered(use, source, delta)
    if use.geometry is None:
        x = _positions(use, source, delta.dtype)
        jacobian = _results(use, delta).transpose(2, 3).reshape(b, -1, x.shape[1]) @ x  # [b, c*o, q]
        jacobian = jacobian.view(b, c, *use.width[::-1])
        return jacobian.mT if use.flipped else jacobian
    return _convolved(use, source, delta)


def _convolved(use: Use, source: Tensor, delta: Tensor) -> Tensor:
    """[b, c, groups * o, q]: patches times gradients, group by group."""
    assert use.geometry is not None
    (b, c), (q, o), groups = delta.shape[:2], use.width, use.groups
    patches = use.geometry.patches(_images(use, source.to(delta.dtype)))
    places = patches.shape[-1]
    right = patches.view(b, -1, groups, q, places)
    if right.shape[1] == 1 and groups == 1:
        return (delta.reshape(b, c * o, places) @ right.view(b, q, places).mT).view(b, c, o, q)
    left = delta.reshape(b, c, -1, groups, o, places).permute(0, 3, 1, 4, 2, 5).reshape(b * groups, c * o, -1)
    right = right.permute(0, 2, 1, 4, 3).reshape(b * groups, -1, q)
    return (left @ right).view(b, groups, c, o, q).transpose(1, 2).reshape(b, c, groups * o, q)


def _scattered(use: Use, indices: Tensor, delta: Tensor) -> Tensor:
    """[b, c, entries, o]: each position's gradient added to the row that it looked up."""
    assert use.weight is not None
    b, c = delta.shape[:2]
    entries, o = use.width
    rows, delta = indices.flatten(1).long(), _results(use, delta)
    if use.ignored >= 0:
        delta = delta.masked_fill((rows == use.ignored)[:, None, :, None], 0)
    jacobian = delta.new_zeros(b, c, entries, o)
    return jacobian.scatter_add_(2, rows[:, None, :, None].expand(b, c, -1, o), delta)


def _bias_jacobian(use: Use, source: Tensor | None, delta: Tensor) -> Tensor:
    if use.kind == "scale":
        return _summed(delta, use)
    return _results(use, delta).sum(2)


def _summed(delta: Tensor, use: Use) -> Tensor:
    """[b, c, outputs] summed over what ``use.view`` was broadcast to."""
    assert use.view is not None
    places = len(use.outputs) - len(use.view)
    axes = [2 + i for i in range(len(use.outputs)) if i < places or (use.view[i - places] == 1 != use.outputs[i])]
    return delta.sum(axes) if axes else delta
