"""Gaussian expectations of an activation by composite Gauss-Legendre quadrature, in float64, never by sampling.

One dimension: E g(s Z), on panels refined until phi(s z) sqrt(p(z)) and phi'(s z) sqrt(p(z)) are polynomials to 1e-12,
with every kink an edge. Two factors of degree 23 multiply to degree 46, which 24 nodes integrate exactly.

Two dimensions: u = s1 (a X + b Y), v = s2 (a X - b Y), a^2 = (1 + c)/2, b^2 = (1 - c)/2, with X, Y independent. For
c >= 0 every kink of phi(u) or phi(v) is a line X(Y) of slope at most 1, so for each node Y the inner panels are cut
where the lines pass, and the outer panels where two lines cross. Nothing degenerates as c -> 1, where the usual
v = s2 (c X + sqrt(1 - c^2) Y) has a boundary layer. c < 0 is the pair (phi(u), phi(-v)) at -c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.meanfield.activation import Activation
from sgdsde.meanfield.gauss_panels import nodes_and_weights, refine

TOLERANCE = 1e-9  # relative; the promise is 1e-8
REACH = 9.0  # standard deviations; the tail beyond has mass 2e-19
CHUNK = 2_000_000  # quadrature nodes evaluated at once, each some ten float64 temporaries


def density(z: Tensor) -> Tensor:
    """The standard normal density."""
    return torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Moments:
    """Expectations at x = s Z, each of the shape of s.

    mean = E phi, square = E phi^2, slope_mean = E phi', slope_square = E phi'^2, cross = E x phi(x) phi'(x) / s^2,
    residual_square = E (phi - mean - slope_mean x)^2, slope_variance = E (phi' - slope_mean)^2. The last two are
    integrated as they stand: as differences they would lose all digits at small s.
    """

    mean: Tensor
    square: Tensor
    slope_mean: Tensor
    slope_square: Tensor
    cross: Tensor
    residual_square: Tensor
    slope_variance: Tensor


def reach(activation: Activation, s: float) -> float:
    """Standard deviations that the quadrature must span, so that the tails of E phi^2 and E phi'^2 are negligible.

    Raises:
        ValueError: phi grows so fast that no span suffices.
    """
    for span in (REACH, 13.0, 18.0, 26.0, 37.0):
        z = torch.linspace(0, span, 400, dtype=torch.float64)
        value, slope = activation.value_and_slope(torch.stack([-s * z, s * z]))
        weighted = torch.maximum(value * value, slope * slope) * density(z)
        if bool(torch.isfinite(weighted).all()) and float(weighted[:, -1].max()) <= 1e-13 * float(weighted.max()):
            return span
    received = f"{activation.name} at standard deviation {s:.4g}"
    raise ValueError(complaint("activation", "of at most exponential growth", received, "its second moment is lost"))


def smooth_edges(activation: Activation, s: float, span: float) -> Tensor:
    """Edges in z on which phi(s z) and phi'(s z), each times sqrt(p(z)), are resolved; kinks are not among them."""
    if (s, span) not in activation.edges:
        activation.edges[s, span] = _refined_edges(activation, s, span)
    return activation.edges[s, span]


def _refined_edges(activation: Activation, s: float, span: float) -> Tensor:
    kinks = activation.kinks(s * span) / s
    start = torch.cat([torch.tensor([-span, span], dtype=torch.float64), kinks[kinks.abs() < span]])

    def weighted(z: Tensor) -> list[Tensor]:
        value, slope = activation.value_and_slope(s * z)
        root = density(z).sqrt()
        return [value * root, slope * root]

    edges = refine(weighted, torch.unique(start))
    is_kink = (edges[:, None] - kinks[None]).abs().amin(-1) < 1e-14 if len(kinks) else torch.zeros(len(edges)).bool()
    return edges[~is_kink]


def moments(activation: Activation, s: Tensor) -> Moments:
    """The ``Moments`` of phi(s Z) for standard deviations s >= 0 of any shape.

    Raises:
        ValueError: phi grows or oscillates too fast to be integrated to 1e-9.
    Exactness: about 1e-12 relative.
    Cost: a few hundred evaluations for each entry of s.
    """
    flat = s.detach().to("cpu", torch.float64).flatten()
    results = torch.empty(7, len(flat), dtype=torch.float64)
    # Entries within 5 % share one set of smooth edges, in units of x; each has its own kinks.
    bins = torch.where(flat > 0, (flat.clamp_min(1e-300).log2() * 14).ceil(), torch.full_like(flat, -1e9))
    for label in bins.unique():
        members = (bins == label).nonzero()[:, 0]
        top = 2.0 ** (float(label) / 14) if float(label) > -1e9 else 0.0  # not the largest member: edges are kept
        for part in members.split(1000):
            results[:, part] = _moments_in_bin(activation, flat[part], top)
    return Moments(*(row.reshape(s.shape).to(s.device) for row in results))


def _moments_in_bin(activation: Activation, s: Tensor, top: float) -> Tensor:
    """Rows as in ``Moments`` for s [m] in (0.95 top, top], or all zero."""
    if top == 0:
        value, slope = activation.value_and_slope(torch.zeros_like(s))
        left, right = activation.slope_at_zero()
        square = torch.full_like(s, (left**2 + right**2) / 2)
        zero, slope = torch.zeros_like(s), torch.full_like(s, (left + right) / 2)
        return torch.stack([value, value * value, slope, square, square, zero, square - slope * slope])
    span = reach(activation, top)
    edges = smooth_edges(activation, top, span) * (top / s[:, None])
    ends = torch.full((len(s), 1), span, dtype=torch.float64)
    edges = torch.cat([edges, -ends, ends, activation.kinks(top * span) / s[:, None]], -1)
    z, weight = nodes_and_weights(edges.clamp(-span, span).sort(-1).values)
    weight = weight * density(z)
    x = s[:, None] * z
    value, slope = activation.value_and_slope(x)
    mean, slope_mean = (weight * value).sum(-1), (weight * slope).sum(-1)
    residual = value - mean[:, None] - slope_mean[:, None] * x
    variation = slope - slope_mean[:, None]
    rows = [value * value, slope * slope, z / s[:, None] * value * slope, residual * residual, variation * variation]
    square, slope_square, cross, residual_square, slope_variance = ((weight * row).sum(-1) for row in rows)
    return torch.stack([mean, square, slope_mean, slope_square, cross, residual_square, slope_variance])


@dataclass(frozen=True)
class PairMoments:
    """E phi(u) phi(v), E phi'(u) phi'(v) and E (phi(u) - phi(v))^2 at u = s1 U, v = s2 V with corr(U, V) = c."""

    product: Tensor
    slope_product: Tensor
    squared_difference: Tensor


def pair_moments(
    activation: Activation, s1: Tensor, s2: Tensor, c: Tensor, *, gap: Tensor | None = None
) -> PairMoments:
    """The ``PairMoments`` for broadcast standard deviations s1, s2 > 0 and correlations c in [-1, 1].

    Args:
        gap: 1 - |c| where it is known to more digits than c itself holds; the sign is taken from c.
    Raises:
        ValueError: two rules differ by more than 1e-9 after three halvings of all panels.
    Exactness: 1e-9 of sqrt(E phi(u)^2 E phi(v)^2) by comparing rules, 1e-12 in fact; squared_difference to 1e-9 of
        itself, however small the gap.
    Cost: about 1e5 evaluations of phi and phi' for each entry.
    """
    s1, s2, c = torch.broadcast_tensors(s1, s2, c)
    gap = (1 - c.abs()).clamp(0, 1) if gap is None else gap.expand_as(c)
    columns = torch.stack([value.detach().to("cpu", torch.float64).flatten() for value in (s1, s2, c, gap)])
    results = torch.empty(3, c.numel(), dtype=torch.float64)
    top = torch.maximum(columns[0], columns[1])
    bins = (top.clamp_min(1e-300).log2() * 4).ceil() * 2 + (columns[2] < 0)
    for label in bins.unique():
        members = (bins == label).nonzero()[:, 0]
        ceiling = 2.0 ** (float(label // 2) / 4)
        plane = _Plane.cut(activation, ceiling, flipped=bool(columns[2, members[0]] < 0))
        for part in members.split(128):
            results[:, part] = plane.certified(columns[:, part])
    return PairMoments(*(row.reshape(c.shape).to(c.device) for row in results))


@dataclass(frozen=True)
class _Plane:
    """Partition of the (X, Y) plane for standard deviations up to some bound; flipped: for phi(u) phi(-v')."""

    activation: Activation
    span: float
    cuts: Tensor  # smooth edges and kinks in units of x
    kinks: Tensor
    flipped: bool

    @classmethod
    def cut(cls, activation: Activation, top: float, *, flipped: bool) -> _Plane:
        span = reach(activation, top)
        kinks = activation.kinks(top * span)
        return cls(activation, span, torch.cat([smooth_edges(activation, top, span) * top, kinks]), kinks, flipped)

    def certified(self, columns: Tensor) -> Tensor:
        """Rows as in ``PairMoments`` for rows (s1, s2, c, 1 - |c|) of columns [4, m], halving panels where need be."""
        results = torch.empty(3, columns.shape[1], dtype=torch.float64)
        doubtful = torch.arange(columns.shape[1])
        for halvings in range(4):
            coarse, _ = self.integrate(columns[:, doubtful], 11, halvings)
            fine, scale = self.integrate(columns[:, doubtful], 16, halvings)
            results[:, doubtful] = fine
            scale[2] = fine[2] + 1e-6 * scale[2] * torch.finfo(torch.float64).eps / TOLERANCE
            bad = ((fine - coarse).abs() > TOLERANCE * scale).any(0)
            doubtful = doubtful[bad]
            if not len(doubtful):
                return results
        s1, s2, c = (float(column) for column in columns[:3, doubtful[0]])
        expected = f"resolved to {TOLERANCE:.0e} by quadrature"
        received = f"{self.activation.name} at standard deviations {s1:.4g}, {s2:.4g} and correlation {c:.8g}"
        raise ValueError(complaint("activation", expected, received, "it oscillates or bends too fast there"))

    def integrate(self, columns: Tensor, order: int, halvings: int) -> tuple[Tensor, Tensor]:
        """The three integrals [3, m], and their scales [3, m] by Cauchy and Schwarz."""
        y, weight = self._outer_nodes(columns, order, halvings)
        entry, _ = (weight > 1e-30).nonzero(as_tuple=True)
        y, weight = y[weight > 1e-30], weight[weight > 1e-30]
        sums = torch.zeros(7, columns.shape[1], dtype=torch.float64)
        width = (2 * len(self.cuts) + 6) * order * 2**halvings
        for part in torch.arange(len(y)).split(max(1, CHUNK // width)):
            inner = self._inner_integrals(columns[:, entry[part]], y[part], order, halvings)
            sums.index_add_(1, entry[part], inner * weight[part])
        product, slopes, difference, uu, vv, du, dv = sums
        return torch.stack([product, slopes, difference]), torch.stack([(uu * vv).sqrt(), (du * dv).sqrt(), uu + vv])

    def _outer_nodes(self, columns: Tensor, order: int, halvings: int) -> tuple[Tensor, Tensor]:
        s1, s2, _, gap = columns[..., None]
        b = (gap / 2).sqrt()
        sign = -1.0 if self.flipped else 1.0
        crossings = (self.kinks[:, None] / s1[..., None] - sign * self.kinks / s2[..., None]) / (2 * b[..., None])
        edges = torch.cat([crossings.flatten(1), self.cuts / (s1 * b), self._base(len(s1))], -1)
        edges = edges.nan_to_num(0.0).clamp(-self.span, self.span)  # 0 / 0 at c = 1, where nothing crosses
        y, weight = nodes_and_weights(_halved(edges.sort(-1).values, halvings), order)
        return y, weight * density(y)

    def _inner_integrals(self, columns: Tensor, y: Tensor, order: int, halvings: int) -> Tensor:
        s1, s2, _, gap = columns[..., None]
        a, shift = (1 - gap / 2).sqrt(), (gap / 2).sqrt() * y[:, None]
        sign = -1.0 if self.flipped else 1.0
        edges = torch.cat([(self.cuts / s1 - shift) / a, (sign * self.cuts / s2 + shift) / a, self._base(len(y))], -1)
        edges = _halved(edges.clamp(-self.span, self.span).sort(-1).values, halvings)
        x, weight = nodes_and_weights(edges, order)
        weight = weight * density(x)
        row, _ = (live := weight > 1e-30).nonzero(as_tuple=True)  # many panels are empty: two cuts at one place
        x, weight, shift = x[live], weight[live], shift[row, 0]
        u, v = s1[row, 0] * (a[row, 0] * x + shift), sign * s2[row, 0] * (a[row, 0] * x - shift)
        value_u, slope_u = self.activation.value_and_slope(u)
        value_v, slope_v = self.activation.value_and_slope(v)
        difference = value_u - value_v
        pairs = [(value_u, value_v), (slope_u, slope_v), (difference, difference)]
        pairs += [(f, f) for f in (value_u, value_v, slope_u, slope_v)]
        integrands = torch.stack([weight * f * g for f, g in pairs])
        return torch.zeros(7, len(y), dtype=torch.float64).index_add_(1, row, integrands)

    def _base(self, rows: int) -> Tensor:
        """Edges that resolve the density alone, [rows, 7]."""
        return (torch.linspace(-1, 1, 7, dtype=torch.float64) * self.span).expand(rows, -1)


def _halved(edges: Tensor, halvings: int) -> Tensor:
    """Edges with every panel cut in two, ``halvings`` times."""
    for _ in range(halvings):
        middle = (edges[..., 1:] + edges[..., :-1]) / 2
        edges = torch.cat([edges, middle], -1).sort(-1).values
    return edges
