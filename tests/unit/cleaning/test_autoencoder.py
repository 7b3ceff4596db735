"""The eigenvalue autoencoder: what it starts from, gains in its prior, loses outside, and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sgdsde.cleaning import RIE, EigenvalueAutoencoder, FactorPrior, MixedPrior, clean
from sgdsde.cleaning.priors import LAWS, oracle_values, sample_correlation

P, M = 8, 6


@pytest.fixture(scope="module")
def small() -> EigenvalueAutoencoder:
    return EigenvalueAutoencoder.train(FactorPrior(), P, [M, 2 * P], seed=0, n_pairs=4000, n_steps=400)


def drawn(law: str, p: int, m: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample spectra, true spectra, oracle values."""
    rng = np.random.default_rng([p, m])
    true = LAWS[law](n, p, rng)
    values, vectors = np.linalg.eigh(sample_correlation(true, m, rng))
    return np.maximum(values, 0), np.linalg.eigvalsh(true), oracle_values(true, vectors)


def error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return ((np.sort(found, 1) - wanted) ** 2).mean(1)


def rie(values: np.ndarray, m: int) -> np.ndarray:
    return np.stack([RIE().estimate(each, m) for each in values])


@pytest.mark.parametrize("law", [*LAWS, "mixed"])
def test_priors_draw_correlation_matrices(law: str) -> None:
    draw = MixedPrior().draw if law == "mixed" else LAWS[law]
    matrices = draw(13, 5, np.random.default_rng(0))
    assert matrices.shape == (13, 5, 5)
    assert np.allclose(np.einsum("nii->ni", matrices), 1)
    assert np.allclose(matrices, matrices.swapaxes(1, 2))
    assert np.linalg.eigvalsh(matrices).min() > 0


def test_untrained_it_is_the_sample_but_for_the_shift() -> None:
    start = EigenvalueAutoencoder.train(FactorPrior(), P, [M], n_pairs=8, n_steps=0)
    values = drawn("factor", P, M, 5)[0]
    shifted = values + 0.05
    assert np.allclose(start.estimate_many(values, M), shifted * P / shifted.sum(1, keepdims=True), rtol=1e-5)


def test_it_gains_in_its_prior(small: EigenvalueAutoencoder) -> None:
    values, true, _ = drawn("factor", P, M)
    mine, theirs = error(small.estimate_many(values, M), true), error(rie(values, M), true)
    gap, spread = theirs - mine, (theirs - mine).std() / len(mine) ** 0.5
    assert gap.mean() > 5 * spread
    assert mine.mean() < error(values, true).mean() / 2


def test_it_loses_outside_its_prior(small: EigenvalueAutoencoder) -> None:
    values, true, _ = drawn("identity", P, 2 * P)
    assert error(small.estimate_many(values, 2 * P), true).mean() > 2 * error(rie(values, 2 * P), true).mean()


def test_the_oracle_target_is_learned_too() -> None:
    for_oracle = EigenvalueAutoencoder.train(FactorPrior(), P, M, target="oracle", n_pairs=4000, n_steps=400)
    values, _, oracle = drawn("factor", P, M)
    assert for_oracle.target == "oracle"
    found = for_oracle.estimate_many(values, M)
    assert ((found - oracle) ** 2).mean() < ((values - oracle) ** 2).mean() / 2


def test_the_same_seed_trains_the_same_weights() -> None:
    one, two, other = (
        EigenvalueAutoencoder.train(FactorPrior(), P, [M], seed=seed, n_pairs=300, n_steps=5) for seed in (3, 3, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(one.weights, two.weights))
    assert not all(torch.equal(a, b) for a, b in zip(one.weights, other.weights))


def test_a_file_holds_all_of_it(small: EigenvalueAutoencoder, tmp_path: Path) -> None:
    path = tmp_path / "cleaner.npz"
    small.save(path)
    again = EigenvalueAutoencoder.load(path)
    values = drawn("factor", P, M, 3)[0]
    assert np.array_equal(again.estimate_many(values, M), small.estimate_many(values, M))
    assert repr(again) == repr(small)
    assert "FactorPrior" in repr(again)
    with np.load(path, allow_pickle=False) as file:  # raises on a pickle
        assert all(file[name].dtype != object for name in file.files)
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="written by EigenvalueAutoencoder"):
        EigenvalueAutoencoder.load(damaged)
    with pytest.raises(FileNotFoundError):
        EigenvalueAutoencoder.load(tmp_path / "none.npz")


def test_what_it_was_not_trained_for_is_refused(small: EigenvalueAutoencoder) -> None:
    values = drawn("factor", P, M, 1)[0][0]
    with pytest.raises(ValueError, match="the 8 that it was trained for"):
        clean(np.ones(9), M, small)
    with pytest.raises(ValueError, match=r"n_samples must be in 6 ... 16"):
        clean(values, 17, small)
    with pytest.raises(ValueError, match="of a correlation matrix"):
        clean(2 * values, M, small)
    with pytest.raises(TypeError, match="prior must be a Prior"):
        EigenvalueAutoencoder.train("factor", P)
    with pytest.raises(ValueError, match="target must be one of"):
        EigenvalueAutoencoder.train(FactorPrior(), P, target="best")


@pytest.mark.slow
def test_errors_at_dimension_30_are_those_of_the_table() -> None:
    """1000 matrices a law; the table of docs/cleaning.md, with its two signs: gain inside, loss outside the prior."""
    factor = EigenvalueAutoencoder.train(FactorPrior(), 30)
    mixed = EigenvalueAutoencoder.train(MixedPrior(), 30)
    found = {}
    for law, m in (("factor", 15), ("factor", 20), ("identity", 45), ("inverse_wishart", 45), ("toeplitz", 45)):
        values, true, _ = drawn(law, 30, m, 1000)
        found[law, m] = [
            error(each, true).mean()
            for each in (values, rie(values, m), factor.estimate_many(values, m), mixed.estimate_many(values, m))
        ]
    sample, theirs, inside, broad = found["factor", 15]
    assert [sample, inside, broad] == pytest.approx([0.454, 0.126, 0.19], rel=0.2)
    assert 0.5 < theirs < 0.9  # heavy tails: .62 and .72 in 300 and 1000 draws
    assert theirs > 4 * inside
    assert found["factor", 20][1] > 3 * found["factor", 20][2]
    for law in ("identity", "inverse_wishart"):
        assert found[law, 45][2] > 1.1 * found[law, 45][1]
    for law in ("identity", "inverse_wishart", "toeplitz"):  # in the mixed prior, it wins there too
        assert found[law, 45][3] < found[law, 45][1]
