"""Pair expectations of smooth activations by Mehler's formula: a power series in the correlation, separable in s1, s2.

With the normalized Hermite polynomials h_k and a_k(s) = E phi(s Z) h_k(Z),

    E phi(u) phi(v) = sum_k a_k(s1) a_k(s2) c^k

By Cauchy and Schwarz the terms from K on add at most |c|^K sqrt(t(s1) t(s2)), t(s) = E phi^2 - sum_{k<K} a_k^2, so the
truncation is certified for every pair at once. For analytic phi the series is short; for a kink t falls only like a
power of K, and ``tables`` takes over.

Source: Mehler's formula; Daniely, Frostig, Singer, arXiv:1602.05897 (dual activations).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.meanfield import quadrature
from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.closed_forms import clamp_correlation_
from sgdsde.meanfield.gauss_panels import nodes_and_weights

MOST_TERMS = 800
TAIL = 1e-10  # of E phi^2: what a certified series may leave out; rounding is at 1e-15


@dataclass(frozen=True)
class HermiteSeries:
    """Mehler's series of one activation for standard deviations in [low, high], at fixed quadrature nodes.

    Attributes:
        nodes: z [p]; rows: weight * h_k(z), [p, k].
        terms, slope_terms: how many coefficients of phi and of phi' are needed.
    """

    activation: Activation
    nodes: Tensor
    rows: Tensor
    terms: int
    slope_terms: int
    low: float
    high: float

    def pair_(self, covariance: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """E phi phi and E phi' phi' for covariances [..., n1, n2] (overwritten) and s [..., n1], [..., n2].

        Cost: two fused operations for each coefficient and entry.
        """
        c = covariance.div_(s1[..., :, None].clamp_min(1e-300)).div_(s2[..., None, :].clamp_min(1e-300))
        clamp_correlation_(c)
        (values_1, slopes_1), (values_2, slopes_2) = self.coefficients(s1), self.coefficients(s2)
        product = _power_series(c, values_1[..., : self.terms], values_2[..., : self.terms])
        return product, _power_series(c, slopes_1[..., : self.slope_terms], slopes_2[..., : self.slope_terms])

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """a_k of phi(s .) and of phi'(s .), [..., n, k] each."""
        values, slopes = self.activation.value_and_slope(s[..., None] * self.nodes.to(s.device))
        rows = self.rows.to(s.device)
        return values @ rows, slopes @ rows


def hermite_series(activation: Activation, low: float, high: float) -> HermiteSeries | None:
    """The series for standard deviations in [low, high], or None where ``MOST_TERMS`` leave out more than 1e-10."""
    span = quadrature.reach(activation, high) if high > 0 else quadrature.REACH
    if high == 0:
        return None
    # sqrt(p) h_k is a wave of local length about pi / sqrt(k): short panels, whatever phi is.
    edges = quadrature.smooth_edges(activation, high, span)
    edges = torch.cat(
        [edges, torch.zeros(1, dtype=torch.float64), torch.arange(-2 * int(span), 2 * int(span) + 1).double() / 2]
    )
    z, weight = nodes_and_weights(torch.unique(edges))
    root = quadrature.density(z).sqrt()
    functions = _hermite_functions(z, root, MOST_TERMS)
    series = HermiteSeries(activation, z, functions * (weight * root)[:, None], MOST_TERMS, MOST_TERMS, low, high)
    s = torch.linspace(low, high, 5, dtype=torch.float64)
    needed = []
    for coefficients, values in zip(series.coefficients(s), activation.value_and_slope(s[:, None] * z)):
        total = (values**2 * (weight * root * root)).sum(-1, keepdim=True)
        left_out = (total - (coefficients**2).cumsum(-1)) / total.clamp_min(1e-300)
        enough = (left_out <= TAIL).all(0)
        if not bool(enough.any()):
            return None
        needed.append(int(enough.nonzero()[0]) + 1)
    return HermiteSeries(activation, z, series.rows, needed[0], needed[1], low, high)


def _hermite_functions(z: Tensor, first: Tensor, count: int) -> Tensor:
    """first * h_k(z) for k < count, [p, count], by the stable three-term recurrence."""
    rows = [first, first * z]
    for k in range(1, count - 1):
        rows.append((z * rows[-1] - k**0.5 * rows[-2]) / (k + 1) ** 0.5)
    return torch.stack(rows[:count], -1)


def _power_series(c: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """sum_k left_k right_k c^k, for c [..., n1, n2], by Horner's rule."""
    last = left.shape[-1] - 1
    total = left[..., :, None, last] * right[..., None, :, last]
    for k in range(last - 1, -1, -1):
        total.mul_(c).addcmul_(left[..., :, None, k], right[..., None, :, k])
    return total
