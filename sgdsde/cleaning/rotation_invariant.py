"""The rotationally invariant estimator of random matrix theory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sgdsde._checks import complaint
from sgdsde.cleaning.spectrum import Cleaner, Target


@dataclass(frozen=True)
class RIE(Cleaner):
    """The asymptotically best value for every sample eigenvalue, from the Stieltjes transform just off the real axis.

        xi_k = l_k / |1 - q + q z_k s_k|^2,   z_k = l_k - i p^(-1/2),   s_k = (1/p) sum_{j != k} 1/(z_k - l_j)

    rescaled to the trace of the sample. The eigenvalue's own pole j = k is left out: with it the largest eigenvalue of
    a small sample collapses. ``debias`` multiplies by max(1, Gamma_k) where q < 1, so that no eigenvalue is cleaned
    below what the identity, whose smallest sample eigenvalue is l_p, would give.

    Exactness: asymptotic, p and m growing together.
    Source: Bun, Bouchaud, Potters, Phys. Rep. 666 (2017), arXiv:1610.08104; debiasing: Bun, Knowles (2016).
    """

    debias: bool = True
    target: Target = field(default="oracle", init=False, repr=False)

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        p = len(eigenvalues)
        if p < 2:
            raise ValueError(complaint("eigenvalues", "at least two for RIE", p, "use LedoitWolf()"))
        q = p / n_samples
        z = eigenvalues - 1j / p**0.5 * _unit(eigenvalues)
        others = 1 / (z[:, None] - eigenvalues)
        np.fill_diagonal(others, 0)
        cleaned = eigenvalues / np.abs(1 - q + q * z * others.mean(1)) ** 2
        if self.debias and q < 1 and eigenvalues[0] > 0:
            cleaned = cleaned * np.maximum(1, _inflation(eigenvalues, z, q))
        return cleaned * (eigenvalues.sum() / cleaned.sum())


def _unit(eigenvalues: np.ndarray) -> float:
    """The mean eigenvalue: the distance from the axis is p^(-1/2) of a correlation matrix, whose mean is 1."""
    return float(eigenvalues.mean())


def _inflation(eigenvalues: np.ndarray, z: np.ndarray, q: float) -> np.ndarray:
    """Gamma_k = s2 |1 - q + q z g(z)|^2 / l_k, g the transform of white noise with smallest sample eigenvalue l_p."""
    smallest, root = eigenvalues[0], q**0.5
    s2 = smallest / (1 - root) ** 2
    largest = s2 * (1 + root) ** 2
    g = (z + s2 * (q - 1) - np.sqrt(z - smallest) * np.sqrt(z - largest)) / (2 * q * z * s2)
    return s2 * np.abs(1 - q + q * z * g) ** 2 / eigenvalues
