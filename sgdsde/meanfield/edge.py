"""The edge of chaos: the initializations at which neither order nor chaos wins, chi = 1 at a fixed variance.

Both conditions, q = sigma_b^2 + sigma_w^2 E phi^2 and sigma_w^2 E phi'^2 = 1, hold for one q exactly where

    g(q) = q - E phi^2 / E phi'^2 = sigma_b^2,        sigma_w = 1 / sqrt(E phi'^2)

With a_k the Hermite coefficients of phi(sqrt(q) z), g(q) E phi'^2 = sum_k (k - 1) a_k^2, so

    g(q) = (q Var phi' - E (phi - a_0 - x E phi')^2 - a_0^2) / E phi'^2

in which, for an odd phi, no digits cancel however small q is. The curve is explicit in q; for a given sigma_b a root
is bracketed on a grid of q and polished, where the paper's iteration q <- sigma_b^2 + E phi^2 / E phi'^2 needs
thousands of steps at small sigma_b.

Source: Hayou, Doucet, Rousseau, arXiv:1902.06853 (algorithm 1) and 1805.08266, whose tables are Monte Carlo and good to
    two digits. Their claim that sigmoid has no edge of chaos is an error: it lies far out, at sigma_w near 10.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from sgdsde._checks import complaint, nonnegative_number
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.closed_forms import Homogeneous, closed_form
from sgdsde.meanfield.quadrature import moments

SMALLEST_Q, LARGEST_Q = 1e-7, 1e4


class UnstableEdgeWarning(UserWarning):
    """The edge-of-chaos point is an unstable fixed point of the variance map: rounding or width drives it away."""


class EdgeOfChaos(NamedTuple):
    """sigma_w (a standard deviation), the variance q, and whether q is a stable fixed point of the variance map."""

    sigma_w: float
    q: float
    is_stable: bool


@dataclass(frozen=True)
class EdgeOfChaosCurve:
    """The edge of chaos, one entry for each q; sigma_b is nan where g(q) < 0: no point has this q. slope = F'(q)."""

    q: Tensor
    sigma_b: Tensor
    sigma_w: Tensor
    slope: Tensor
    is_stable: Tensor


def edge_of_chaos(activation: ActivationLike, sigma_b: float) -> EdgeOfChaos:
    """(sigma_w, q, is_stable) on the edge of chaos at bias standard deviation sigma_b.

    Positively homogeneous activations (ReLU, leaky ReLU) have the one point sigma_b = 0, sigma_w^2 E phi'^2 = 1, at
    which every q is fixed, neutrally: q = 1 and ``is_stable=True`` are returned. At sigma_b = 0 an activation with
    phi(0) = 0 has q = 0, sigma_w = 1/|phi'(0)|. Of several points the stable one of smallest q is returned, else the
    smallest.

    Raises:
        ValueError: no such point (softplus; ReLU with sigma_b > 0), or sigma_b negative.
        TypeError: an activation without derivative.
    Warns:
        UnstableEdgeWarning: F'(q) > 1 (SiLU for 0 < sigma_b < 0.745, exact GELU for 0 < sigma_b < 0.416).
    Exactness: q to 1e-10, sigma_w to 1e-10 (sigma_w alone to 1e-12 where dq is small).
    """
    activation = as_activation(activation)
    sigma_b = nonnegative_number("sigma_b", sigma_b, "it is a standard deviation")
    exact = closed_form(activation)
    if isinstance(exact, Homogeneous):
        return _homogeneous(activation, exact, sigma_b)
    candidates = [_point(activation, q) for q in _roots(activation, sigma_b)]
    if sigma_b == 0 and float(activation.value(torch.zeros(1, dtype=torch.float64))) == 0:
        candidates = _at_origin(activation) + candidates
    if not candidates:
        raise ValueError(_no_point(activation, sigma_b))
    found, slope = min(candidates, key=lambda candidate: (not candidate[0].is_stable, candidate[0].q))
    if not found.is_stable:
        message = (
            f"the edge-of-chaos point of {activation.name} at sigma_b={sigma_b:.6g} (sigma_w={found.sigma_w:.6f}, "
        )
        message += (
            f"q={found.q:.6f}) is an unstable fixed point of the variance map, F'(q)={slope:.4f} > 1: a layer of "
        )
        message += "finite width drifts away from it; scale the inputs to q exactly, or choose a larger sigma_b"
        warnings.warn(message, UnstableEdgeWarning, stacklevel=2)
    return found


def edge_of_chaos_curve(activation: ActivationLike, q: Tensor | Sequence[float]) -> EdgeOfChaosCurve:
    """The whole curve at variances q > 0: sigma_b = sqrt(g(q)), sigma_w = 1/sqrt(E phi'^2), without root finding."""
    activation = as_activation(activation)
    values = torch.as_tensor(q, dtype=torch.float64)
    if not bool((values > 0).all()):
        raise ValueError(complaint("q", "positive", float(values.min())))
    found = moments(activation, values.sqrt())
    g = _bias_variance(activation, values)
    # Rounding may leave g = -1e-17 q where it is zero, as for ReLU.
    g = torch.where(g.abs() < 1e-13 * values, torch.zeros_like(g), g)
    slope = found.cross / found.slope_square
    return EdgeOfChaosCurve(values, g.sqrt(), found.slope_square.rsqrt(), slope, slope.abs() < 1)


def _bias_variance(activation: Activation, q: Tensor) -> Tensor:
    """g(q), the sigma_b^2 for which q lies on the edge of chaos; negative where none does."""
    found = moments(activation, q.sqrt())
    return (q * found.slope_variance - found.residual_square - found.mean**2) / found.slope_square


def _point(activation: Activation, q: float) -> tuple[EdgeOfChaos, float]:
    found = moments(activation, torch.tensor([q], dtype=torch.float64).sqrt())
    slope = float(found.cross / found.slope_square)
    return EdgeOfChaos(1 / math.sqrt(float(found.slope_square)), q, abs(slope) < 1), slope


def _roots(activation: Activation, sigma_b: float) -> list[float]:
    """The q in [1e-7, 1e4] with g(q) = sigma_b^2."""
    q, g = _scan(activation, sigma_b)
    above = g > sigma_b**2
    changes = (above[1:] != above[:-1]).nonzero()[:, 0].tolist()

    def excess(log_q: float) -> float:
        return float(_bias_variance(activation, torch.tensor([math.exp(log_q)], dtype=torch.float64))) - sigma_b**2

    ends = [(math.log(float(q[i])), math.log(float(q[i + 1]))) for i in changes]
    return [math.exp(brentq(excess, *end, xtol=1e-14, rtol=1e-14)) for end in ends]


def _scan(activation: Activation, sigma_b: float) -> tuple[Tensor, Tensor]:
    """A grid of q and g on it, as far as phi can be integrated."""
    q = torch.logspace(math.log10(SMALLEST_Q), 2, 64, dtype=torch.float64)
    g = _bias_variance(activation, q)
    if bool(g[-1] > sigma_b**2):
        return q, g
    above = torch.logspace(2, math.log10(LARGEST_Q), 15, dtype=torch.float64)[1:]
    return torch.cat([q, above]), torch.cat([g, _bias_variance(activation, above)])


def _at_origin(activation: Activation) -> list[tuple[EdgeOfChaos, float]]:
    """The point q = 0 of an activation with phi(0) = 0, at sigma_b = 0: stable where F(q) < q just above it."""
    left, right = activation.slope_at_zero()
    gain = (left**2 + right**2) / 2
    if gain == 0:
        return []
    found = moments(activation, torch.tensor([1e-2, 1e-3], dtype=torch.float64))
    falls = found.square / gain < torch.tensor([1e-4, 1e-6], dtype=torch.float64)
    return [(EdgeOfChaos(1 / math.sqrt(gain), 0.0, bool(falls.all())), 1.0)]


def _homogeneous(activation: Activation, exact: Homogeneous, sigma_b: float) -> EdgeOfChaos:
    if exact.gain == 0:
        raise ValueError(complaint("activation", "not constant", activation.name))
    sigma_w = 1 / math.sqrt(exact.gain)
    if sigma_b > 0:
        received = f"sigma_b={sigma_b:.6g}"
        remedy = (
            f"its only edge-of-chaos point is sigma_b=0, sigma_w={sigma_w:.6g}: with a bias the variance diverges there"
        )
        raise ValueError(complaint(f"sigma_b of {activation.name}", "0", received, remedy))
    return EdgeOfChaos(sigma_w, 1.0, True)


def _no_point(activation: Activation, sigma_b: float) -> str:
    q, g = _scan(activation, sigma_b)
    best = int(g.argmax())
    low, high = float(g.min()), float(g.max())
    where = (
        f"q - E phi^2 / E phi'^2 stays within [{low:.4g}, {high:.4g}] for q in [{float(q[0]):.0e}, {float(q[-1]):.0e}]"
    )
    if high <= 0:
        remedy = "this activation has no edge of chaos at any sigma_b"
    else:
        remedy = f"its edge of chaos reaches up to sigma_b={math.sqrt(high):.4g}, at q={float(q[best]):.4g}"
    name = f"{activation.name} has no edge of chaos at sigma_b={sigma_b:.6g}: sigma_b^2={sigma_b**2:.4g}"
    return f"{name} is never reached, {where}; {remedy}"
