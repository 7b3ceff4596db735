"""The variance of preactivations at infinite width: its map from layer to layer, slope, fixed points, and limit.

    q' = F(q) = sigma_b^2 + sigma_w^2 E phi(sqrt(q) Z)^2,    Z from N(0, 1)

sigma_w and sigma_b are standard deviations.

Source: Hayou, Doucet, Rousseau, arXiv:1805.08266; Poole et al., arXiv:1606.05340.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from sgdsde._checks import complaint, nonnegative_number, positive_number
from sgdsde.meanfield import quadrature
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.closed_forms import Homogeneous, closed_form

LARGEST = 1e6  # a variance beyond which no fixed point is looked for
EDGE = 1e-8  # chi within this of 1 is on the edge: quadrature is good to about 1e-12, a root finder's q to 1e-10


class FixedPoint(NamedTuple):
    """A fixed point of a map, the map's slope there, and whether iteration near it returns to it."""

    value: float
    slope: float
    is_stable: bool


def check_sigmas(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    """Both standard deviations as floats; sigma_w positive, sigma_b not negative."""
    checked = positive_number("sigma_w", sigma_w, "it is a standard deviation")
    return checked, nonnegative_number("sigma_b", sigma_b, "it is a standard deviation")


def as_variance(q: Tensor | float) -> Tensor:
    """Variances as a float64 tensor, checked finite and not negative."""
    values = torch.as_tensor(q, dtype=torch.float64)
    if values.numel() and not bool((torch.isfinite(values) & (values >= 0)).all()):
        bad = values[~(torch.isfinite(values) & (values >= 0))][0]
        raise ValueError(complaint("q", "a finite variance, zero or positive", float(bad)))
    return values


def second_moments(activation: Activation, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E phi^2, E phi'^2 and E x phi phi' / q = d E phi^2 / dq at variances q; exact where a closed form exists."""
    exact = closed_form(activation)
    if exact is not None:
        return exact.single(q)
    found = quadrature.moments(activation, q.sqrt())
    return found.square, found.slope_square, found.cross


def variance_map(activation: ActivationLike, sigma_w: float, sigma_b: float, q: Tensor | float) -> Tensor:
    """F(q), the variance of the next layer's preactivations.

        F(q) = sigma_b^2 + sigma_w^2 E phi(sqrt(q) Z)^2

    Raises:
        ValueError: a negative sigma or q. TypeError: an activation without derivative.
    Exactness: 1e-12 relative.
    """
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    return sigma_b**2 + sigma_w**2 * second_moments(as_activation(activation), as_variance(q))[0]


def variance_slope(activation: ActivationLike, sigma_w: float, sigma_b: float, q: Tensor | float) -> Tensor:
    """F'(q) = sigma_w^2 E[x phi(x) phi'(x)] / q; a fixed point is stable where it is below 1 in absolute value."""
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    return sigma_w**2 * second_moments(as_activation(activation), as_variance(q))[2]


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


def positive_limit(activation: ActivationLike, sigma_w: float, sigma_b: float) -> float:
    """The limit of the variance from 1, where a correlation map needs it finite and positive.

    Raises:
        ValueError: it is zero or infinite.
    """
    reached = limit_variance(activation, sigma_w, sigma_b)
    if not 0 < reached < math.inf:
        received = f"{reached:g} for {as_activation(activation).name} at sigma_w={sigma_w:.6g}, sigma_b={sigma_b:.6g}"
        raise ValueError(complaint("the limit of the variance", "finite and positive", received, "pass q"))
    return reached


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
