"""Nonlinear shrinkage of every eigenvalue on its own, from a kernel estimate of the spectral density."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from sgdsde.cleaning.spectrum import Cleaner, Target, nonzero_part

ROOT = 5**0.5
"""Half width of the Epanechnikov kernel of unit variance."""

FAR = 30.0
"""Distance in bandwidths from which the Hilbert transform is summed as a series: the closed form has lost 4 digits."""


@dataclass(frozen=True)
class AnalyticalNonlinear(Cleaner):
    """The asymptotically best value for every sample eigenvalue, p and m growing together.

    With f the density of the sample spectrum, Hf its Hilbert transform and q = p/m:

        p <= m:  l / ((pi q l f)^2 + (1 - q - pi q l Hf)^2)
        p > m:   l / (pi^2 l^2 (f^2 + Hf^2)), and m / (pi (p - m) Hf(0)) for the p - m zeros

    f is estimated with Epanechnikov kernels of bandwidth m^(-1/3) l_j.

    Exactness: asymptotic. Errs on the unsafe side for a largest eigenvalue whose spectrum decays (docs/cleaning.md):
        not for limits of learning rates.
    Source: Ledoit, Wolf, Ann. Statist. 48 (2020), as in its public implementations.
    """

    target: Target = field(default="oracle", init=False, repr=False)
    fewest_samples: ClassVar[int] = 12

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        p, m = len(eigenvalues), n_samples
        values = nonzero_part(eigenvalues, m, type(self).__name__)
        q, bandwidth = p / m, m ** (-1 / 3)
        widths = bandwidth * values
        x = (values[:, None] - values) / widths
        density = (3 / (4 * ROOT) * np.maximum(1 - x**2 / 5, 0) / widths).mean(1)
        transform = (hilbert_of_epanechnikov(x) / widths).mean(1)
        if p <= m:
            imaginary, real = np.pi * q * values * density, 1 - q - np.pi * q * values * transform
            return values / (imaginary**2 + real**2)
        # Kernels of width h l_j around l_j, seen from 0: x = -1/h for all of them.
        at_zero = hilbert_of_epanechnikov(np.array([-1 / bandwidth]))[0] / bandwidth * np.mean(1 / values)
        zeros = np.full(p - m, m / (np.pi * (p - m) * at_zero))
        return np.concatenate([zeros, values / (np.pi**2 * values**2 * (density**2 + transform**2))])


def hilbert_of_epanechnikov(x: np.ndarray) -> np.ndarray:
    """(1/pi) PV int k(t) / (t - x) dt of k(t) = (3/(4 sqrt 5)) (1 - t^2/5)_+.

        -3x/(10 pi) + (3/(4 sqrt 5 pi)) (1 - x^2/5) log|(sqrt 5 - x)/(sqrt 5 + x)|

    Its two terms cancel at large x, where -(1/(pi x)) sum_j 5^j 3/((2j+1)(2j+3)) x^(-2j) takes their place.
    """
    far = np.abs(x) > FAR
    at_edge = np.isclose(np.abs(x), ROOT, rtol=1e-12, atol=0)
    near = np.where(far | at_edge, 0.0, x)
    closed = 3 / (4 * ROOT * np.pi) * (1 - near**2 / 5) * np.log(np.abs((ROOT - near) / (ROOT + near)))
    closed = -3 * np.where(far, 0.0, x) / (10 * np.pi) + np.where(at_edge, 0.0, closed)
    distant = np.where(far, x, FAR)
    terms = [3 * 5**j / ((2 * j + 1) * (2 * j + 3)) * distant ** (-2.0 * j) for j in range(5)]
    return np.where(far, -sum(terms) / (np.pi * distant), closed)
