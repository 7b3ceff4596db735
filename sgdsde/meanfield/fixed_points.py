"""Where the maps come to rest: fixed points with their stability, the depth scales, and the phases."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from scipy.optimize import brentq
from torch import Tensor

from sgdsde._checks import complaint, nonnegative_number
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.closed_forms import Homogeneous, closed_form
from sgdsde.meanfield.maps import (
    check_sigmas,
    chi,
    correlation_gap_map,
    correlation_slope,
    second_moments,
    variance_map,
    variance_slope,
)

Phase: TypeAlias = Literal["ordered", "edge", "chaotic"]

LARGEST = 1e6  # a variance beyond which no fixed point is looked for
EDGE = 1e-8  # chi within this of 1 is on the edge: quadrature is good to about 1e-12, a root finder's q to 1e-10


class FixedPoint(NamedTuple):
    """A fixed point of a map, the map's slope there, and whether iteration near it returns to it."""

    value: float
    slope: float
    is_stable: bool


class DepthScales(NamedTuple):
    """How many layers a deviation needs to shrink by a factor e: of the variance, and of the correlation.

    ``correlation`` is taken at ``limit_correlation``: 1 in the ordered phase, below 1 in the chaotic one. A scale is
    infinite where its slope is 1, as the correlation's is on the edge of chaos.
    """

    variance: float
    correlation: float
    limit_variance: float
    limit_correlation: float


def variance_fixed_points(activation: ActivationLike, sigma_w: float, sigma_b: float) -> list[FixedPoint]:
    """All fixed points of the variance map in [0, 1e6], ascending, with the slope F'(q) and the stability of each.

    For a positively homogeneous activation at its critical sigma_w without bias every q is fixed; the list is then
    empty, and ``limit_variance`` returns its start.
    """
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(sigma_w, sigma_b)
    exact = closed_form(activation)
    if isinstance(exact, Homogeneous):
        return _homogeneous_fixed_points(sigma_w**2 * exact.gain, sigma_b)
    points = []
    if sigma_b == 0 and float(activation.value(torch.zeros(1, dtype=torch.float64))) == 0:
        slope = float(variance_slope(activation, sigma_w, 0.0, 0.0))
        tiny = 1e-4
        falls = float(variance_map(activation, sigma_w, 0.0, tiny)) < tiny
        points.append(FixedPoint(0.0, slope, falls if abs(slope - 1) < EDGE else slope < 1))

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return float(variance_map(activation, sigma_w, sigma_b, q)) / q - 1

    for low, high in _sign_changes(activation, sigma_w, sigma_b):
        q = math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-14, rtol=1e-14))
        slope = float(variance_slope(activation, sigma_w, sigma_b, q))
        points.append(FixedPoint(q, slope, abs(slope) < 1))
    return points


def limit_variance(activation: ActivationLike, sigma_w: float, sigma_b: float, *, start: float = 1.0) -> float:
    """The variance that the map reaches from ``start`` after many layers: a fixed point, or infinity."""
    activation = as_activation(activation)
    start = nonnegative_number("start", start)
    now = float(variance_map(activation, sigma_w, sigma_b, start))
    if abs(now - start) <= 1e-12 * start:
        return start
    points = [point.value for point in variance_fixed_points(activation, sigma_w, sigma_b)]
    ahead = [q for q in points if (q > start) == (now > start)]
    if not ahead:
        return math.inf
    return min(ahead) if now > start else max(ahead)


def limit_correlation(
    activation: ActivationLike, sigma_w: float, sigma_b: float, *, q: float | None = None
) -> FixedPoint:
    """The stable fixed point c* of the correlation map in [0, 1], with the slope f'(c*).

    f has only nonnegative Taylor coefficients, so it is convex on [0, 1]: c* = 1 where chi <= 1, else the one root
    below 1, found in 1 - c.
    """
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(sigma_w, sigma_b)
    q = limit_variance(activation, sigma_w, sigma_b) if q is None else q
    if not 0 < q < math.inf:
        received = f"{q:g} at sigma_w={sigma_w:.6g}, sigma_b={sigma_b:.6g}"
        raise ValueError(complaint("the limit of the variance", "finite and positive", received, "pass q"))
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
    """How deep a signal can travel: xi_q = -1/log|F'(q)| and xi_c = -1/log f'(c*).

    In the ordered phase f'(c*) = chi; in the chaotic phase -1/log chi would be negative, and the slope is taken at the
    stable c* < 1 (where the published formula is often read at c = 1 by mistake).

    Raises:
        ValueError: the variance has no finite positive limit.
    """
    activation = as_activation(activation)
    q = limit_variance(activation, sigma_w, sigma_b)
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


def _homogeneous_fixed_points(gain: float, sigma_b: float) -> list[FixedPoint]:
    if abs(gain - 1) < EDGE:
        return []
    if sigma_b == 0:
        return [FixedPoint(0.0, gain, gain < 1)]
    return [FixedPoint(sigma_b**2 / (1 - gain), gain, True)] if gain < 1 else []


def _sign_changes(activation: Activation, sigma_w: float, sigma_b: float) -> list[tuple[float, float]]:
    """Brackets [low, high] of q on which F(q) - q changes sign."""
    q = torch.logspace(-8, 2, 61, dtype=torch.float64)
    excess = _excess(activation, sigma_w, sigma_b, q)
    if bool(excess[-1] > 0):  # more to be found above, or nothing at all
        above = torch.logspace(2, math.log10(LARGEST), 17, dtype=torch.float64)[1:]
        q, excess = torch.cat([q, above]), torch.cat([excess, _excess(activation, sigma_w, sigma_b, above)])
    changes = (excess[1:] > 0) != (excess[:-1] > 0)
    # Below the grid, F(q) = q + rounding may flicker where phi(0) = 0 and sigma_w |phi'(0)| = 1: no root of its own.
    changes &= (excess[1:].abs() > 1e-12) | (excess[:-1].abs() > 1e-12)
    return [(float(q[i]), float(q[i + 1])) for i in changes.nonzero()[:, 0].tolist()]


def _excess(activation: Activation, sigma_w: float, sigma_b: float, q: Tensor) -> Tensor:
    return (sigma_b**2 + sigma_w**2 * second_moments(activation, q)[0]) / q - 1
