"""The link between dual and primal variables of a diagonal linear network of any depth, and its potentials.

Gradient flow from w_+ = w_- = a moves beta = a^D h_D(z) with z linear in the dual variable u = -int grad_beta L dt:

    D = 2:   h(z) = 2 sinh z,                            z = 4 u
    D >= 3:  h(z) = (1 - z)^-e - (1 + z)^-e,  e = D/(D-2),   z = D (D - 2) a^(D-2) u,   |z| < 1

Everything is written in t, with z = t for D = 2 and z = tanh t else, where no digit is lost as z approaches 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST_ARGUMENT = 600.0
"""Of sinh at depth 2, which overflows at 710."""

SMALL = 1e-5
"""Below, the penalty of depths above 2 is its leading term: zb - phi has lost 11 digits."""


@dataclass(frozen=True)
class Link:
    """h_D, its derivative, its potential phi = int h, and the penalty q = phi*, the conjugate."""

    depth: int

    @property
    def exponent(self) -> float:
        """e = D/(D-2) of depths above 2."""
        return self.depth / (self.depth - 2)

    def allows(self, z: np.ndarray) -> bool:
        """Whether h is finite there."""
        return bool(np.abs(z).max() < (LARGEST_ARGUMENT if self.depth == 2 else 1.0))

    def value(self, z: np.ndarray) -> np.ndarray:
        """h(z)."""
        if self.depth == 2:
            return 2 * np.sinh(z)
        e = self.exponent
        return 2 * np.exp(-e / 2 * np.log1p(-z * z)) * np.sinh(e * np.arctanh(z))

    def slope(self, z: np.ndarray) -> np.ndarray:
        """h'(z)."""
        if self.depth == 2:
            return 2 * np.cosh(z)
        e = self.exponent
        return e * (np.exp(-(e + 1) * np.log1p(-z)) + np.exp(-(e + 1) * np.log1p(z)))

    def potential(self, z: np.ndarray) -> np.ndarray:
        """phi(z) = int_0^z h; as 4 sinh^2(z/2) and by expm1, since cosh z - 1 loses all digits at small z."""
        if self.depth == 2:
            return 4 * np.sinh(z / 2) ** 2
        power = 2 / (self.depth - 2)
        return (np.expm1(-power * np.log1p(-z)) + np.expm1(-power * np.log1p(z))) / power

    def inverse(self, b: np.ndarray) -> np.ndarray:
        """t of z = h^-1(b): z itself at depth 2, artanh z above."""
        if self.depth == 2:
            return np.arcsinh(b / 2)
        e, size = self.exponent, np.abs(b)
        target = np.log(np.where(size > 0, size, 1.0))
        # 2 e t below 1 and 2^-e exp(2 e t) above: both starts lie below the root or close to it.
        t = np.where(size > 1, (target + e * np.log(2)) / (2 * e), np.maximum(size, 1e-300) / (2 * e))
        for _ in range(60):
            value = np.log(2) + e * _log_cosh(t) + _log_sinh(e * t)
            step = (value - target) / (e * np.tanh(t) + e / np.tanh(e * t))
            new = np.where(t - step > t / 4, t - step, t / 4)
            if np.all(np.abs(new - t) <= 1e-16 * new):
                break
            t = new
        return np.where(size > 0, np.sign(b) * t, 0.0)

    def penalty(self, b: np.ndarray) -> np.ndarray:
        """q(b) = z b - phi(z) at z = h^-1(b), so that q' = h^-1."""
        t = self.inverse(b)
        if self.depth == 2:
            return t * b - 4 * np.sinh(t / 2) ** 2
        power, size = 2 / (self.depth - 2), np.abs(t)
        # log(1 + z) and log(1 - z) of z = tanh t: what is exact near 0 and what is exact near 1.
        near = np.tanh(np.minimum(size, 0.5))
        up = np.where(size < 0.5, np.log1p(near), np.log(2) - np.logaddexp(0, -2 * size))
        down = np.where(size < 0.5, np.log1p(-near), np.log(2) - np.logaddexp(0, 2 * size))
        phi = (np.expm1(-power * down) + np.expm1(-power * up)) / power
        return np.where(np.abs(b) < SMALL, b**2 / (4 * self.exponent), np.tanh(size) * np.abs(b) - phi)


def _log_cosh(t: np.ndarray) -> np.ndarray:
    return t + np.log1p(np.exp(-2 * t)) - np.log(2)


def _log_sinh(t: np.ndarray) -> np.ndarray:
    return t + np.log(-np.expm1(-2 * t)) - np.log(2)
