"""The parts of the stability limits against what defines them: series, dense matrices, whole batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.stability import mean_square_radius, second_moments, sufficient_lr
from sgdsde.stability.limits import _plain_limit, _sufficient_of_map, noise_among, noise_factor
from sgdsde.stability.local import local_map
from sgdsde.stability.second_moments import largest_eigenvalue, squared_response
from sgdsde.step import Step
from tests.oracles import dense_radius
from tests.problems import BY_NAME, LARGER, digits_problem
from tests.settings import each

DRIFT = torch.tensor([0.02, 0.4, 1.1, 2.5, 3.0], dtype=torch.float64)


@each("plain", "decay", "momentum, dampening", "momentum, negative dampening, decay", "nesterov, decay")
@pytest.mark.parametrize("case", ["one output", "two outputs"])
def test_whole_batches_have_the_radius_of_the_dense_step(case: str, words: dict) -> None:
    """Without noise nothing but the mean decides; later steps are dampened, the first one is not."""
    problem = BY_NAME[case].problem()
    kernel = sgdsde.linearize(problem).dense_kernel.numpy()
    for lr in (0.05, 0.7):
        sgd = sgdsde.SGD(lr, 4, sampling="without_replacement", **words)
        assert mean_square_radius(problem, sgd) == pytest.approx(dense_radius(kernel, 4, sgd), rel=1e-9)


@each("plain", "decay", "momentum, dampening", "nesterov, decay")
@pytest.mark.parametrize("x", [1.0, 1.3])
def test_the_response_to_noise_is_the_series_of_its_echoes(x: float, words: dict, monkeypatch) -> None:
    step = Step.of(sgdsde.SGD(0.3, 1, **words), 0.3, first=False).modal(DRIFT)
    if words.get("momentum"):
        state, transition = step.gains.expand(5, 2)[..., None], step.matrices
    else:
        state, transition = torch.full((5, 1, 1), step.e_gain, dtype=torch.float64), step.ee[:, None, None]
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for k in range(3000):
        expected += x ** -(k + 1) * state[:, 0] * state[:, 0].mT
        state = transition @ state
    torch.testing.assert_close(squared_response(step, x), expected, rtol=1e-9, atol=1e-14)
    monkeypatch.setattr(second_moments, "_PAIRS_AT_ONCE", 11)  # two rows at a time
    torch.testing.assert_close(squared_response(step, x), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (9, 1), (2, 2, 2), (7, 3, 3)], ids=str)
def test_the_largest_eigenvalue_is_that_of_the_matrix(shape: tuple[int, ...]) -> None:
    """The largest, not the largest in size, of a map that is small and of one that needs an iteration."""
    size = math.prod(shape)
    rng = np.random.default_rng(size)
    root = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.concatenate([[2.0], -np.linspace(3.0, 0.1, size - 1)])
    matrix = torch.from_numpy((root * values) @ root.T)
    start = rng.normal(size=size)
    found = largest_eigenvalue(lambda y: (matrix @ y.flatten()).view(shape), shape, matrix, start=start)
    assert found == pytest.approx(2.0, rel=1e-9)
    assert largest_eigenvalue(torch.zeros_like, shape, matrix) == 0.0


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
@pytest.mark.parametrize("problem", [LARGER.problem(), digits_problem(12)], ids=["two outputs", "digits"])
def test_the_shortcut_of_a_map_is_that_of_the_kernel(problem: sgdsde.Problem, sampling: str) -> None:
    """It answers for the exact limit and so must not exceed it."""
    linearization = sgdsde.linearize(problem)
    moments = local_map(linearization)
    for batch_size in (1, 3, 8):
        noise = noise_factor(linearization, batch_size, sampling)
        found = _sufficient_of_map(moments, noise)
        assert found == pytest.approx(sufficient_lr(linearization, batch_size, sampling=sampling), rel=1e-8)
        assert 0.5 * _plain_limit(moments, noise) < found <= _plain_limit(moments, noise) * (1 + 1e-9)
        n, c = problem.n_train, problem.n_outputs
        kernel = linearization.dense_kernel
        same = torch.block_diag(*[torch.ones(c, c, dtype=torch.float64)] * n)
        seen = (1 - noise) * kernel / n + noise * same * kernel
        assert found == pytest.approx(2 / (2 / c * float(torch.linalg.eigvalsh(seen)[-1])), rel=1e-8)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 11])
def test_shuffled_epochs_are_held_against_fresh_batches(batch_size: int) -> None:
    """phi/B by hand; a batch beyond the data is all of them, and drawn with replacement it may be."""
    fresh = (8 - min(batch_size, 8)) / 7 / min(batch_size, 8)
    assert noise_among(8, batch_size, "shuffled") == pytest.approx(fresh)
    assert noise_among(8, batch_size, "with_replacement") == pytest.approx(1 / batch_size)
    if batch_size > 8:
        with pytest.raises(ValueError, match="at most n_train when drawn without replacement"):
            noise_among(8, batch_size, "without_replacement")
    else:
        assert noise_among(8, batch_size, "without_replacement") == pytest.approx(fresh)
