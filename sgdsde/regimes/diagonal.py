"""Where gradient flow of diagonal linear networks ends, and how it gets there, without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sgdsde._checks import complaint, nonnegative_number, real_floating, whole_number
from sgdsde.networks.diagonal import scale_vector
from sgdsde.regimes.link import Link

MOST_STEPS = 500
"""Newton steps; at most 162 have been seen."""

SMALLEST_POWER = 1e-7
"""Of scale^(D-2) at depth D >= 3: below, 1 - z has too few digits left."""

LIMIT = "the limit is the interpolant of least l1 norm: solve that linear program (scipy linprog)"
"""What to do instead."""


def penalty(beta: Tensor, scale: float | Tensor, depth: int = 2) -> Tensor:
    """Q(beta), the function that gradient flow of a diagonal network minimizes among all interpolants; a number.

        Q = sum_i a_i^D q_D(beta_i / a_i^D),   q_2(b) = 2 - sqrt(4 + b^2) + b asinh(b/2),   q_D' = h_D^-1 for D >= 3

    Large scales: proportional to the squared l2 norm. Small ones: to the l1 norm.

    Args:
        beta: [d]. scale: a, a number or [d]. depth: D, at least 2.
    Source: Woodworth et al., arXiv:2002.09277, theorems 1 and 3.
    """
    real_floating("beta", beta)
    power = scale_vector(scale, beta.numel()).numpy() ** whole_number("depth", depth, 2)
    values = power * Link(depth).penalty(beta.detach().double().cpu().numpy().ravel() / power)
    return torch.tensor(values.sum(), dtype=torch.float64)


def interpolant(x: Tensor, y: Tensor, *, scale: float | Tensor, depth: int = 2) -> Tensor:
    """argmin of ``penalty`` over all beta with x beta = y: the end point of gradient flow, [d], float64.

    By Newton's method on the dual, beta = a^D h_D(x^T nu), max nu . y - sum a^D phi(x^T nu): exact, where integrating
    the flow would take a time that grows without bound as the scale falls.

    Args:
        x: [n, d]. y: [n] or [n, 1]. scale: a, a number or one for each coordinate [d]. depth: D.
    Raises:
        ValueError: no beta interpolates (names the residual); a scale too small for the depth.
        RuntimeError: Newton's method did not end.
    Exactness: max |x beta - y| <= max(1e-12, 4 eps/(1 - max|z|)) max(1, max|y|).
    Cost: 1 to some 160 steps of n^2 d operations; 11 ms at n = 20, d = 60, scale 1e-8.
    Source: Karush-Kuhn-Tucker conditions of Woodworth et al.; docs/regimes.md.
    """
    x_, y_ = _data(x, y)
    power = scale_vector(scale, x_.shape[1]).numpy() ** whole_number("depth", depth, 2)
    if depth > 2:
        smallest = float(power.min() ** ((depth - 2) / depth))
        if smallest < SMALLEST_POWER:
            raise ValueError(complaint("scale", f"with scale^{depth - 2} >= {SMALLEST_POWER:g}", smallest, LIMIT))
    u, s, vh = np.linalg.svd(x_, full_matrices=False)
    rank = int((s > 1e-12 * s[0]).sum()) if s[0] > 0 else 0
    missed = y_ - u[:, :rank] @ (u[:, :rank].T @ y_)
    if np.abs(missed).max() > 1e-9 * max(1.0, np.abs(y_).max()):
        received = f"a residual of {np.abs(missed).max():.3g} at best"
        raise ValueError(complaint("y", "in the range of x, so that some beta interpolates", received, "add features"))
    if rank == 0 or not y_.any():
        return torch.zeros(x_.shape[1], dtype=torch.float64)
    # The same set of interpolants by orthonormal rows.
    dual = _Dual(vh[:rank], (u[:, :rank].T @ y_) / s[:rank], Link(depth))
    return torch.from_numpy(dual.solve(power))


class _Dual:
    """max nu . y - sum power phi(x^T nu) by damped Newton, for rows x [r, d]."""

    def __init__(self, x: np.ndarray, y: np.ndarray, link: Link) -> None:
        self.x, self.y, self.link = x, y, link

    def solve(self, power: np.ndarray) -> np.ndarray:
        """beta [d]. At depth 2 the power is lowered from where the problem is nearly quadratic."""
        stretch = 1.0
        if self.link.depth == 2:
            stretch = max(1.0, 9 * float(np.abs(self.x.T @ self.y).max() / power.min()))
        nu = np.zeros(len(self.y))
        used = 0
        while True:
            nu, steps = self._newton(nu, power * stretch, MOST_STEPS - used)
            used += steps
            if stretch == 1:
                return power * self.link.value(self.x.T @ nu)
            stretch = max(1.0, stretch / 4)

    def _newton(self, nu: np.ndarray, power: np.ndarray, most: int) -> tuple[np.ndarray, int]:
        x, y, link = self.x, self.y, self.link
        size = max(1.0, float(np.abs(y).max()))
        z = x.T @ nu
        residual = x @ (power * link.value(z)) - y
        for steps in range(most):
            tolerance = 1e-14 if link.depth == 2 else max(1e-13, 4 * np.finfo(float).eps / (1 - np.abs(z).max()))
            worst = np.abs(residual).max()
            if worst <= tolerance * size:
                return nu, steps
            try:
                step = np.linalg.solve((x * (power * link.slope(z))) @ x.T, residual)
            except np.linalg.LinAlgError as error:  # curvatures of the dual span more than 16 digits
                raise ValueError(complaint("scale", "larger at this depth and data", "too small", LIMIT)) from error
            start, slope, length = self._objective(nu, z, power), float(residual @ step), 1.0
            while length > 1e-14:
                new = nu - length * step
                z_new = x.T @ new
                if link.allows(z_new):
                    residual_new = x @ (power * link.value(z_new)) - y
                    halved = np.abs(residual_new).max() <= worst / 2
                    # The potential alone stalls at a residual of 6e-8, where its differences are rounding.
                    if halved or self._objective(new, z_new, power) <= start - 1e-4 * length * slope:
                        break
                length /= 2
            else:
                if worst <= 100 * tolerance * size:  # nothing is left to gain but rounding
                    return nu, steps
                raise RuntimeError(f"Newton's method stalled at a residual of {worst:.3g}; rescale x and y")
            nu, z, residual = new, z_new, residual_new
        raise RuntimeError(f"Newton's method took {MOST_STEPS} steps, residual {np.abs(residual).max():.3g}")

    def _objective(self, nu: np.ndarray, z: np.ndarray, power: np.ndarray) -> float:
        return float((power * self.link.potential(z)).sum() - nu @ self.y)


def mirror_flow(
    x: Tensor, y: Tensor, times: Sequence[float] | Tensor, *, scale: float | Tensor, depth: int = 2
) -> Tensor:
    """Gradient flow of a diagonal network under L = mean r^2 (``nn.MSELoss``), as coefficients at times, [T, d].

        beta = a^D h_D(z),   z = 4 x^T s (D = 2) or D (D - 2) a^(D-2) x^T s,   s' = -(2/n)(x beta - y)

    Args:
        x, y, scale, depth: as in ``interpolant``, whose limit it is. times: sums of learning rates, increasing from 0.
    Exactness: relative tolerance 1e-10 of the integrator, in n variables.
    Cost: grows as the time that the flow needs, without bound as the scale falls.
    """
    x_, y_ = _data(x, y)
    a = scale_vector(scale, x_.shape[1]).numpy()
    link, n = Link(whole_number("depth", depth, 2)), len(x_)
    at = np.array([nonnegative_number("times", float(t)) for t in times])
    if not len(at) or (np.diff(at) <= 0).any():
        raise ValueError(complaint("times", "increasing", at.tolist()))
    gain = np.full_like(a, 4.0) if depth == 2 else depth * (depth - 2) * a ** (depth - 2)

    def coefficients(s: np.ndarray) -> np.ndarray:
        return a**depth * link.value(gain * (x_.T @ s))

    def slope(_: float, s: np.ndarray) -> np.ndarray:
        return -2 / n * (x_ @ coefficients(s) - y_)

    start = np.zeros(n)
    if at[-1] == 0:
        return torch.from_numpy(coefficients(start)[None])
    solved = solve_ivp(slope, (0, at[-1]), start, method="LSODA", t_eval=at, rtol=1e-10, atol=1e-13)
    if not solved.success:
        raise RuntimeError(f"the flow could not be integrated: {solved.message}")
    return torch.from_numpy(np.stack([coefficients(s) for s in solved.y.T]))


def _data(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    real_floating("x", x)
    real_floating("y", y)
    if x.ndim != 2:
        raise ValueError(complaint("x", "[n, d]", f"shape {list(x.shape)}"))
    if y.numel() != len(x) or y.ndim > 2:
        raise ValueError(complaint("y", f"[{len(x)}] or [{len(x)}, 1]", f"shape {list(y.shape)}"))
    return x.detach().double().cpu().numpy(), y.detach().double().cpu().numpy().ravel()
