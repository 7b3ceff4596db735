"""Natural and smoothing splines whose curvature costs more where a network has fewer kinks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_number, nonnegative_number
from sgdsde.regimes.wide_networks import targets_of

NODES = 48
"""Gauss-Legendre nodes between two neighboring knots."""


@dataclass(frozen=True, eq=False)
class CurvatureSpline:
    """h with h'' = zeta(c) sum_i lambda_i (x_i - c)_+ between the knots and linear outside; call it on points.

    Attributes:
        penalty: int (h'')^2 / zeta. smoothing: lam.
    """

    knots: np.ndarray
    forces: np.ndarray
    line: np.ndarray
    density: Callable[[np.ndarray], np.ndarray]
    penalty: float
    smoothing: float

    def __call__(self, points: Tensor) -> Tensor:
        """h at points [k], float64."""
        x = points.detach().double().cpu().numpy()
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        total = np.zeros_like(x)
        for start, stop in zip(self.knots[:-1], self.knots[1:]):
            # h(x) = line + int_{c < x} (x - c) h''(c) dc, up to x within the interval that holds it.
            end = np.clip(x, start, stop)
            half = (end - start) / 2
            c = start + half[:, None] * (nodes + 1)
            second = self.density(c) * (np.maximum(self.knots - c[..., None], 0) @ self.forces)
            total += half * (((x[:, None] - c) * second) @ weights)
        return torch.from_numpy(self.line[0] + self.line[1] * x + total)


def curvature_spline(
    x: Tensor, y: Tensor, zeta: float | Callable[[Tensor], Tensor], *, smoothing: float = 0.0
) -> CurvatureSpline:
    """argmin of int (h'')^2 / zeta among the h that interpolate, or of sum (h - y)^2 + lam int (h'')^2 / zeta.

        [[K + lam I, T], [T^T, 0]] (lambda, line) = (y, 0),   K_ij = int zeta (x_i - c)_+ (x_j - c)_+ dc,   T = (1, x)

    A constant zeta gives the natural cubic spline. Wide networks come to it as the support of their kinks grows; on a
    bounded one constant and slope cost something too (``wide_limit``).

    Args:
        x: [M], at least two different. y: [M]. zeta: a number or a function of position (``curvature_density``),
            positive between the outer x. smoothing: lam, in the units of y^2; see ``smoothing_strength``.
    Raises:
        ValueError: the same x twice with different y where lam = 0; a density that is not positive.
    Exactness: 1e-8 for smooth densities. Cost: M^3, and 48 M^2 values of the density.
    Source: Jin, Montufar, arXiv:2006.07356; Green, Silverman (1994) for constant zeta.
    """
    lam = nonnegative_number("smoothing", smoothing)
    targets = targets_of(x, y) if lam == 0 else y.detach().double().flatten()
    points = x.detach().double().flatten()
    if len(targets) != len(points):
        raise ValueError(complaint("y", f"[{len(points)}]", f"shape {list(y.shape)}"))
    if lam == 0:  # one of each
        kept = np.unique(points.cpu().numpy(), return_index=True)[1]
        points, targets = points[torch.from_numpy(kept)], targets[torch.from_numpy(kept)]
    at, wanted = points.cpu().numpy(), targets.cpu().numpy()
    knots = np.unique(at)
    if len(knots) < 2:
        raise ValueError(complaint("x", "at least two different points", len(knots)))
    density = _density(zeta)
    gram = _gram(at, knots, density)
    m = len(at)
    system = np.zeros((m + 2, m + 2))
    system[:m, :m] = gram + lam * np.eye(m)
    system[:m, m:] = np.stack([np.ones(m), at], 1)
    system[m:, :m] = system[:m, m:].T
    solved = np.linalg.solve(system, np.r_[wanted, 0, 0])
    forces = np.array([solved[:m][at == knot].sum() for knot in knots])
    return CurvatureSpline(knots, forces, solved[m:], density, float(solved[:m] @ gram @ solved[:m]), lam)


def _gram(x: np.ndarray, knots: np.ndarray, density: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int zeta (x_i - c)_+ (x_j - c)_+ dc over the range of the knots; below it only the line T would change."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    half = np.diff(knots) / 2
    c = (knots[:-1, None] + half[:, None] * (nodes + 1)).ravel()
    measure = density(c) * (half[:, None] * weights).ravel()
    if not (measure > 0).all():
        where = float(c[np.argmin(measure)])
        raise ValueError(complaint("zeta", "positive between the outer x", f"not so at {where:.6g}"))
    ramps = np.maximum(x[:, None] - c, 0)
    return (ramps * measure) @ ramps.T


def _density(zeta: float | Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    if callable(zeta):
        return lambda c: zeta(torch.from_numpy(np.ascontiguousarray(c))).numpy()
    value = finite_number("zeta", zeta)
    return lambda c: np.full(np.shape(c), value)
