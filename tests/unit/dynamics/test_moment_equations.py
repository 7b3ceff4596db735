"""MomentEquations against SciPy's exponential of the dense generator of second moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

import sgdsde
from sgdsde.dynamics import MomentEquations
from tests.oracles import constant_part, features, weight_drift
from tests.problems import AFFINE, BY_NAME, LINEAR, Case, linear_problem
from tests.settings import chosen
from tests.unit.dynamics.generators import ContinuousOracle

WORDS = chosen("plain", "without replacement", "decay", "label noise, decay, without replacement")
RECORD = [0, 1, 2, 9, 60, 300]


def assert_equal(actual: torch.Tensor, expected: np.ndarray, rtol: float) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=rtol * np.abs(expected).max() + 1e-300)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("case", [LINEAR[0], LINEAR[1], LINEAR[4]], ids=lambda case: case.name)
def test_equals_expm(case: Case, words: dict, order: int) -> None:
    problem, sgd = case.problem(), sgdsde.SGD(0.15, 2, **words)
    oracle, y = ContinuousOracle(problem, sgd, order), problem.y_train.flatten()
    for law in MomentEquations(order).evolve(sgdsde.linearize(problem), sgd, RECORD):
        assert_equal(law.mean.flatten() - y, oracle.mean(law.time), 1e-10)
        # expm computes E[e e^T]; its square of the mean cancels to 1e-12 of that while the spread is small.
        spread = oracle.covariance(law.time)
        np.testing.assert_allclose(law.covariance.to_dense(), spread, rtol=0, atol=1e-7 * np.abs(spread).max() + 1e-12)


def test_tolerance_is_kept() -> None:
    problem, sgd = BY_NAME["one output"].problem(), sgdsde.SGD(0.15, 1)
    oracle = ContinuousOracle(problem, sgd, 2).covariance(0.15 * 60)
    for rtol in (1e-3, 1e-5, 1e-9):
        (law,) = MomentEquations(rtol=rtol).evolve(sgdsde.linearize(problem), sgd, [60])
        assert_equal(law.covariance.to_dense(), oracle, rtol)


@pytest.mark.parametrize("words", chosen("plain", "decay").values(), ids=str)
def test_test_outputs_follow_the_weights(words: dict) -> None:
    problem, sgd = BY_NAME["three outputs, null space"].problem(), sgdsde.SGD(0.15, 2, **words)
    jacobian, test = features(problem)
    carry = test @ np.linalg.pinv(jacobian)
    for law in MomentEquations().evolve(sgdsde.linearize(problem), sgd, RECORD):
        assert_equal(law.test_covariance.to_dense(), carry @ law.covariance.to_dense().numpy() @ carry.T, 1e-10)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("words", chosen("plain", "decay").values(), ids=str)
@pytest.mark.parametrize("case", [LINEAR[1], LINEAR[4], *AFFINE], ids=lambda case: case.name)
def test_mean_outputs_are_those_of_the_modified_flow_of_the_weights(case: Case, words: dict, order: int) -> None:
    """dtheta/dt = -(I + lr/2 D) (D theta - b) of order 2, by expm in the space of the weights, train and test."""
    problem = case.problem()
    sgd = sgdsde.SGD(lambda k: 0.25 if k < 6 else 0.1, 2, **words)
    drift, offset = weight_drift(problem, sgd.weight_decay)
    laws, theta = (
        list(MomentEquations(order).evolve(sgdsde.linearize(problem), sgd, [0, 6, 40])),
        problem.params["theta"],
    )
    state = np.append(theta.numpy(), 1.0)
    for law, lr, steps in zip(laws, (0.25, 0.25, 0.1), (0, 6, 34)):
        modified = np.eye(len(drift)) + (lr / 2 * drift if order == 2 else 0)
        generator = np.zeros((len(drift) + 1, len(drift) + 1))
        generator[:-1, :-1], generator[:-1, -1] = -modified @ drift, modified @ offset
        state = linalg.expm(generator * lr * steps) @ state
        rows = np.concatenate(features(problem))
        expected = (rows @ state[:-1]).reshape(-1, case.n_outputs) + constant_part(problem).numpy()
        assert_equal(torch.cat([law.mean, law.test_mean]), expected, 1e-9)


def test_a_schedule_is_its_pieces() -> None:
    """Second moments of one piece are the start of the next, so the generators' exponentials multiply."""
    problem = BY_NAME["two outputs, null space"].problem()
    sgd = sgdsde.SGD(lambda k: 0.2 if k < 5 else 0.1, lambda k: 1 if k < 8 else 3)
    (law,) = MomentEquations(1).evolve(sgdsde.linearize(problem), sgd, [30])
    moment, first = None, None
    for lr, batch_size, steps in ((0.2, 1, 5), (0.1, 1, 3), (0.1, 3, 22)):
        oracle = ContinuousOracle(problem, sgdsde.SGD(lr, batch_size), order=1)
        moment = np.outer(oracle.start, oracle.start) if moment is None else moment
        first = oracle.start if first is None else first
        values, vectors = np.linalg.eigh(moment)
        moved = np.zeros_like(moment)
        for value, vector in zip(values, vectors.T):
            oracle.start = vector
            moved += value * (oracle.covariance(lr * steps) + np.outer(*[oracle.mean(lr * steps)] * 2))
        oracle.start = first
        moment, first = moved, oracle.mean(lr * steps)
    assert_equal(law.covariance.to_dense(), moment - np.outer(first, first), 1e-7)


def test_recording_more_changes_nothing() -> None:
    problem, sgd = BY_NAME["two outputs"].problem(), sgdsde.SGD(0.15, 2)
    often = list(MomentEquations().evolve(sgdsde.linearize(problem), sgd, list(range(41))))
    seldom = list(MomentEquations().evolve(sgdsde.linearize(problem), sgd, [40]))
    torch.testing.assert_close(often[-1].covariance.to_dense(), seldom[0].covariance.to_dense(), rtol=1e-12, atol=0)
    for law in often[1::13]:
        expected = ContinuousOracle(problem, sgd, 2).covariance(law.time)
        assert_equal(law.covariance.to_dense(), expected, 3e-7)


def test_whole_batches_leave_no_spread() -> None:
    sgd = sgdsde.SGD(0.1, 4, sampling="without_replacement")
    for law in MomentEquations().evolve(sgdsde.linearize(BY_NAME["two outputs"].problem()), sgd, RECORD):
        assert float(law.covariance.trace) == 0


def test_fast_modes_cost_nothing_once_they_have_died() -> None:
    """Six orders of magnitude in the spectrum of H: ten times the horizon for less than twice the work."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(5, 1, 3)) * np.array([1.0, 0.03, 0.001])
    linearization = sgdsde.linearize(linear_problem(features, rng.normal(size=(5, 1)), rng.normal(size=3)))
    sgd = sgdsde.SGD(0.1 * sgdsde.stability.max_lr(linearization, 2), 2)
    counts = [_evaluations(linearization, sgd, n_steps) for n_steps in (10_000, 100_000)]
    assert counts[1] < 2 * counts[0] < 4000


def _evaluations(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int) -> int:
    with pytest.MonkeyPatch.context() as patch:
        count = []
        original = sgdsde.dynamics.moment_equations.Flow.step_noise
        patch.setattr(
            sgdsde.dynamics.moment_equations.Flow,
            "step_noise",
            lambda *arguments: count.append(1) or original(*arguments),
        )
        list(MomentEquations().evolve(linearization, sgd, [n_steps]))
        return len(count)


def test_beyond_the_limit_it_grows_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a finite number of its own making: the spread grows, up to infinity."""
    problem = BY_NAME["one output"].problem()
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(5 * sgdsde.stability.max_lr(linearization, 1), 1)
    few, more = MomentEquations(1).evolve(linearization, sgd, [1, 2])
    monkeypatch.setattr(sgdsde.dynamics.continuous.collocation, "HUGE", 1e20)
    (many,) = MomentEquations(1, rtol=1e-3).evolve(linearization, sgd, [1000])
    oracle = ContinuousOracle(problem, sgd, 1)
    for law in (few, more):
        assert_equal(law.covariance.to_dense(), oracle.covariance(law.time), 1e-6)
    assert float(more.covariance.trace) > 1e3
    assert float(many.covariance.trace) == np.inf or np.isnan(float(many.covariance.trace))


@pytest.mark.parametrize(("words", "reason"), [
    ({"sampling": "shuffled"}, "MomentEquations cannot represent shuffled epochs; use dynamics.MomentRecursion"),
])  # fmt: skip
def test_what_it_cannot_represent(words: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MomentEquations().evolve(sgdsde.linearize(BY_NAME["one output"].problem()), sgdsde.SGD(0.1, 2, **words), [3])


def test_messages() -> None:
    with pytest.raises(ValueError, match="order must be 2 or 1, got 3"):
        MomentEquations(order=3)
    with pytest.raises(ValueError, match="rtol must be positive, got 0"):
        MomentEquations(rtol=0)
    MomentEquations(rtol=1e-12)
    with pytest.raises(ValueError, match="rtol must be at least 1e-12, got 9"):
        MomentEquations(rtol=9e-13)
