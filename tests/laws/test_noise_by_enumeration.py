"""Claim: the covariance of a minibatch gradient, seen in the outputs, is (phi/B) K (blockdiag(S)/n - S/n^2) K.

Oracle: every batch that can be drawn.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sgdsde.noise import noise_direction, output_noise, residual_covariance
from tests.oracles import every_batch, features
from tests.problems import LINEAR, Case

SAMPLINGS = ("with_replacement", "without_replacement")


def enumerated(problem, residual: np.ndarray, batch_size: int, sampling: str) -> np.ndarray:
    """Covariance over every batch of J_all g, g the mean gradient of the batch: [(n+m)c, (n+m)c]."""
    train, test = features(problem)
    rows = np.concatenate([train, test])
    n, c = residual.shape
    velocities, chances = [], []
    for batch, chance in every_batch(n, batch_size, sampling):
        gradient = np.mean([train[i * c : (i + 1) * c].T @ residual[i] for i in batch], axis=0)
        velocities.append(rows @ gradient)
        chances.append(chance)
    velocities, chances = np.array(velocities), np.array(chances)
    deviation = velocities - chances @ velocities
    return deviation.T @ (deviation * chances[:, None])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_output_noise_is_the_covariance_over_every_batch(case: Case, batch_size: int, sampling: str) -> None:
    problem = case.problem()
    residual = np.random.default_rng(0).normal(size=(case.n_train, case.n_outputs))
    train, test = (torch.from_numpy(part) for part in features(problem))
    moment = torch.from_numpy(np.outer(residual, residual))
    rows = torch.cat([train, test]) @ train.mT  # the kernel of train and test examples with the training set
    noise = output_noise(rows, moment, n_train=case.n_train, batch_size=batch_size, sampling=sampling)
    oracle = torch.from_numpy(enumerated(problem, residual, batch_size, sampling))
    torch.testing.assert_close(noise, oracle, rtol=1e-12, atol=1e-12)
    if batch_size == case.n_train and sampling == "without_replacement":
        assert bool((noise == 0).all())


@pytest.mark.parametrize("wrong_batch_size", [1, 3])
def test_the_comparison_notices_a_batch_off_by_one(wrong_batch_size: int) -> None:
    case = LINEAR[3]
    problem = case.problem()
    residual = np.random.default_rng(0).normal(size=(case.n_train, case.n_outputs))
    train = torch.from_numpy(features(problem)[0])
    oracle = enumerated(problem, residual, 2, "with_replacement")[: len(train), : len(train)]
    noise = output_noise(
        train @ train.mT, torch.from_numpy(np.outer(residual, residual)), n_train=4, batch_size=wrong_batch_size
    )
    assert float((noise - torch.from_numpy(oracle)).abs().max()) > 0.1 * float(np.abs(oracle).max())


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
def test_one_number_an_example_draws_noise_of_exactly_this_covariance(n_outputs: int) -> None:
    """v is linear in xi, so Cov(v) = V V^T with V's columns the responses to unit vectors: no sampling error."""
    n = 4
    residual = torch.from_numpy(np.random.default_rng(1).normal(size=(n, n_outputs)))
    responses = noise_direction(residual.expand(n, n, n_outputs), torch.eye(n, dtype=torch.float64)).flatten(1)
    moment = torch.outer(residual.flatten(), residual.flatten())
    torch.testing.assert_close(responses.mT @ responses, residual_covariance(moment, n), rtol=0, atol=1e-14)


def test_a_draw_moves_no_mean() -> None:
    """1^T v = 0 summed over examples where all residuals agree: a common gradient has no noise."""
    residual = torch.ones(5, 2, dtype=torch.float64)
    xi = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 5)))
    assert float(noise_direction(residual.expand(3, 5, 2), xi).sum(1).abs().max()) < 1e-14


@pytest.mark.parametrize(("batch_size", "sampling"), [(0, "with_replacement"), (9, "without_replacement")])
def test_no_batch_is_empty_or_larger_than_the_set_it_is_drawn_from(batch_size: int, sampling: str) -> None:
    eye = torch.eye(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch_size must be at least 1, and at most n_train when drawn without"):
        output_noise(eye, eye, n_train=8, batch_size=batch_size, sampling=sampling)
    assert output_noise(eye, eye, n_train=8, batch_size=9, sampling="with_replacement").trace() > 0
