"""The extreme eigenvalues of a sample covariance are biased outward, its linear functionals are not.

The numbers of docs/cleaning.md; seeded draws, tolerances of four standard errors.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from sgdsde.cleaning import AnalyticalNonlinear, LedoitWolf, clean


def extremes(spectrum: np.ndarray, m: int, draws: int) -> np.ndarray:
    """Smallest and largest sample eigenvalue over the true ones, [draws, 2]."""
    found = []
    for seed in range(draws):
        x = np.random.default_rng([seed, m]).standard_normal((m, len(spectrum))) * np.sqrt(spectrum)
        values = np.linalg.eigvalsh(x.T @ x / m)
        found.append([values[0] / spectrum.min(), values[-1] / spectrum.max()])
    return np.array(found)


@pytest.mark.parametrize(("p", "smallest", "largest"), [(20, 0.164, 2.060), (50, 0.142, 2.168)])
def test_extremes_of_a_flat_spectrum_by_half_as_many_dimensions_as_samples(
    p: int, smallest: float, largest: float
) -> None:
    found = extremes(np.linspace(1, 2, p), 2 * p, 400)
    error = 4 * found.std(0, ddof=1) / 400**0.5
    assert np.all(np.abs(found.mean(0) - [smallest, largest]) < error + 0.001)


@pytest.mark.parametrize(("p", "m"), [(2, 50), (5, 7), (7, 5)])
def test_the_mean_of_the_extremes_is_outside_at_any_size(p: int, m: int) -> None:
    """E l_1(S) >= l_1(C) and E l_p(S) <= l_p(C), by Jensen; far beyond 4 standard errors here."""
    found = extremes(np.linspace(1, 2, p), m, 600)
    error = 4 * found.std(0, ddof=1) / 600**0.5
    low, high = found.mean(0)
    assert low < 1 - error[0]
    assert high > 1 - error[1]


def test_centered_samples_with_divisor_m_break_the_claim_at_one_dimension() -> None:
    ratios = []
    for seed in range(2000):
        x = np.random.default_rng(seed).standard_normal(10)
        ratios.append([x.var(), x.var(ddof=1)])
    biased, unbiased = np.mean(ratios, 0)
    assert biased == pytest.approx(0.9, abs=0.04)
    assert unbiased == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(("p", "m", "share"), [(20, 2000, 0.528), (200, 400, 0.972)])
def test_how_often_a_spike_is_overestimated(p: int, m: int, share: float) -> None:
    """A spike of 5 in the identity: a claim of probability 1 needs p/m > 0; and its mean l (1 + q/(l - 1))."""
    draws = 200
    spectrum = np.r_[np.ones(p - 1), 5.0]
    largest = extremes(spectrum, m, draws)[:, 1]
    assert (largest > 1).mean() == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5)
    assert 5 * largest.mean() == pytest.approx(5 * (1 + p / m / 4), abs=4 * 5 * largest.std() / draws**0.5 + 0.01)


def test_linear_functionals_are_unbiased_over_all_subsamples() -> None:
    """All 20 subsets of 3 of 6 examples: trace and tr(A Sigma) average to the population's, and cleaning spoils one."""
    rng = np.random.default_rng(0)
    gradients = rng.standard_normal((6, 4)) * [3, 1, 0.3, 0.1]
    root = rng.standard_normal((4, 4))
    weight = root @ root.T
    full = np.cov(gradients.T)
    raw, cleaned = [], []
    for chosen in combinations(range(6), 3):
        sigma = np.cov(gradients[list(chosen)].T)
        values, vectors = np.linalg.eigh(sigma)
        shrunk = clean(torch.from_numpy(values), 2, LedoitWolf()).eigenvalues.numpy()
        raw.append([np.trace(sigma), np.trace(weight @ sigma)])
        cleaned.append(np.trace(weight @ (vectors * shrunk) @ vectors.T))
    wanted = np.array([np.trace(full), np.trace(weight @ full)])
    assert np.mean(raw, 0) == pytest.approx(wanted, rel=1e-12)
    assert abs(np.mean(cleaned) / wanted[1] - 1) > 0.02


@pytest.mark.parametrize(
    ("power", "raw", "linear", "analytical"), [(0.0, -0.74, -0.04, -0.40), (0.7, -0.11, 0.56, 0.24)]
)
def test_shrinkers_err_on_the_unsafe_side_of_a_decaying_spectrum(
    power: float, raw: float, linear: float, analytical: float
) -> None:
    """Relative error of 1 / l_1, d = m = 64, 60 draws: a limit on the learning rate from a shrunk spectrum."""
    d = m = 64
    spectrum = np.arange(1, d + 1) ** -power
    spectrum *= d / spectrum.sum()
    found = []
    for seed in range(60):
        x = np.random.default_rng(seed).standard_normal((m, d)) * np.sqrt(spectrum)
        values = np.maximum(np.linalg.eigvalsh(x.T @ x / m), 1e-12)
        norms = torch.from_numpy((x**2).sum(1))
        tops = [values[-1]] + [
            float(clean(values, m, method).eigenvalues.max()) for method in (LedoitWolf(norms), AnalyticalNonlinear())
        ]
        found.append(spectrum.max() / np.array(tops) - 1)
    error = 4 * np.std(found, 0) / 60**0.5 + 0.01
    assert np.all(np.abs(np.mean(found, 0) - [raw, linear, analytical]) < error)
