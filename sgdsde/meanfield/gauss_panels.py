"""Panels on which a function is a polynomial to rounding: where to cut, and Gauss-Legendre nodes between the cuts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint

ORDER = (
    24  # nodes per panel; two resolved factors multiply to degree 2 * 23 = 46 < 47, which the rule integrates exactly
)
KINK_ORDER = 16
MAX_PANELS = 4096


@functools.lru_cache(maxsize=16)
def gauss_legendre(order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [-1, 1], and the matrix [order, order] from values at the nodes to Legendre coefficients."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    degrees = np.arange(order)
    to_coefficients = (degrees[:, None] + 0.5) * np.polynomial.legendre.legvander(nodes, order - 1).T * weights
    return torch.from_numpy(nodes), torch.from_numpy(weights), torch.from_numpy(to_coefficients)


def nodes_and_weights(edges: Tensor, order: int = ORDER) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights [..., (e - 1) * order] on the panels between sorted edges [..., e]."""
    x, w, _ = gauss_legendre(order)
    x, w = x.to(edges), w.to(edges)
    half = (edges[..., 1:] - edges[..., :-1]) / 2
    middle = (edges[..., 1:] + edges[..., :-1]) / 2
    nodes = middle[..., None] + half[..., None] * x
    return nodes.flatten(-2), (half[..., None] * w).flatten(-2)


def unresolved(values: Tensor, scale: Tensor, tolerance: float) -> Tensor:
    """Mask [p] of panels on which a function, given at nodes [p, order], is not a polynomial of that order."""
    order = values.shape[-1]
    coefficients = values @ gauss_legendre(order)[2].to(values).T
    return (coefficients[:, -3:].abs().amax(-1) > tolerance * scale) | ~torch.isfinite(values).all(-1)


def refine(function: Callable[[Tensor], list[Tensor]], edges: Tensor, tolerance: float = 1e-12) -> Tensor:
    """Sorted edges between which every function is resolved to ``tolerance`` of its largest value, by bisection.

    Args:
        function: points [...] -> the functions to resolve, each of that shape.
        edges: sorted edges to start from, 1-D; kept.
    Raises:
        ValueError: more than ``MAX_PANELS`` panels.
    """
    resolved: list[Tensor] = []
    left, right = edges[:-1], edges[1:]
    left, right = left[right > left], right[right > left]
    peaks: list[Tensor] = []
    while len(left):
        nodes, _ = nodes_and_weights(torch.stack([left, right], -1), ORDER)
        values = function(nodes)
        peaks = [torch.maximum(p, v.abs().max()) for p, v in zip(peaks, values)] or [v.abs().max() for v in values]
        bad = torch.zeros(len(left), dtype=torch.bool, device=left.device)
        for value, peak in zip(values, peaks):
            bad |= unresolved(value, peak.clamp_min(1e-300), tolerance)
        bad &= (right - left) > 1e-13 * (1 + left.abs())
        resolved += [left[~bad], right[~bad]]
        middle = (left[bad] + right[bad]) / 2
        left, right = torch.cat([left[bad], middle]), torch.cat([middle, right[bad]])
        if len(left) + sum(map(len, resolved)) // 2 > MAX_PANELS:
            raise ValueError(complaint("activation", f"resolved by {MAX_PANELS} panels", "one that oscillates faster"))
    return torch.unique(torch.cat(resolved))


def find_kinks(value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]], radius: float, name: str) -> Tensor:
    """The points of [-radius, radius] where phi or phi' is not smooth, sorted, 0 included.

    Panels are bisected while sixteen Legendre coefficients do not resolve phi' to 1e-12; those still unresolved at a
    width below 1e-5 hold a kink, which is followed to the last digit. The first cuts are irrational multiples of the
    radius, so that a kink at a round number lies inside a panel.

    Raises:
        ValueError: more than 4096 unresolved panels, as of sin(1/x).
    """
    _, near = value_and_slope(torch.linspace(-4, 4, 257, dtype=torch.float64))
    reference = near.abs().max().clamp_min(1e-300)
    inner = radius * 2.0 ** -torch.arange(-1, math.ceil(math.log2(radius)) + 3, dtype=torch.float64) / math.pi * 3
    edges = torch.unique(torch.cat([-inner, inner * 0.987]))
    left, right = edges[:-1], edges[1:]
    deepest: list[Tensor] = []
    for _ in range(80):
        if not len(left):
            break
        nodes, _ = nodes_and_weights(torch.stack([left, right], -1), KINK_ORDER)
        value, slope = value_and_slope(nodes)
        bad = unresolved(slope, torch.maximum(slope.abs().amax(-1), reference), 1e-12)
        # A staircase has slope 0 on both sides of its jumps, so the values are looked at too.
        bad |= unresolved(value, torch.maximum(value.abs().amax(-1), reference), 1e-12)
        width = right - left
        tiny = width < 1e-5 * (1 + left.abs())
        bottom = bad & (width <= 1e-14 * (1 + left.abs()))
        # A panel that became resolved below the tiny width ends its kink just as the last digit does.
        ended = tiny & (~bad | bottom)
        deepest.append(torch.stack([(left + right)[ended] / 2, width[ended]], -1))
        go = bad & ~bottom
        middle = (left[go] + right[go]) / 2
        left, right = torch.cat([left[go], middle]), torch.cat([middle, right[go]])
        if len(left) > MAX_PANELS:
            raise ValueError(
                complaint("activation", "piecewise smooth", f"{name}, which no {MAX_PANELS} panels resolve")
            )
    kinks, widths = _merge(torch.cat(deepest))
    distance = 1e-9 * (1 + kinks.abs())
    (value, slope), (value_behind, slope_behind) = (value_and_slope(kinks + s * distance) for s in (1, -1))
    value_jump = value - value_behind - distance * (slope + slope_behind)
    jump = torch.maximum(value_jump.abs(), (slope - slope_behind).abs())
    # torch's softplus turns linear at 20 with a jump of 2e-9: not worth an edge, and it would spoil tables.
    strong = (widths > 1e-13 * (1 + kinks.abs())) | (jump > 1e-8 * reference)
    return torch.unique(torch.cat([torch.zeros(1, dtype=torch.float64), kinks[strong]]))


def _merge(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """One kink from each cluster of candidate (place, width) rows: the middle of its narrowest panels; their width."""
    candidates = candidates[candidates[:, 0].argsort()]
    place = candidates[:, 0]
    far = place[1:] - place[:-1] > 3e-5 * (1 + place[1:].abs())
    cluster = torch.cat([torch.zeros(min(1, len(place)), dtype=torch.long), far.long().cumsum(0)])
    kinks, widths = [], []
    for members in (candidates[cluster == index] for index in cluster.unique()):
        widths.append(members[:, 1].min())
        kinks.append(members[members[:, 1] <= 2 * widths[-1], 0].mean())
    if not kinks:
        return place, place
    merged = torch.stack(kinks)
    return torch.where(merged.abs() < 1e-9, torch.zeros_like(merged), merged), torch.stack(widths)
