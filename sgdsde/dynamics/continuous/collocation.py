"""Linear decay, mode by mode, under a smooth forcing: adaptive panels whose size the fast modes do not limit.

    u'(t) = -rho o u + F(t, u)        o the elementwise product

On a panel of width w, y in [-1, 1], the forcing is interpolated in p Gauss points, F = sum_k c_k P_k(y) with Legendre's
P_k, and the decay is integrated exactly:

    u(y) = exp(-z (1 + y)) o u(-1) + (w/2) sum_k I_k(z, y) o c_k,      z = rho w / 2
    I_k(z, y) = int_{-1}^{y} exp(-z (y - x)) P_k(x) dx

A mode that has died follows its forcing and asks for no small panels: only what still moves does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Forcing = Callable[[float, Tensor], Tensor]
"""F(t, u), of the shape of u."""

SMALL = 8.0
"""Below, the recurrence of I_k loses digits and Gauss quadrature has them all; above, the other way round."""
QUADRATURE_POINTS = 24
MAX_SWEEPS = 30
HUGE = 1e200
"""A solution that has grown to this is taken for infinite; a panel that overflows from below it was too long."""
GROWTH = 2.0
"""Of a panel over the last; the first guess of the forcing is extrapolated that far."""


@dataclass(frozen=True, eq=False)
class Panel:
    """The solution on one panel, at any place in it."""

    rates: Tensor
    width: float
    start: Tensor
    coefficients: Tensor

    def at(self, place: float) -> Tensor:
        """u at ``place`` in [-1, 1]."""
        half = self.rates * (self.width / 2)
        weights = legendre_integrals(half, place, len(self.coefficients))
        return torch.exp(-half * (1 + place)) * self.start + (self.width / 2) * (weights * self.coefficients).sum(0)


class Collocation:
    """Solves u' = -rho o u + F(t, u) with an error that is controlled relative to what each panel adds.

    Args:
        rates: rho, nonnegative. forcing: F.
        feedback: whether F depends on u; then each panel is solved by sweeps of the fixed-point iteration.
        rtol: estimated error of a panel, relative to what its forcing adds to u (Frobenius norms). For covariances that
            is enough: what a panel adds is positive semidefinite, and so is what becomes of it.
        n_nodes: p.
    Cost: p evaluations of F a panel and sweep, and p r^2 numbers (p^2 r^2 with feedback) for r^2 components.
    """

    def __init__(self, rates: Tensor, forcing: Forcing, *, feedback: bool, rtol: float, n_nodes: int) -> None:
        self._rates, self._forcing, self._feedback = rates, forcing, feedback
        self._rtol, self._n_nodes = rtol, n_nodes
        nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
        self._nodes = [float(y) for y in nodes]
        orders = np.arange(n_nodes)[:, None]
        transform = (orders + 0.5) * legendre(nodes, n_nodes) * weights
        self._transform = torch.from_numpy(transform).to(rates)
        self.evaluations = 0

    def run(self, start: Tensor, times: Sequence[float], width: float) -> Iterator[Tensor]:
        """u at each of ``times`` (ascending, zero or positive), from u(0) = ``start``.

        ``width`` is the first panel tried, and must not be longer than the fastest transient: a panel that is much
        longer could miss it between its nodes.
        """
        now, span, u = 0.0, times[-1], start
        width, waiting = min(width, span), list(times)
        while waiting and waiting[0] == 0:
            waiting.pop(0)
            yield start
        last: Panel | None = None
        while waiting:
            panel, error, added = self._panel(now, width, u, last)
            if not np.isfinite(added):
                if float(u.norm()) > HUGE:
                    yield from (torch.full_like(u, torch.inf) for _ in waiting)
                    return
                added, error = 1.0, np.inf
            factor = GROWTH if error == 0 else 0.9 * (self._rtol * added / error) ** (1 / self._n_nodes)
            if error > self._rtol * added:
                width *= min(max(factor, 0.1), 0.8)
                if now + width == now:
                    raise ArithmeticError(f"no panel is short enough for rtol={self._rtol:g}; raise rtol")
                continue
            end = now + width
            while waiting and waiting[0] <= end * (1 + 1e-14):
                yield panel.at(min(2 * (waiting.pop(0) - now) / width - 1, 1.0))
            if waiting:
                u, now, last = panel.at(1.0), end, panel
                width = min(width * min(factor, GROWTH), span - now)

    def _panel(self, now: float, width: float, u: Tensor, last: Panel | None) -> tuple[Panel, float, float]:
        """A panel, its estimated error, and the norm of what its forcing adds."""
        half = self._rates * (width / 2)
        at_end = legendre_integrals(half, 1.0, self._n_nodes) * (width / 2)
        places = [now + width * (1 + y) / 2 for y in self._nodes]
        if not self._feedback:
            coefficients = self._coefficients([self._evaluate(t, u) for t in places])
            return self._judged(width, u, at_end, coefficients, 0.0)
        decay = [torch.exp(-half * (1 + y)) * u for y in self._nodes]
        weights = [legendre_integrals(half, y, self._n_nodes) * (width / 2) for y in self._nodes]
        coefficients = self._first_guess(now, width, u, last)
        added, change, before = (at_end * coefficients).sum(0), np.inf, np.inf
        for _ in range(MAX_SWEEPS):
            values = [d + (w * coefficients).sum(0) for d, w in zip(decay, weights)]
            coefficients = self._coefficients([self._evaluate(t, v) for t, v in zip(places, values)])
            new = (at_end * coefficients).sum(0)
            change, before, added = float((new - added).norm()), change, new
            if change <= 0.1 * self._rtol * float(added.norm()) or not np.isfinite(change) or change > 2 * before:
                break
        return self._judged(width, u, at_end, coefficients, change)

    def _judged(
        self, width: float, u: Tensor, at_end: Tensor, coefficients: Tensor, change: float
    ) -> tuple[Panel, float, float]:
        # Not at_end[-1]: at the end of a panel the highest polynomial integrates to almost nothing, within it not.
        error = float((at_end[0] * coefficients[-1]).norm()) / 4 + change
        return Panel(self._rates, width, u, coefficients), error, float((at_end * coefficients).sum(0).norm())

    def _first_guess(self, now: float, width: float, u: Tensor, last: Panel | None) -> Tensor:
        if last is None:
            return self._coefficients([self._evaluate(now, u)] * self._n_nodes)
        beyond = np.array([1 + (1 + y) * width / last.width for y in self._nodes])
        polynomials = torch.from_numpy(legendre(beyond, self._n_nodes)).to(u)
        return torch.tensordot(self._transform @ polynomials.T, last.coefficients, dims=1)

    def _evaluate(self, time: float, u: Tensor) -> Tensor:
        self.evaluations += 1
        return self._forcing(time, u)

    def _coefficients(self, values: list[Tensor]) -> Tensor:
        return torch.tensordot(self._transform, torch.stack(values), dims=1)


def legendre(x: np.ndarray, n: int) -> np.ndarray:
    """P_0 ... P_{n-1} at x [q]: [n, q]."""
    return np.polynomial.legendre.legvander(x, n - 1).T


def legendre_integrals(z: Tensor, y: float, n: int) -> Tensor:
    """I_k(z, y) = int_{-1}^{y} exp(-z (y - x)) P_k(x) dx for k < n: [n, *z.shape]; z nonnegative.

    Small z: Gauss quadrature. Large z: (2k + 1) I_k = P_{k+1}(y) - P_{k-1}(y) - z (I_{k+1} - I_{k-1}).
    Exactness: to 1e-13 of the integral of the exponential for n <= 12.
    """
    nodes, weights = np.polynomial.legendre.leggauss(QUADRATURE_POINTS)
    x = (y - 1) / 2 + (y + 1) / 2 * nodes
    factors = torch.from_numpy(legendre(x, n) * weights * (y + 1) / 2).to(z)
    gaps = torch.from_numpy(y - x).to(z)
    small = z.clamp_max(SMALL).flatten()
    integrals = (factors @ torch.exp(-gaps[:, None] * small)).view(n, *z.shape)
    if not bool((z > SMALL).any()):
        return integrals
    large = z.clamp_min(SMALL)
    at_y = legendre(np.array([y]), n + 1)[:, 0]
    boundary = torch.exp(-large * (1 + y))
    upward = [(1 - boundary) / large]
    upward.append((y + boundary - upward[0]) / large)
    for k in range(1, n - 1):
        upward.append(upward[k - 1] + (at_y[k + 1] - at_y[k - 1] - (2 * k + 1) * upward[k]) / large)
    return torch.where(z > SMALL, torch.stack(upward[:n]), integrals)
