"""Which scores survive: exact counts, ties by position, densities of the rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._types import Params

Schedule: TypeAlias = Literal["exponential", "linear"]
"""Density after round k of n: d^(k/n), or 1 - (1 - d) k/n."""

Scope: TypeAlias = Literal["global", "layer"]
"""Scores compete over the whole network, or within their layer."""


def round_density(density: float, round_: int, n_rounds: int, schedule: Schedule) -> float:
    """The density after round ``round_`` = 1 ... n_rounds."""
    if round_ == n_rounds:
        return density
    if schedule == "exponential":
        return density ** (round_ / n_rounds)
    return 1 - (1 - density) * round_ / n_rounds


def keep_largest(
    scores: Mapping[str, Tensor], kept: Params, density: float, scope: Scope, *, strict: bool = True
) -> Params:
    """Masks of the round(density * n) largest scores among ``kept``; of equal scores the first by position.

    Args:
        scores: float64 by name; those of removed weights are not looked at. scope: "global": n counts all weights;
            "layer": each tensor's own. strict: refuse where fewer are left than asked for, else keep these.
    Raises:
        ValueError: a score that is not a number; more weights asked for than ``kept`` has left.
    Cost: linear in the number of weights: a partition, no sort.
    """
    groups = [list(scores)] if scope == "global" else [[name] for name in scores]
    masks: Params = {}
    for names in groups:
        total = sum(scores[name].numel() for name in names)
        left = sum(int(kept[name].sum()) for name in names)
        count = round(density * total)
        if strict and count > left:
            remedy = "ask for a higher sparsity; what earlier masks removed stays removed"
            raise ValueError(complaint("sparsity", f"such that at most {left} weights are kept", count, remedy))
        masks |= _largest({name: scores[name] for name in names}, kept, min(count, left))
    return masks


def _largest(scores: Mapping[str, Tensor], kept: Params, count: int) -> Params:
    threshold, ties = _threshold(scores, kept, count)
    masks = {}
    for name, values in scores.items():
        mask = kept[name] & (values > threshold)
        at = kept[name] & (values == threshold) if ties else None
        if at is not None:
            flat = at.flatten()
            first = flat & (flat.cumsum(0) <= ties)
            ties -= int(first.sum())
            mask |= first.view_as(mask)
        masks[name] = mask
    return masks


def _threshold(scores: Mapping[str, Tensor], kept: Params, count: int) -> tuple[float, int]:
    """The score above which all are kept, and how many of those equal to it.

    By the leading bits first, block by block, so that no copy of all scores is made.
    """
    if count == 0:
        return math.inf, 0
    bins = np.zeros(_BINS, dtype=np.int64)
    for alive in _alive(scores, kept):
        bins += np.bincount(_leading_bits(alive), minlength=_BINS)
    above = np.cumsum(bins[::-1])[::-1]  # scores in this bin or a higher one
    chosen = int(np.flatnonzero(above >= count)[-1])
    left = count - (int(above[chosen + 1]) if chosen + 1 < _BINS else 0)
    candidates = np.concatenate([alive[_leading_bits(alive) == chosen] for alive in _alive(scores, kept)])
    candidates.partition(len(candidates) - left)
    threshold = float(candidates[len(candidates) - left])
    return threshold, left - int((candidates > threshold).sum())


def _alive(scores: Mapping[str, Tensor], kept: Params) -> Iterator[np.ndarray]:
    """Scores that are not removed yet, some at a time."""
    for name, values in scores.items():
        blocks = zip(values.flatten().split(_BLOCK), kept[name].flatten().split(_BLOCK))
        for some, left in blocks:
            alive: np.ndarray = some[left].cpu().numpy()
            if np.isnan(alive).any():
                raise ValueError(complaint(f"scores of {name!r}", "numbers", "NaN", "check that the loss is finite"))
            yield alive + 0.0  # -0.0 and 0.0 are one number


_BINS, _BLOCK = 2**16, 2**18


def _leading_bits(values: np.ndarray) -> np.ndarray:
    """The leading 16 bits of float64 numbers as integers that are ordered as the numbers are."""
    bits = values.view(np.int64) >> 48
    return np.where(bits < 0, bits ^ 0x7FFF, bits) + 2**15


def zeros_at_threshold(scores: Mapping[str, Tensor], masks: Params) -> int:
    """Scores of zero, where position and not the criterion chose among them; else 0."""
    zeros, kept = 0, 0
    for name, values in scores.items():
        is_zero = values == 0
        zeros += int(is_zero.sum())
        kept += int((is_zero & masks[name]).sum())
    return zeros if 0 < kept < zeros else 0
