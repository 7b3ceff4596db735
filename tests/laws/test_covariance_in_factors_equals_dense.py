"""Claim: what is read off a covariance kept in factors is what the dense matrix says, and so is the loss's spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import Covariance, MomentRecursion
from tests.problems import LINEAR, Case


def random_covariance(rows: int, rank: int) -> Covariance:
    rng = np.random.default_rng([rows, rank])
    factor, root = torch.from_numpy(rng.normal(size=(rows, rank))), torch.from_numpy(rng.normal(size=(rank, rank)))
    return Covariance(factor, root @ root.mT, factor.mT @ factor)


@pytest.mark.parametrize(("rows", "rank"), [(6, 6), (6, 2), (6, 9), (60, 5)])
def test_factors_equal_dense(rows: int, rank: int) -> None:
    covariance = random_covariance(rows, rank)
    dense = covariance.factor @ covariance.core @ covariance.factor.mT
    vector = torch.from_numpy(np.random.default_rng(0).normal(size=rows))
    expected = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(covariance.to_dense(), dense, **expected)
    torch.testing.assert_close(covariance.trace, dense.trace(), **expected)
    torch.testing.assert_close(covariance.squared_norm, dense.square().sum(), **expected)
    torch.testing.assert_close(covariance.quadratic(vector), vector @ dense @ vector, **expected)
    torch.testing.assert_close(covariance.diagonal(), dense.diagonal(), **expected)
    for c in (1, 2, 3):
        blocks = torch.stack([dense[i : i + c, i : i + c] for i in range(0, rows, c)])
        torch.testing.assert_close(covariance.blocks(c), blocks, **expected)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_the_loss_of_a_gaussian_law(case: Case) -> None:
    """E L = s/(2N) (|e|^2 + tr S), Var L = (s/2N)^2 (2 tr S^2 + 4 e^T S e), from dense matrices, train and test."""
    problem, sgd = case.problem(), sgdsde.SGD(0.1, 2)
    predicted = sgdsde.predict(problem, sgd, 9, record=(0, 1, 9))
    laws = list(MomentRecursion().evolve(sgdsde.linearize(problem), sgd, (0, 1, 9)))
    for row, law in enumerate(laws):
        for band, mean, covariance, y in (
            (predicted.train_loss, law.mean, law.covariance, problem.y_train),
            (predicted.test_loss, law.test_mean, law.test_covariance, problem.y_test),
        ):
            dense, residual, entries = covariance.to_dense(), (mean - y).flatten(), y.numel()
            expected = (residual.square().sum() + dense.trace()) / entries
            variance = (2 * (dense @ dense).trace() + 4 * residual @ dense @ residual) / entries**2
            assert float(band.mean[row]) == pytest.approx(float(expected), rel=1e-12)
            assert float(band.std[row]) == pytest.approx(float(variance.sqrt()), rel=1e-9, abs=1e-14)


def test_the_spread_of_the_loss_of_gaussian_outputs() -> None:
    """The closure's formula itself: the mean of (e + g)^2 over outputs for g normal, by 10^5 draws, error rate 1e-4."""
    from tests.statistics import assert_mean_is

    rng = np.random.default_rng(4)
    root, mean = rng.normal(size=(4, 4)), rng.normal(size=4)
    covariance = root @ root.T
    losses = np.mean((mean + rng.normal(size=(100_000, 4)) @ root.T) ** 2, axis=1)
    expected = (mean @ mean + np.trace(covariance)) / 4
    variance = (2 * np.trace(covariance @ covariance) + 4 * mean @ covariance @ mean) / 16
    values = torch.from_numpy(np.stack([losses, (losses - expected) ** 2], axis=1))
    assert_mean_is(torch.tensor([expected, variance], dtype=torch.float64), values, what="E L, Var L")
