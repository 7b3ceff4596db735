"""Estimators of eigenvalues against scikit-learn, integrals, other formulas and what is known of their limits."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sgdsde.cleaning import OAS, RIE, AnalyticalNonlinear, Lawley, LedoitWolf, UncleanedWarning, clean, sample_spectrum
from sgdsde.cleaning.nonlinear_shrinkage import ROOT, hilbert_of_epanechnikov

SHAPES = [(30, 12), (12, 30), (20, 20)]
"""Samples m and dimensions p: p < m, p > m, p = m."""
METHODS = [LedoitWolf(), OAS(), AnalyticalNonlinear(), RIE(), RIE(debias=False), Lawley()]


def samples(m: int, p: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, m, p]).standard_normal((m, p)) * np.linspace(0.5, 3, p)


def spectrum(x: np.ndarray) -> np.ndarray:
    return np.maximum(np.linalg.eigvalsh(x.T @ x / len(x)), 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_shrinkage_is_that_of_scikit_learn(shape: tuple[int, int]) -> None:
    from sklearn import covariance

    x = samples(*shape)
    norms = torch.from_numpy((x**2).sum(1))
    for method, reference in (
        (LedoitWolf(norms), covariance.ledoit_wolf(x, assume_centered=True)[0]),
        (OAS(), covariance.oas(x, assume_centered=True)[0]),
    ):
        found = clean(spectrum(x), len(x), method).eigenvalues.numpy()
        assert np.allclose(found, np.linalg.eigvalsh(reference), rtol=1e-10, atol=1e-12)


def test_ledoit_wolf_without_norms_is_its_gaussian_expectation() -> None:
    """The noise term given the eigenvalues, averaged over Gaussian samples; the fourth moments of others differ."""
    p, m, noise, assumed, heavy = 6, 40, [], [], []
    for seed in range(2000):
        x = np.random.default_rng(seed).standard_normal((m, p)) * np.linspace(1, 2, p)
        for each, out in ((x, noise), (x * np.random.default_rng([seed, 1]).choice([0.3, 1.38], (m, 1)), heavy)):
            s = each.T @ each / m
            out.append((((each**2).sum(1) ** 2).mean() - (s**2).sum()) / m)
        s = x.T @ x / m
        assumed.append(((m - 2) / m * (s**2).sum() + np.trace(s) ** 2) / (m + 2))
    error = np.std(np.subtract(noise, assumed)) / len(noise) ** 0.5
    assert abs(np.mean(noise) - np.mean(assumed)) < 4 * error  # 6e-5 of all seeds
    assert abs(np.mean(heavy) - np.mean(assumed)) > 20 * error


def test_hilbert_transform_is_the_principal_value_integral() -> None:
    def kernel(t: float) -> float:
        return 3 / (4 * ROOT) * (1 - t**2 / 5)

    for x in (-3.0, -1.1, 0.0, 0.7, 2.0):
        if abs(x) < ROOT:
            wanted = quad(kernel, -ROOT, ROOT, weight="cauchy", wvar=x)[0] / np.pi
        else:
            wanted = quad(lambda t, x=x: kernel(t) / (t - x), -ROOT, ROOT)[0] / np.pi
        assert hilbert_of_epanechnikov(np.array([x]))[0] == pytest.approx(wanted, abs=1e-10)
    edge = hilbert_of_epanechnikov(np.array([ROOT, -ROOT, ROOT * (1 + 1e-9)]))
    assert edge == pytest.approx(-3 * np.array([ROOT, -ROOT, ROOT]) / (10 * np.pi), rel=1e-6)


def test_hilbert_transform_keeps_its_digits_far_away() -> None:
    """There is no jump where the series takes over, and the closed form has lost all digits at 1e8."""
    both = hilbert_of_epanechnikov(np.array([30.0, 30.0 * (1 + 1e-12)]))
    assert both[0] == pytest.approx(both[1], rel=1e-9)
    far = np.array([1e4, 1e6, 1e8])
    assert hilbert_of_epanechnikov(far) == pytest.approx(-1 / (np.pi * far), rel=1e-7)
    naive = -3 * far / (10 * np.pi) + 3 / (4 * ROOT * np.pi) * (1 - far**2 / 5) * np.log((far - ROOT) / (far + ROOT))
    assert abs(naive[-1] * np.pi * far[-1] + 1) > 1


def test_analytical_shrinkage_survives_a_spectrum_of_great_condition() -> None:
    """p = 400, m = 49, condition 1e7: the top eigenvalue collapses where the transform cancels, and must not."""
    top = clean(np.r_[np.zeros(351), np.geomspace(1e-7, 1, 49)], 49, AnalyticalNonlinear()).eigenvalues[-1]
    assert 0.5 < float(top) < 1.1


@pytest.mark.parametrize("shape", [(400, 40), (60, 240)])
def test_analytical_shrinkage_approaches_the_oracle(shape: tuple[int, int]) -> None:
    """Closer to u^T C u than the sample is, by a factor of two in squares; 40 draws."""
    m, p = shape
    true = np.linspace(1, 4, p)
    gaps = []
    for seed in range(8):
        x = np.random.default_rng([seed, m]).standard_normal((m, p)) * np.sqrt(true)
        values, vectors = np.linalg.eigh(x.T @ x / m)
        oracle = (vectors**2 * true[:, None]).sum(0)
        found = clean(np.maximum(values, 0), m, AnalyticalNonlinear()).eigenvalues.numpy()
        gaps.append([((found - oracle) ** 2).sum(), ((values - oracle) ** 2).sum()])
    mine, raw = np.mean(gaps, 0)
    assert mine < raw / 2


def test_rie_without_its_pole_does_not_collapse() -> None:
    """p = 30, m = 20: with the eigenvalue's own pole the top is 60 % below the truth, without 7 % (400 draws)."""
    p, m, rng = 30, 20, np.random.default_rng(0)
    top, with_pole = [], []
    for _ in range(100):
        strength = np.exp(rng.normal(-0.5, 0.8))
        load = rng.standard_normal((p, 1)) * strength**0.5
        c = load @ load.T + np.diag(np.exp(0.5 * rng.standard_normal(p)))
        c /= np.sqrt(np.outer(np.diag(c), np.diag(c)))
        values = spectrum(rng.standard_normal((m, p)) @ np.linalg.cholesky(c).T)
        top.append(RIE().estimate(values, m).max() / np.linalg.eigvalsh(c)[-1])
        z = values - 1j / p**0.5
        s = (1 / (z[:, None] - values)).mean(1)
        naive = values / np.abs(1 - p / m + p / m * z * s) ** 2
        with_pole.append(naive.max() * values.sum() / naive.sum() / np.linalg.eigvalsh(c)[-1])
    assert np.mean(top) > 0.75
    assert np.mean(with_pole) < np.mean(top) - 0.2


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_estimator_scales_and_permutes_with_its_input(method: object, shape: tuple[int, int]) -> None:
    values = spectrum(samples(*shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncleanedWarning)
        found = clean(values, shape[0], method).eigenvalues.numpy()
        order = np.random.default_rng(1).permutation(len(values))
        assert np.allclose(clean(values[order], shape[0], method).eigenvalues.numpy(), found[order], rtol=1e-9)
        assert np.allclose(clean(1e5 * values, shape[0], method).eigenvalues.numpy(), 1e5 * found, rtol=1e-9)
    assert (found >= 0).all()


def test_lawley_is_unbiased_where_eigenvalues_are_separated() -> None:
    """Spike 10 in the identity of 64, m = 64: raw +11 %, corrected within 2 % (bias of second order), 300 draws."""
    raw, cleaned = [], []
    for seed in range(300):
        x = np.random.default_rng(seed).standard_normal((64, 64))
        x[:, 0] *= 10**0.5
        values = spectrum(x)
        raw.append(values[-1] / 10)
        cleaned.append(float(clean(values, 64, Lawley()).eigenvalues[-1]) / 10)
    assert np.mean(raw) == pytest.approx(1.109, abs=0.03)
    assert np.mean(cleaned) == pytest.approx(0.989, abs=0.03)


def test_lawley_of_several_equals_the_sum_by_hand() -> None:
    values = np.array([0.1, 0.5, 1.0, 9.0, 40.0])
    found = clean(values, 50, Lawley(k=2)).eigenvalues.numpy()
    for i in (3, 4):
        bias = sum(values[j] / (values[i] - values[j]) for j in range(5) if j != i) / 50
        assert found[i] == pytest.approx(values[i] * (1 - bias), rel=1e-14)
    assert (found[:3] == values[:3]).all()


def test_lawley_of_copies_is_that_of_one() -> None:
    """Every eigenvalue there three times, from vectors that come in threes: the same corrections, up to k = 6."""
    values = np.array([0.1, 0.5, 1.0, 9.0, 40.0])
    one = clean(values, 50, Lawley(k=2)).eigenvalues.numpy()
    three = clean(np.repeat(values, 3), 50, Lawley(k=6, copies=3)).eigenvalues.numpy()
    assert three == pytest.approx(np.repeat(one, 3), rel=1e-14)


def test_lawley_refuses_a_flat_spectrum_and_says_so() -> None:
    values = spectrum(np.random.default_rng(0).standard_normal((64, 64)))
    with pytest.warns(UncleanedWarning, match="eigenvalue 1 of 64 is left raw"):
        found = clean(values, 64, Lawley())
    assert np.array_equal(found.eigenvalues.numpy(), values)
    with pytest.warns(UncleanedWarning, match="inf %"):
        clean([1.0, 2.0, 2.0], 10, Lawley())


def test_targets_are_named() -> None:
    values = spectrum(samples(30, 12))
    assert clean(values, 30, Lawley()).target == "true"
    assert clean(values, 30, RIE()).target == "oracle"
    assert "from 30 samples" in clean(values, 30, OAS()).sentence


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_sample_spectrum_is_that_of_the_covariance(shape: tuple[int, int], centered: bool) -> None:
    x = samples(*shape) + 5
    values, freedom = sample_spectrum(torch.from_numpy(x), centered=centered)
    direct = np.cov(x.T) if centered else x.T @ x / len(x)
    assert freedom == len(x) - centered
    assert np.allclose(values, np.linalg.eigvalsh(direct), atol=1e-10)
    correlated = sample_spectrum(torch.from_numpy(x), correlation=True)[0]
    assert np.allclose(correlated, np.linalg.eigvalsh(np.corrcoef(x.T)), atol=1e-10)


@pytest.mark.parametrize(
    ("values", "m", "method", "message"),
    [
        ([-0.5, 1.0], 10, OAS(), "none negative beyond rounding"),
        ([float("nan"), 1.0], 10, OAS(), "finite everywhere"),
        ([0.0, 0.0], 10, OAS(), "not all zero"),
        ([[1.0, 2.0]], 10, OAS(), r"must be \[p\]"),
        ([1.0, 2.0], 1, OAS(), "n_samples must be at least 2"),
        ([1.0, 2.0], 11, AnalyticalNonlinear(), "n_samples must be at least 12"),
        ([0.0, 1.0, 2.0], 20, AnalyticalNonlinear(), "above zero in min"),
        ([1.0], 20, RIE(), "at least two"),
        ([1.0, 2.0], 20, Lawley(k=3), "k must be at most"),
        ([1.0, 2.0], 2, LedoitWolf(torch.ones(2)), "squared_norms must be those of the 2 samples"),
    ],
)
def test_bad_input_gets_one_clear_error(values: list, m: int, method: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clean(values, m, method)


def test_other_bad_input() -> None:
    with pytest.raises(TypeError, match="method must be a Cleaner"):
        clean([1.0, 2.0], 10, "lawley")
    with pytest.raises(TypeError, match="real floating-point"):
        clean(torch.tensor([1, 2]), 10, OAS())
    with pytest.raises(ValueError, match="one centered sample"):
        sample_spectrum(torch.ones(1, 3))
    with pytest.raises(ValueError, match="column 0 constant"):
        sample_spectrum(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), correlation=True)
    # Rounding below zero is no negative eigenvalue.
    assert float(clean([-1e-17, 1.0], 10, OAS()).eigenvalues.min()) > 0
