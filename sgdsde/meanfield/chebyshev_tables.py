"""Pair expectations for whole kernel matrices without a closed form: Chebyshev tables in the angle and both scales.

For phi smooth on either side of 0, E phi(u) phi(v) and E phi'(u) phi'(v) are analytic in (s1, s2, theta) up to and
including theta = 0 and pi, kinks at 0 or not: in polar coordinates every kink is a ray. So a small table, computed once
per layer, serves every entry of a kernel. Its error is measured at points that are not its nodes, against the rule of
``quadrature``, and the table grows until it is below 1e-9, or the layer is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.meanfield import quadrature
from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.closed_forms import ClosedForm, clamp_correlation_, closed_form
from sgdsde.meanfield.gauss_panels import nodes_and_weights
from sgdsde.meanfield.hermite import HermiteSeries, hermite_series

ACCURACY = 1e-9  # of sqrt(E phi(u)^2 E phi(v)^2), at most this much worse than quadrature at any tested point
SIZES = ((4, 32), (7, 36), (10, 40), (18, 80), (26, 128))  # nodes in s, nodes in theta
MOST_DIRECT = 4096
SLACK = 1e-10  # relative: on the edge of chaos rounding moves a fixed scale by less, from layer to layer
POLAR_ORDERS = (6, 8), (9, 11), (14, 15), (20, 22), (32, 34)  # nodes per panel in angle and in radius


@dataclass(frozen=True)
class Table:
    """E phi phi and E phi' phi' for standard deviations in [low, high], as Chebyshev series in theta.

    Attributes:
        coefficients: [2, k, a, a], Chebyshev in theta (axis k), values at the nodes of s (last two axes).
    """

    low: float
    high: float
    coefficients: Tensor

    def pair_(self, covariance: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """E phi phi and E phi' phi' for covariances [..., n1, n2] (overwritten) and s [..., n1], [..., n2].

        Cost: two fused operations for each coefficient and entry, and a product of rank a.
        """
        c = covariance.div_(s1[..., :, None].clamp_min(1e-300)).div_(s2[..., None, :].clamp_min(1e-300))
        t = clamp_correlation_(c).arccos_().mul_(2 / math.pi).sub_(1)
        coefficients = self.coefficients.to(t.device)
        left, right = self._basis(s1), self._basis(s2).transpose(-1, -2)
        product, slopes = (_clenshaw(t, left, part, right) for part in coefficients)
        return product, slopes

    def _basis(self, s: Tensor) -> Tensor:
        """Lagrange polynomials of the nodes of s, [..., n, a]."""
        count = self.coefficients.shape[-1]
        if count == 1:
            return torch.ones_like(s)[..., None]
        nodes = _chebyshev_nodes(count).to(s)
        degrees = torch.arange(count, dtype=s.dtype, device=s.device)
        to_values = torch.cos(degrees[:, None] * torch.arccos(nodes)) * 2 / count
        to_values[0] /= 2
        x = ((2 * s - self.high - self.low) / (self.high - self.low)).clamp(-1, 1)
        return torch.cos(torch.arccos(x)[..., None] * degrees) @ to_values


def dual_at(activation: Activation, low: float, high: float, previous: Dual | None = None) -> Dual:
    """Method of pair expectations for standard deviations in [low, high]: closed form, series, table or quadrature.

    Args:
        previous: the dual of the layer before, returned again if it covers [low, high].
    Raises:
        ValueError: no table of the largest size reaches 1e-9.
    """
    exact = closed_form(activation)
    if exact is not None:
        return exact
    if isinstance(previous, HermiteSeries | Table | Direct) and _covers(previous, low, high):
        return previous
    single = high - low <= SLACK * high
    if not single:  # a margin, so that the next layers, whose scales converge, find themselves covered
        low, high = low * 0.98, high * 1.02
    series = hermite_series(activation, low, high)
    if series is not None:
        return series
    if len(activation.kinks(high * quadrature.REACH)) > 1:
        return Direct(activation, low, high)
    check = _Reference.spread_over(activation, low, high)
    orders = [orders for orders in POLAR_ORDERS if check.error_of_polar(activation, orders) <= ACCURACY / 10][:1]
    # The number of nodes that a ratio of scales needs was measured for tanh and ELU; a wrong guess only costs time.
    skip = sum(high > ratio * low for ratio in (1.05, 1.3))
    for scales, angles in SIZES[skip:] if orders else ():
        table = _tabulate(activation, (low, high), (1 if single else scales, angles), orders[0])
        if check.error_of_table(table) <= ACCURACY:
            return table
    received = f"{activation.name} at standard deviations {low:.4g} to {high:.4g}"
    remedy = "a large variance usually means that sigma_w lets it grow with depth: see meanfield.limit_variance"
    raise ValueError(complaint("activation", f"tabulated to {ACCURACY:.0e}", received, remedy))


@dataclass(frozen=True)
class Direct:
    """Quadrature for every entry: slow, and the only way where kinks lie away from 0 (hardtanh, ReLU6).

    Two kinks at one x but at different scales nearly coincide for nearly equal inputs, which no small table follows.
    """

    activation: Activation
    low: float
    high: float

    def pair_(self, covariance: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """E phi phi and E phi' phi' for covariances [..., n1, n2] (overwritten) and s [..., n1], [..., n2].

        Raises:
            ValueError: more than 4096 entries, each of which takes milliseconds.
        """
        if covariance.numel() > MOST_DIRECT:
            name = f"a tile of a kernel of {self.activation.name}"
            remedy = "kinks away from 0 have no table and cost milliseconds each; use fewer inputs, or memory=200_000"
            raise ValueError(complaint(name, f"at most {MOST_DIRECT} pairs", covariance.numel(), remedy))
        s1, s2 = s1[..., :, None].clamp_min(1e-150), s2[..., None, :].clamp_min(1e-150)
        c = clamp_correlation_(covariance.div_(s1).div_(s2))
        found = quadrature.pair_moments(self.activation, s1, s2, c)
        return found.product, found.slope_product


Dual = ClosedForm | HermiteSeries | Table | Direct


def _covers(dual: HermiteSeries | Table | Direct, low: float, high: float) -> bool:
    return dual.low * (1 - SLACK) <= low and high <= dual.high * (1 + SLACK)


def _tabulate(
    activation: Activation, bounds: tuple[float, float], sizes: tuple[int, int], orders: tuple[int, int]
) -> Table:
    (low, high), (scales, angles) = bounds, sizes
    s = torch.tensor([high]).double() if scales == 1 else low + (high - low) * (1 + _chebyshev_nodes(scales)) / 2
    theta = math.pi * (1 + _chebyshev_nodes(angles)) / 2
    i, j = torch.triu_indices(len(s), len(s))
    s1, s2, angle = (t.flatten() for t in torch.broadcast_tensors(s[i, None], s[j, None], theta))
    values = polar_moments(activation, s1, s2, angle, orders)
    degrees = torch.arange(angles, dtype=torch.float64)
    transform = torch.cos(degrees[:, None] * torch.arccos(_chebyshev_nodes(angles))) * 2 / angles
    transform[0] /= 2
    series = torch.einsum("ka,fpa->fkp", transform, values.reshape(2, len(i), angles))
    coefficients = torch.empty(2, angles, len(s), len(s), dtype=torch.float64)
    coefficients[:, :, i, j] = series
    coefficients[:, :, j, i] = series
    size = coefficients.abs().amax((0, 2, 3))
    needed = int((size > 1e-14 * size.max()).nonzero().max()) + 1
    return Table(low, high, coefficients[:, :needed].contiguous())


@dataclass(frozen=True)
class _Reference:
    """Pair expectations [2, 12] by the general rule, at points between the nodes of any table, and their scales."""

    s1: Tensor
    s2: Tensor
    theta: Tensor
    values: Tensor
    scales: Tensor

    @classmethod
    def spread_over(cls, activation: Activation, low: float, high: float) -> _Reference:
        n = torch.arange(12, dtype=torch.float64)
        # An additive recurrence of irrational steps: spread points without a random stream.
        s1, s2 = (low + (high - low) * torch.frac(n * step + 0.13) for step in (0.7548776662, 0.5698402910))
        theta = math.pi * torch.frac(n * 0.6180339887 + 0.01) ** 2
        found = quadrature.pair_moments(activation, s1, s2, theta.cos())
        first, second = quadrature.moments(activation, s1), quadrature.moments(activation, s2)
        scales = [(first.square * second.square).sqrt(), (first.slope_square * second.slope_square).sqrt()]
        return cls(s1, s2, theta, torch.stack([found.product, found.slope_product]), torch.stack(scales))

    def error_of_polar(self, activation: Activation, orders: tuple[int, int]) -> float:
        """The largest error of ``polar_moments`` with these orders, relative to the scales."""
        return self._error(polar_moments(activation, self.s1, self.s2, self.theta, orders))

    def error_of_table(self, table: Table) -> float:
        """The largest error of a table, relative to the scales."""
        covariance = self.theta.cos() * self.s1 * self.s2
        pair = table.pair_(covariance[:, None, None], self.s1[:, None], self.s2[:, None])
        return self._error(torch.stack(pair).flatten(1))

    def _error(self, values: Tensor) -> float:
        return float(((values - self.values).abs() / self.scales.clamp_min(1e-300)).max())


def polar_moments(activation: Activation, s1: Tensor, s2: Tensor, theta: Tensor, orders: tuple[int, int]) -> Tensor:
    """E phi phi and E phi' phi' [2, m] at correlations cos(theta), for phi whose only kink may be at 0.

        1/(2 pi) int dalpha int r exp(-r^2/2) phi(s1 r cos(alpha)) phi(s2 r cos(alpha - theta)) dr

    with panels in alpha between the rays cos(alpha) = 0 and cos(alpha - theta) = 0, near which phi bends over an angle
    1/(s r): short panels lie along the rays, and radial panels grow from 1/s.
    """
    r, radial_weight = nodes_and_weights(_radii(float(torch.maximum(s1, s2).max())), orders[1])
    live = radial_weight * r * torch.exp(-r * r / 2)
    quarter = torch.full_like(theta, math.pi / 2)
    rays = torch.stack([-quarter, theta - quarter, quarter, theta + quarter, 3 * quarter], -1)
    sector = (rays[:, 1:] - rays[:, :-1])[..., None]
    splits = rays[:, :-1, None] + sector * torch.tensor([0.0, 0.12, 0.5, 0.88], dtype=torch.float64)
    edges = torch.cat([splits.flatten(1), rays[:, -1:]], -1)
    results = torch.empty(2, len(theta), dtype=torch.float64)
    for part in torch.arange(len(theta)).split(max(1, 400_000 // (16 * orders[0] * len(r)))):
        alpha, weight = nodes_and_weights(edges[part], orders[0])
        u = s1[part, None, None] * alpha.cos()[..., None] * r
        v = s2[part, None, None] * (alpha - theta[part, None]).cos()[..., None] * r
        value_u, slope_u = activation.value_and_slope(u)
        value_v, slope_v = activation.value_and_slope(v)
        for row, integrand in enumerate((value_u * value_v, slope_u * slope_v)):
            results[row, part] = ((integrand @ live) * weight).sum(-1) / (2 * math.pi)
    return results


def _radii(s: float) -> Tensor:
    """Radial edges from 0 to 9 standard deviations, growing by factors of 2.2 from 1.5/s to the density's scale."""
    edges = [0.0]
    while (nearest := 1.5 / s * 2.2 ** (len(edges) - 1)) < 0.8:
        edges.append(nearest)
    return torch.tensor([*edges, *([0.8, 1.8] if len(edges) == 1 else [1.4]), 3.0, 5.0, 9.0], dtype=torch.float64)


def _chebyshev_nodes(count: int) -> Tensor:
    return -torch.cos(math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count)


def _clenshaw(t: Tensor, left: Tensor, coefficients: Tensor, right: Tensor) -> Tensor:
    """sum_k T_k(t) (left C_k right), for t [..., n1, n2]."""
    constant = coefficients.shape[-1] == 1
    before, last = torch.zeros_like(t), torch.zeros_like(t)
    for k in range(len(coefficients) - 1, -1, -1):
        term = coefficients[k, 0, 0] if constant else (left @ coefficients[k]) @ right
        # b_k = 2 t b_{k+1} - b_{k+2} + C_k; the last step has t instead of 2 t.
        before = before.neg_().addcmul_(t, last, value=2.0 if k else 1.0).add_(term)
        before, last = last, before
    return last
