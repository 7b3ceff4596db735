"""OrnsteinUhlenbeck against SciPy's matrix exponential and Lyapunov solver, to 1e-9 of the largest entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

import sgdsde
from sgdsde.dynamics import MomentRecursion, OrnsteinUhlenbeck, OutputLaw
from tests.oracles import features
from tests.problems import BY_NAME, LINEAR, Case, linear_problem
from tests.settings import chosen
from tests.unit.dynamics.generators import ContinuousOracle

WORDS = chosen("plain", "without replacement", "decay", "label noise", "label noise, decay, without replacement")
RECORD = [0, 1, 2, 9, 60, 1000]


def laws(problem: sgdsde.Problem, sgd: sgdsde.SGD, freeze: str = "mean_path", record=RECORD) -> list[OutputLaw]:
    return list(OrnsteinUhlenbeck(freeze).evolve(sgdsde.linearize(problem), sgd, record))


def assert_equal(actual: torch.Tensor, expected: np.ndarray, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-300)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", LINEAR[:5], ids=lambda case: case.name)
def test_mean_path_equals_expm(case: Case, words: dict) -> None:
    problem, sgd = case.problem(), sgdsde.SGD(0.1, 2, **words)
    oracle, y = ContinuousOracle(problem, sgd, order=1), problem.y_train.flatten()
    for law in laws(problem, sgd):
        assert_equal(law.mean.flatten() - y, oracle.mean(law.time))
        assert_equal(law.covariance.to_dense(), oracle.covariance_on_mean_path(law.time))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_noise_of_the_start_equals_expm(words: dict) -> None:
    """Van Loan: the covariance under constant drift and noise is a block of one exponential."""
    problem, sgd = BY_NAME["two outputs, null space"].problem(), sgdsde.SGD(0.1, 2, **words)
    oracle = ContinuousOracle(problem, sgd, order=1)
    noise, d = oracle.diffusion(oracle.start), oracle.d
    for law in laws(problem, sgd, "init", [0, 1, 2, 9, 30]):
        block = linalg.expm(np.block([[-oracle.drift, noise], [np.zeros((d, d)), oracle.drift.T]]) * law.time)
        assert_equal(law.covariance.to_dense(), block[:d, d:] @ linalg.expm(-oracle.drift.T * law.time))


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("freeze", ["init", "mean_path"])
def test_stationary_equals_lyapunov(freeze: str, words: dict) -> None:
    problem, sgd = BY_NAME["two outputs, null space"].problem(), sgdsde.SGD(0.1, 2, **words)
    oracle = ContinuousOracle(problem, sgd, order=1)
    law = OrnsteinUhlenbeck(freeze).stationary(sgdsde.linearize(problem), sgd)
    u = np.linalg.svd(features(problem)[0])[0][:, : BY_NAME["two outputs, null space"].rank]
    level = -u @ np.linalg.solve(u.T @ oracle.drift @ u, u.T @ oracle.offset)
    level = level + oracle.start - u @ (u.T @ oracle.start)
    noise = u.T @ oracle.diffusion(oracle.start if freeze == "init" else level) @ u
    expected = u @ linalg.solve_continuous_lyapunov(u.T @ oracle.drift @ u, noise) @ u.T
    assert_equal(law.mean.flatten() - problem.y_train.flatten(), level)
    assert_equal(law.covariance.to_dense(), expected)
    assert float(law.covariance.trace) > 1e-3
    (last,) = laws(problem, sgd, freeze, [100000])
    assert_equal(last.covariance.to_dense(), expected)
    assert (law.time, law.step) == (float("inf"), -1)
    torch.testing.assert_close(law.test_mean, last.test_mean)


def test_no_stationary_noise_where_the_data_are_interpolated() -> None:
    problem, sgd = BY_NAME["one output"].problem(), sgdsde.SGD(0.1, 2)
    law = OrnsteinUhlenbeck().stationary(sgdsde.linearize(problem), sgd)
    assert float(law.covariance.trace) < 1e-25
    assert float(OrnsteinUhlenbeck("init").stationary(sgdsde.linearize(problem), sgd).covariance.trace) > 0.1


def test_test_outputs_follow_the_weights() -> None:
    """J_test (J^+ S J^+T) J_test^T: train and test share their noise."""
    problem, sgd = BY_NAME["three outputs, null space"].problem(), sgdsde.SGD(0.1, 2)
    jacobian, test = features(problem)
    carry = test @ np.linalg.pinv(jacobian)
    for law in laws(problem, sgd)[1:]:
        expected = carry @ law.covariance.to_dense().numpy() @ carry.T
        assert_equal(law.test_covariance.to_dense(), expected)


def test_schedules_are_piecewise_constant() -> None:
    """A schedule equals its pieces, one started where the other stopped; and a constant one is no schedule."""
    problem = BY_NAME["two outputs, null space"].problem()
    constant = laws(problem, sgdsde.SGD(0.1, 2))
    same = laws(problem, sgdsde.SGD(lambda k: 0.1, lambda k: 2))
    torch.testing.assert_close(same[-1].covariance.to_dense(), constant[-1].covariance.to_dense())
    sgd = sgdsde.SGD(lambda k: 0.1 if k < 9 else 0.05, lambda k: 2 if k < 5 else 3)
    d, covariance, mean = problem.n_train * problem.n_outputs, None, None
    for lr, batch_size, steps in ((0.1, 2, 5), (0.1, 3, 4), (0.05, 3, 51)):
        oracle = ContinuousOracle(problem, sgdsde.SGD(lr, batch_size), order=1)
        oracle.start = oracle.start if mean is None else mean
        decayed = linalg.expm(-oracle.drift * lr * steps)
        old = np.zeros((d, d)) if covariance is None else covariance
        covariance = decayed @ old @ decayed + oracle.covariance_on_mean_path(lr * steps)
        mean = oracle.mean(lr * steps)
    (law,) = laws(problem, sgd, record=[60])
    assert_equal(law.covariance.to_dense(), covariance)
    assert_equal(law.mean.flatten() - problem.y_train.flatten(), mean)
    assert law.time == pytest.approx(0.1 * 9 + 0.05 * 51)


@pytest.mark.parametrize("freeze", ["init", "mean_path"])
def test_whole_batches_leave_no_spread(freeze: str) -> None:
    sgd = sgdsde.SGD(0.1, 4, sampling="without_replacement")
    for law in laws(BY_NAME["two outputs"].problem(), sgd, freeze):
        assert float(law.covariance.trace) == 0


def test_the_noise_of_the_start_is_too_much_and_that_of_the_mean_path_too_little() -> None:
    """The exact recursion lies between them, once the residual has fallen and carries a spread of its own."""
    problem, sgd = BY_NAME["one output"].problem(), sgdsde.SGD(0.03, 1)
    (init,), (path,) = laws(problem, sgd, "init", [200]), laws(problem, sgd, "mean_path", [200])
    (exact,) = MomentRecursion().evolve(sgdsde.linearize(problem), sgd, [200])
    assert float(path.covariance.trace) < float(exact.covariance.trace) < float(init.covariance.trace) / 3


def test_fast_and_slow_modes_together() -> None:
    """Six orders of magnitude in the spectrum, and a horizon of 10^5 steps."""
    rng = np.random.default_rng(5)
    scales = np.logspace(0, -3, 5)
    problem = linear_problem(rng.normal(size=(5, 1, 5)) * scales, rng.normal(size=(5, 1)), rng.normal(size=5))
    sgd = sgdsde.SGD(0.1, 2)
    oracle = ContinuousOracle(problem, sgd, order=1)
    for law in laws(problem, sgd, record=[100, 10_000, 100_000]):
        assert_equal(law.covariance.to_dense(), oracle.covariance_on_mean_path(law.time), rtol=3e-9)


@pytest.mark.parametrize(("words", "reason"), [
    ({"sampling": "shuffled"}, "OrnsteinUhlenbeck cannot represent shuffled epochs; use dynamics.MomentRecursion"),
])  # fmt: skip
def test_what_it_cannot_represent(words: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        laws(BY_NAME["one output"].problem(), sgdsde.SGD(0.1, 2, **words))


def test_messages() -> None:
    with pytest.raises(ValueError, match="freeze must be one of 'mean_path', 'init', got 'optimum'"):
        OrnsteinUhlenbeck(freeze="optimum")
    with pytest.raises(ValueError, match="rtol must be at least 1e-12, got 1e-15"):
        OrnsteinUhlenbeck(rtol=1e-15)
    problem = BY_NAME["one output"].problem()
    with pytest.raises(ValueError, match="lr and batch_size must be constant for a stationary law"):
        OrnsteinUhlenbeck().stationary(sgdsde.linearize(problem), sgdsde.SGD(lambda k: 0.1, 2))
    x, y = torch.zeros(3, 2).normal_(generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1])
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"the loss CrossEntropyLoss; use dynamics.LinearizedSGD"):
        laws(sgdsde.Problem(model, x, y, loss=nn.CrossEntropyLoss()), sgdsde.SGD(0.1, 2))
