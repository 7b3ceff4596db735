"""Laws of correlation matrices that the eigenvalue autoencoder is trained on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class Prior(ABC):
    """A law of correlation matrices; abstract."""

    @abstractmethod
    def draw(self, n: int, p: int, rng: np.random.Generator) -> np.ndarray:
        """n correlation matrices, [n, p, p]."""


@dataclass(frozen=True)
class FactorPrior(Prior):
    """1 to 5 Gaussian factors of strength exp N(-0.5, 0.8^2) and idiosyncratic variances exp N(0, 0.5^2), rescaled."""

    def draw(self, n: int, p: int, rng: np.random.Generator) -> np.ndarray:
        number = rng.integers(1, 6, n)
        strength = np.exp(rng.normal(-0.5, 0.8, (n, 5))) * (np.arange(5) < number[:, None])
        loadings = rng.standard_normal((n, p, 5)) * np.sqrt(strength)[:, None]
        own = np.exp(0.5 * rng.standard_normal((n, p)))
        return correlation(loadings @ loadings.mT + own[:, :, None] * np.eye(p))


@dataclass(frozen=True)
class MixedPrior(Prior):
    """Six laws in equal parts: factors, one common correlation of 0.4, the identity, eigenvalues i^-1.2, Toeplitz,
    inverse Wishart."""

    def draw(self, n: int, p: int, rng: np.random.Generator) -> np.ndarray:
        counts = np.full(len(LAWS), n // len(LAWS))
        counts[: n % len(LAWS)] += 1
        drawn = np.concatenate([law(int(count), p, rng) for law, count in zip(LAWS.values(), counts)])
        return drawn[rng.permutation(n)]


def identity(n: int, p: int, _: np.random.Generator) -> np.ndarray:
    """No correlation."""
    return np.repeat(np.eye(p)[None], n, 0)


def common_correlation(n: int, p: int, _: np.random.Generator) -> np.ndarray:
    """0.4 between any two: one eigenvalue far above the others."""
    return np.repeat((0.6 * np.eye(p) + 0.4)[None], n, 0)


def power_law(n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues i^-1.2 in random directions, then rescaled to unit variances."""
    values = np.arange(1, p + 1) ** -1.2
    values *= p / values.sum()
    basis = np.linalg.qr(rng.standard_normal((n, p, p)))[0]
    return correlation((basis * values) @ basis.mT)


def toeplitz(n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    """r^|i - j| with r uniform in [0.2, 0.9]."""
    distance = np.abs(np.subtract.outer(np.arange(p), np.arange(p)))
    return rng.uniform(0.2, 0.9, n)[:, None, None] ** distance


def inverse_wishart(n: int, p: int, rng: np.random.Generator) -> np.ndarray:
    """Inverse of a Wishart matrix of 3 p degrees of freedom: the law for which linear shrinkage is exact."""
    samples = rng.standard_normal((n, p, 3 * p))
    return correlation(np.linalg.inv(samples @ samples.mT / (3 * p)))


LAWS: dict[str, Callable[[int, int, np.random.Generator], np.ndarray]] = {
    "factor": FactorPrior().draw,
    "common": common_correlation,
    "identity": identity,
    "power": power_law,
    "toeplitz": toeplitz,
    "inverse_wishart": inverse_wishart,
}


def correlation(covariances: np.ndarray) -> np.ndarray:
    """Rescaled to unit diagonals, [..., p, p]."""
    scale = np.sqrt(np.einsum("...ii->...i", covariances))
    return covariances / (scale[..., :, None] * scale[..., None, :])


def sample_correlation(true: np.ndarray, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Correlation matrices of m Gaussian samples of each, mean known, [n, p, p]."""
    factor = np.linalg.cholesky(true)
    samples = factor @ rng.standard_normal((*true.shape[:2], n_samples))
    return correlation(samples @ samples.mT / n_samples)


def oracle_values(true: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """u_a^T C u_a, [n, p], in the columns of ``vectors`` [n, p, p]."""
    return (vectors * (true @ vectors)).sum(-2)
