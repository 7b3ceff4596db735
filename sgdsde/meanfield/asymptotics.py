"""Depth alone: correlations and tangent kernels of one pair of inputs, to depth 10^6, with fitted rates.

The recursion follows gap = 1 - c, not c, which drowns in rounding beyond depth 10^4 (l^2 (1 - c_l) of ReLU would read
40.3 at depth 10^5 where it is 44.4), and the kernels in units of q:

    dense:     k_l = chi(c_{l-1}) k_{l-1} + c_l,                 d_l = chi(1) d_{l-1} + 1
    residual:  k_l = (k_{l-1} (1 + b f'(c)) + b f(c)) / (1 + b),  d_l = d_{l-1} + b / (1 + b),   b = s_l^2 a

for K(x, x')/q and K(x, x)/q; a = sigma_w^2 E phi'^2, positively homogeneous phi without bias for the residual forms.

Limits on the edge of chaos: k_l / d_l -> 1/4 for ReLU-like phi (1 - c_l ~ 9 pi^2 / (2 l^2) for ReLU) and 1/3 for smooth
phi (1 - c_l ~ 2 / (f''(1) l)), with rates log l / l; the papers print 1 / l.

Source: Hayou, Doucet, Rousseau, arXiv:1905.13654, with the rate corrected (docs/mean_field.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from sgdsde._checks import complaint, whole_number, word
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.closed_forms import Homogeneous, closed_form
from sgdsde.meanfield.hermite import hermite_series
from sgdsde.meanfield.variance import check_sigmas, limit_variance


@dataclass(frozen=True)
class DepthSequence:
    """gap = 1 - c_l, K_l(x, x)/q_l and K_l(x, x')/q_l for l = 1 ... depth, float64 arrays; l counts affine maps."""

    layer: np.ndarray
    gap: np.ndarray
    diagonal: np.ndarray
    off_diagonal: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """K(x, x') / K(x, x)."""
        return self.off_diagonal / self.diagonal


class Slope(NamedTuple):
    """A fitted slope with an interval."""

    value: float
    low: float
    high: float


def depth_sequence(
    activation: ActivationLike,
    sigma_w: float,
    sigma_b: float,
    *,
    depth: int,
    correlation: float,
    q: float | None = None,
    scaling: str | None = None,
) -> DepthSequence:
    """The correlation and both kernel entries of two inputs of one length, layer by layer.

    Args:
        correlation: c_1 of the first preactivations, in [0, 1].
        q: their common variance, a fixed point of the variance map; None: the one reached from 1.
        scaling: None: a dense network; ``"none"``, ``"decreasing"`` (l^-1/2) or ``"stable"`` (depth^-1/2): a residual
            one, for a positively homogeneous activation and sigma_b = 0.
    Raises:
        ValueError: depth below 1, correlation outside [0, 1], no finite q, an activation that is neither homogeneous
            nor given by a Hermite series (kinks: iterate ``correlation_gap_map``).
    Cost: one or two microseconds per layer for ReLU, ten for a smooth activation.
    """
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(sigma_w, sigma_b)
    depth = whole_number("depth", depth, 1)
    if not 0 <= correlation <= 1:
        raise ValueError(complaint("correlation", "in [0, 1]", correlation))
    if scaling is not None:
        return _residual(activation, sigma_w, sigma_b, depth, 1.0 - correlation, scaling)
    q = limit_variance(activation, sigma_w, sigma_b) if q is None else q
    if not 0 < q < math.inf:
        raise ValueError(complaint("the limit of the variance", "finite and positive", q, "pass q"))
    step, chi = _dense_maps(activation, sigma_w, sigma_b, q)
    gap, diagonal, off = 1.0 - correlation, 1.0, correlation
    rows = np.empty((depth, 3))
    for layer in range(depth):
        rows[layer] = gap, diagonal, off
        diagonal = chi(0.0) * diagonal + 1.0
        slope, gap = chi(gap), step(gap)
        off = slope * off + 1.0 - gap
    return DepthSequence(np.arange(1, depth + 1), *rows.T)


def log_slope(sequence: DepthSequence, limit: float) -> Slope:
    """The coefficient r in K(x, x')/q = limit * l + r log l + constant, by the slope of K/q - limit l in log l.

    The quotient (K/(l q) - limit) / (log l / l) still holds the constant and converges too slowly to see r. Slopes are
    taken over the last three octaves of depth; the value extrapolates them geometrically, the interval spans the last
    slope and the mirror image of it.
    """
    excess = sequence.off_diagonal - limit * sequence.layer
    ends = [len(excess) // 2**k - 1 for k in range(4)]
    slopes = [float(excess[ends[k]] - excess[ends[k + 1]]) for k in range(3)]
    slopes = [s / math.log(sequence.layer[ends[k]] / sequence.layer[ends[k + 1]]) for k, s in enumerate(slopes)]
    last, change, before = slopes[0], slopes[0] - slopes[1], slopes[1] - slopes[2]
    factor = change / before if before and 0 < change / before < 0.9 else 0.5
    step = change * factor / (1 - factor)
    return Slope(last + step, last + step - abs(step) - 1e-12, last + step + abs(step) + 1e-12)


def power_law(layer: np.ndarray, values: np.ndarray) -> Slope:
    """The exponent p of values ~ layer^p, from the last octave, with the octave before as its interval."""
    ends = [len(layer) // 2**k - 1 for k in range(3)]
    slopes = [math.log(values[a] / values[b]) / math.log(layer[a] / layer[b]) for a, b in pairwise(ends)]
    width = abs(slopes[0] - slopes[1])
    return Slope(slopes[0], slopes[0] - width, slopes[0] + width)


def second_derivative_at_one(activation: ActivationLike, sigma_w: float, q: float) -> float:
    """f''(1) = sigma_w^2 q E phi''(sqrt(q) Z)^2 of the correlation map; infinite where phi' jumps.

    By the Hermite coefficients a_k of phi, f''(1) = sigma_w^2 sum k (k - 1) a_k^2 / q.
    """
    activation = as_activation(activation)
    series = hermite_series(activation, math.sqrt(q), math.sqrt(q))
    if series is None:
        received = activation.name
        raise ValueError(complaint("activation", "smooth", received, "f''(1) of a kinked activation is infinite"))
    squares = series.coefficients(torch.tensor([math.sqrt(q)], dtype=torch.float64))[0][0] ** 2
    k = torch.arange(len(squares), dtype=torch.float64)
    return sigma_w**2 * float((k * (k - 1) * squares)[: 2 * series.slope_terms].sum()) / q


def _dense_maps(
    activation: Activation, sigma_w: float, sigma_b: float, q: float
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """gap -> gap' and gap -> chi(1 - gap), on floats."""
    exact = closed_form(activation)
    if isinstance(exact, Homogeneous):
        weight, kink = sigma_w**2 * exact.gain, exact.even**2 / exact.gain * 2 / math.pi
        share = weight * q / (sigma_b**2 + weight * q)
        return lambda gap: share * _homogeneous_gap(gap, kink), lambda gap: weight * (1 - kink * _angle(gap))
    s = torch.tensor([math.sqrt(q)], dtype=torch.float64)
    series = hermite_series(activation, float(s), float(s))
    if series is None:
        expected = "positively homogeneous or given by a Hermite series"
        raise ValueError(complaint("activation", expected, activation.name, "iterate meanfield.correlation_gap_map"))
    values, slopes = (part[0].numpy() ** 2 for part in series.coefficients(s))
    values, slopes = values[: series.terms] * sigma_w**2 / q, slopes[: series.slope_terms] * sigma_w**2
    degrees, slope_degrees = np.arange(len(values)), np.arange(len(slopes))

    def step(gap: float) -> float:
        return float(values[1:].sum()) if gap == 1 else -float(values @ np.expm1(degrees * math.log1p(-gap)))

    def chi(gap: float) -> float:
        return float(slopes[0]) if gap == 1 else float(slopes @ np.exp(slope_degrees * math.log1p(-gap)))

    return step, chi


def _angle(gap: float) -> float:
    return 2 * math.asin(math.sqrt(gap / 2))


def _homogeneous_gap(gap: float, kink: float) -> float:
    """The gap after one layer without bias, as ``closed_forms.Homogeneous.gap`` on a float."""
    theta = _angle(gap)
    if theta < 0.3:
        square = theta * theta
        bracket = theta * square * (1 / 3 - square * (1 / 30 - square * (1 / 840 - square * (1 / 45360))))
    else:
        bracket = math.sin(theta) - theta * math.cos(theta)
    return gap - kink * bracket


def _residual(
    activation: Activation, sigma_w: float, sigma_b: float, depth: int, gap: float, scaling: str
) -> DepthSequence:
    word("scaling", scaling, ("none", "decreasing", "stable"))
    exact = closed_form(activation)
    if not isinstance(exact, Homogeneous) or sigma_b:
        received = f"{activation.name} with sigma_b={sigma_b:g}"
        raise ValueError(complaint("a residual sequence", "of a positively homogeneous activation, no bias", received))
    growth, kink = sigma_w**2 * exact.gain, exact.even**2 / exact.gain * 2 / math.pi
    diagonal, off = 1.0, 1.0 - gap
    rows = np.empty((depth, 3))
    for layer in range(1, depth + 1):
        rows[layer - 1] = gap, diagonal, off
        block = growth * {"none": 1.0, "decreasing": 1 / (layer + 1), "stable": 1 / depth}[scaling]
        new, slope = _homogeneous_gap(gap, kink), 1 - kink * _angle(gap)
        off = (off * (1 + block * slope) + block * (1 - new)) / (1 + block)
        diagonal += block / (1 + block)
        gap = (gap + block * new) / (1 + block)
    return DepthSequence(np.arange(1, depth + 1), *rows.T)
