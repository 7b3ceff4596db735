"""Limits of infinite depth: the correlation's fixed point with its stability, the depth scales, and the phases."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from scipy.optimize import brentq
from torch import Tensor

from sgdsde._checks import nonnegative_number, positive_number
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.maps import chi, correlation_gap_map, correlation_slope
from sgdsde.meanfield.variance import (
    EDGE,
    FixedPoint,
    check_sigmas,
    limit_variance,
    positive_limit,
    second_moments,
    variance_slope,
)

Phase: TypeAlias = Literal["ordered", "edge", "chaotic"]


class DepthScales(NamedTuple):
    """Numbers of layers over which a deviation shrinks by a factor e: of the variance, and of the correlation.

    ``correlation`` is taken at ``limit_correlation``: 1 in the ordered phase, below 1 in the chaotic one. A scale is
    infinite where its slope is 1, as the correlation's is on the edge of chaos.
    """

    variance: float
    correlation: float
    limit_variance: float
    limit_correlation: float


def limit_correlation(
    activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None
) -> FixedPoint:
    """The stable fixed point c* of the correlation map in [0, 1], with the slope f'(c*).

    f has only nonnegative Taylor coefficients, so it is convex on [0, 1]: c* = 1 where chi <= 1, else the one root
    below 1, found in 1 - c.
    """
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(sigma_w, sigma_b)
    if q is None:
        q = positive_limit(activation, sigma_w, sigma_b)
    q = positive_number("q", q, "it is the variance of both inputs")
    slope = float(correlation_slope(activation, sigma_w, sigma_b, 1.0, q=q))
    if slope <= 1 + EDGE:
        return FixedPoint(1.0, slope, True)

    def excess(log_gap: float) -> float:
        gap = math.exp(log_gap)
        return float(correlation_gap_map(activation, sigma_w, sigma_b, gap, q=q)) / gap - 1

    # At c = 0 the map gives f(0) >= 0; for an odd phi without bias exactly 0, which is then the root itself.
    ends = math.log(1e-12), 0.0
    gap = 1.0 if excess(0.0) >= -1e-13 else math.exp(brentq(excess, *ends, xtol=1e-14, rtol=1e-14))
    slope = float(correlation_slope(activation, sigma_w, sigma_b, 1 - gap, q=q))
    return FixedPoint(1 - gap, slope, slope < 1)


def depth_scales(activation: ActivationLike, sigma_w: float, sigma_b: float) -> DepthScales:
    """Depth scales of signal propagation: xi_q = -1/log|F'(q)| and xi_c = -1/log f'(c*).

    In the ordered phase f'(c*) = chi; in the chaotic phase -1/log chi would be negative, and the slope is taken at the
    stable c* < 1 (where the published formula is often read at c = 1 by mistake).

    Raises:
        ValueError: the variance has no finite positive limit.
    """
    activation = as_activation(activation)
    q = positive_limit(activation, sigma_w, sigma_b)
    correlation = limit_correlation(activation, sigma_w, sigma_b, q=q)
    variance_rate = abs(float(variance_slope(activation, sigma_w, sigma_b, q)))
    return DepthScales(_scale(variance_rate), _scale(correlation.slope), q, correlation.value)


def phase(activation: ActivationLike, sigma_w: float, sigma_b: float, *, tolerance: float = 1e-6) -> Phase:
    """``"ordered"``, ``"edge"`` or ``"chaotic"``: chi below, within ``tolerance`` of, or above 1 at the limit variance.

    Where the variance has no finite limit, chi is taken in the limit of infinite variance.
    """
    value = limit_chi(activation, sigma_w, sigma_b)
    if abs(value - 1) <= nonnegative_number("tolerance", tolerance):
        return "edge"
    return "ordered" if value < 1 else "chaotic"


def limit_chi(activation: ActivationLike, sigma_w: float, sigma_b: float) -> float:
    """chi at the variance that the map reaches from q = 1, which may be 0 or infinite."""
    activation = as_activation(activation)
    q = limit_variance(activation, sigma_w, sigma_b)
    if q < math.inf:
        return float(chi(activation, sigma_w, sigma_b, q))
    _, slopes = activation.value_and_slope(torch.tensor([-1e8, 1e8], dtype=torch.float64))
    return sigma_w**2 * float((slopes * slopes).mean())


def phase_diagram(activation: ActivationLike, sigma_w: Tensor, sigma_b: Tensor) -> tuple[Tensor, Tensor]:
    """chi and the limit of the variance on a grid, each [len(sigma_b), len(sigma_w)]; infinite variances included."""
    activation = as_activation(activation)
    for weight, bias in ((float(sigma_w.min()), 0.0), (float(sigma_w.max()), float(sigma_b.min()))):
        check_sigmas(weight, bias)
    sw2, sb2 = torch.meshgrid(sigma_w.double() ** 2, sigma_b.double() ** 2, indexing="xy")
    q = torch.full_like(sw2, math.inf)
    grid = torch.logspace(-8, 6, 85, dtype=torch.float64)
    square = second_moments(activation, grid)[0]
    excess = (sb2[..., None] + sw2[..., None] * square) / grid - 1  # [b, w, grid]
    middle = int((grid - 1).abs().argmin())
    rising = excess[..., middle] > 0
    # The first sign change in the direction in which the variance moves from about 1.
    crossed = (excess > 0) != rising[..., None]
    upward, downward = crossed[..., middle:], crossed[..., : middle + 1].flip(-1)
    ahead = torch.where(rising, middle + upward.long().argmax(-1), middle - downward.long().argmax(-1))
    exists = torch.where(rising, upward.any(-1), downward.any(-1))
    q[exists] = _polished(activation, grid[ahead[exists]], sw2[exists], sb2[exists])
    if sigma_b.min() == 0 and float(activation.value(torch.zeros(1, dtype=torch.float64))) == 0:
        q[~rising & ~exists & (sb2 == 0)] = 0.0
    finite = torch.isfinite(q)
    _, slopes = activation.value_and_slope(torch.tensor([-1e8, 1e8], dtype=torch.float64))
    chi = sw2 * (slopes * slopes).mean()
    chi[finite] = sw2[finite] * second_moments(activation, q[finite])[1]
    return chi, q


def _polished(activation: Activation, q: Tensor, sw2: Tensor, sb2: Tensor) -> Tensor:
    """Newton's iteration for log F(q) = log q, from a neighbor on the grid; steps of at most a factor of 2."""
    for _ in range(12):
        square, _, cross = second_moments(activation, q)
        value = sb2 + sw2 * square
        step = (value / q).log() / (1 - q * sw2 * cross / value)
        q = q * step.clamp(-0.7, 0.7).exp()
        if bool(step.abs().max() < 1e-12):
            break
    return q


def _scale(rate: float) -> float:
    if abs(rate - 1) <= EDGE:
        return math.inf
    if rate == 0:
        return 0.0
    return -1 / math.log(rate)
