"""Which scores survive: exact counts, ties by position, densities of the rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    alive = np.concatenate([scores[name][kept[name]].cpu().numpy() for name in scores])
    if np.isnan(alive).any():
        bad = next(name for name in scores if scores[name][kept[name]].isnan().any())
        raise ValueError(complaint(f"scores of {bad!r}", "numbers", "NaN", "check that the loss is finite"))
    threshold, ties = _threshold(alive, count)
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


def _threshold(alive: np.ndarray, count: int) -> tuple[float, int]:
    """The score above which all are kept, and how many of those equal to it."""
    if count == 0:
        return math.inf, 0
    alive.partition(len(alive) - count)
    threshold = float(alive[len(alive) - count])
    return threshold, count - int((alive > threshold).sum())


def threshold_is_zero(scores: Mapping[str, Tensor], masks: Params) -> bool:
    """Whether position, and not the criterion, chose among weights of score zero."""
    kept_zero = any(bool(((values == 0) & masks[name]).any()) for name, values in scores.items())
    return kept_zero and any(bool(((values == 0) & ~masks[name]).any()) for name, values in scores.items())
