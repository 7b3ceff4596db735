"""A response surface in learning rate and batch size with a random part for what it leaves out.

With x = lr / lr_0 and e = x / (B / B_0), at one effective time

    log E L = c . (1, e, e^2, x) + g . (x e, x^2, e^3) + noise of the anchors,    g ~ N(0, tau^2 1)

c is unknown without any prior. The best linear unbiased prediction and its variance are those of universal kriging.
"""

from __future__ import annotations

import numpy as np

LEAST_MISFIT = 0.02
"""Misfit at the check that is assumed at least: one number near zero proves little (docs/measuring.md)."""


def features(x: float, batch: float) -> np.ndarray:
    """(1, e, e^2, x), what the surface fits."""
    e = x / batch
    return np.array([1.0, e, e * e, x])


def missing(x: float, batch: float) -> np.ndarray:
    """(x e, x^2, e^3), what it leaves out."""
    e = x / batch
    return np.array([x * e, x * x, e**3])


class Kriging:
    """Weights and errors for anchors at given places.

    Args:
        places: [(x, B / B_0)], five, of which the last is the check.
    """

    def __init__(self, places: list[tuple[float, float]]) -> None:
        self._known = np.stack([features(*place) for place in places])
        self._missing = np.stack([missing(*place) for place in places])
        corners = np.linalg.solve(self._known[:-1].T, self._known[-1])
        self.contrast = np.append(-corners, 1.0)
        """The check's value less what the four others say of it, [5]."""
        self._unit = float(np.linalg.norm(self.contrast @ self._missing))

    def tau(self, misfit: np.ndarray) -> np.ndarray:
        """Scale of the missing part from misfits at the check, [T]: root mean square over neighboring times."""
        padded = np.pad(np.square(misfit), ((1, 1), (0, 0)), mode="edge")
        around = np.mean([padded[:-2], padded[1:-1], padded[2:]], axis=(0, 2))
        return np.sqrt(around + LEAST_MISFIT**2) / self._unit

    def predict(self, place: tuple[float, float], tau: float, variance: np.ndarray) -> tuple[np.ndarray, float]:
        """Weights of the anchors' logarithms [5], and the variance of the error of their sum.

        Args:
            variance: [5], of each anchor's log mean.
        """
        unknown = missing(*place)
        cross = tau**2 * self._missing @ unknown
        covariance = tau**2 * self._missing @ self._missing.T + np.diag(variance)
        n, k = self._known.shape
        system = np.block([[covariance, self._known], [self._known.T, np.zeros((k, k))]])
        weights = np.linalg.solve(system, np.concatenate([cross, features(*place)]))[:n]
        error = tau**2 * unknown @ unknown + weights @ covariance @ weights - 2 * weights @ cross
        return weights, max(float(error), 0.0)
