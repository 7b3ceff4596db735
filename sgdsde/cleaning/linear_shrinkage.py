"""Shrinkage of all eigenvalues toward their mean by one intensity."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sgdsde._checks import complaint, real_floating
from sgdsde.cleaning.spectrum import Cleaner, Target


@dataclass(frozen=True)
class OAS(Cleaner):
    """(1 - a) l + a mean(l) with the intensity that is best for Gaussian samples, as its own fixed point.

        a = min(1, (tr S^2 / p^2 + mu^2) / ((m + 1)(tr S^2 / p^2 - mu^2 / p))),   mu = tr S / p

    Source: Chen, Wiesel, Eldar, Hero, IEEE Trans. Signal Process. 58 (2010); intensity as in scikit-learn.
    """

    target: Target = field(default="oracle", init=False, repr=False)

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        p = len(eigenvalues)
        mean, square = eigenvalues.mean(), (eigenvalues**2).sum() / p**2
        spread = (n_samples + 1) * (square - mean**2 / p)
        top = square + mean**2
        return _shrunk(eigenvalues, 1.0 if spread <= top else top / spread)


@dataclass(frozen=True, eq=False, repr=False)
class LedoitWolf(Cleaner):
    """(1 - a) l + a mean(l) with a = min(1, b / d), the share of noise in the spread of the sample eigenvalues.

        d = |S - mu I|^2,   b = (1/m^2) sum_k |x_k x_k^T - S|^2 = (1/m)((1/m) sum_k |x_k|^4 - |S|^2)

    Args:
        squared_norms: |x_k|^2 of every sample, [m]; eigenvalues alone do not hold the fourth moments. None: Gaussian
            samples, b replaced by its expectation given S (Rao-Blackwell).
    Source: Ledoit, Wolf, J. Multivariate Anal. 88 (2004); the Rao-Blackwell form: Chen et al. (2010).
    """

    squared_norms: Tensor | None = None
    target: Target = field(default="oracle", init=False, repr=False)

    def __repr__(self) -> str:
        return "LedoitWolf()" if self.squared_norms is None else "LedoitWolf(squared_norms)"

    def __post_init__(self) -> None:
        if self.squared_norms is not None:
            real_floating("squared_norms", self.squared_norms)

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        p, m = len(eigenvalues), n_samples
        total, square = eigenvalues.sum(), (eigenvalues**2).sum()
        spread = square - total**2 / p
        if self.squared_norms is None:
            noise = ((m - 2) / m * square + total**2) / (m + 2)
        else:
            norms = self.squared_norms.double().cpu().numpy()
            if len(norms) not in (m, m + 1) or not np.isclose(norms.sum(), m * total, rtol=1e-6):
                expected = f"those of the {m} samples, of sum m tr S = {m * total:.6g}"
                received = f"{len(norms)} of sum {norms.sum():.6g}"
                raise ValueError(complaint("squared_norms", expected, received, "center the samples first"))
            noise = ((norms**2).sum() / m - square) / m
        return _shrunk(eigenvalues, 1.0 if spread <= noise else noise / spread)


def _shrunk(eigenvalues: np.ndarray, intensity: float) -> np.ndarray:
    return (1 - intensity) * eigenvalues + intensity * eigenvalues.mean()
