"""Claim: the frozen process has the covariance (phi lr/B) int exp(-H s) K C K exp(-H s) ds, train and test.

Oracles in the space of the weights: quadrature of matrix exponentials, SciPy's Lyapunov solver.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

import sgdsde
from sgdsde.dynamics import GradientFlow, OrnsteinUhlenbeck
from tests.oracles import features, frozen_noise_covariance, gradient_covariance, weight_drift
from tests.problems import AFFINE, BY_NAME, LINEAR, Case

FROZEN = OrnsteinUhlenbeck(freeze="init")


def weight_covariance(problem: sgdsde.Problem, time: float, factor: float) -> np.ndarray:
    """Of the weights at a time, for a diffusion factor phi lr / B, by quadrature."""
    drift, _ = weight_drift(problem)
    return factor * frozen_noise_covariance(drift, gradient_covariance(problem, problem.params["theta"].numpy()), time)


def assert_covariance(law: sgdsde.dynamics.OutputLaw, problem: sgdsde.Problem, weights: np.ndarray) -> None:
    for covariance, rows in zip((law.covariance, law.test_covariance), features(problem)):
        oracle = torch.from_numpy(rows @ weights @ rows.T)
        torch.testing.assert_close(covariance.to_dense(), oracle, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("sampling", "factor"), [("with_replacement", 1 / 3), ("without_replacement", 1 / 9)])
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_covariance_equals_quadrature(case: Case, sampling: str, factor: float) -> None:
    """n = 4, B = 3: phi/B is 1/3, or (1/3)/3 without replacement."""
    problem, lr = case.problem(), 0.2
    sgd = sgdsde.SGD(lr, 3, sampling=sampling)
    for law in FROZEN.evolve(sgdsde.linearize(problem), sgd, (0, 1, 6, 60)):
        assert_covariance(law, problem, weight_covariance(problem, lr * law.step, lr * factor))


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_late_covariance_equals_the_lyapunov_solution(case: Case) -> None:
    """On the range of the drift, where there is one. (The process knows no limit on lr, so a large one saves steps.)"""
    problem, lr = case.problem(), 50.0
    drift, _ = weight_drift(problem)
    noise = gradient_covariance(problem, problem.params["theta"].numpy())
    values, vectors = np.linalg.eigh(drift)
    basis = vectors[:, values > 1e-10 * values[-1]]
    stationary = linalg.solve_continuous_lyapunov(basis.T @ drift @ basis, lr / 2 * basis.T @ noise @ basis)
    law = list(FROZEN.evolve(sgdsde.linearize(problem), sgdsde.SGD(lr, 2), (0, 5000)))[1]
    assert_covariance(law, problem, basis @ stationary @ basis.T)


def test_schedules_compose() -> None:
    """A change of lr or B starts from the covariance so far: S' = exp(-D dt) S exp(-D dt) + the new stretch."""
    problem = BY_NAME["two outputs, null space"].problem()
    sgd = sgdsde.SGD(lambda step: 0.3 if step < 4 else 0.1, lambda step: 1 if step < 6 else 3)
    drift, _ = weight_drift(problem)
    stretches = [(4 * 0.3, 0.3 / 1), (2 * 0.1, 0.1 / 1), (4 * 0.1, 0.1 / 3)]
    covariance = np.zeros_like(drift)
    for duration, factor in stretches:
        decay = linalg.expm(-drift * duration)
        covariance = decay @ covariance @ decay.T + weight_covariance(problem, duration, factor)
    law = list(FROZEN.evolve(sgdsde.linearize(problem), sgd, (0, 3, 10)))[2]
    assert law.time == pytest.approx(1.8)
    assert_covariance(law, problem, covariance)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_its_mean_is_gradient_flow(case: Case) -> None:
    linearization, sgd = sgdsde.linearize(case.problem()), sgdsde.SGD(0.2, 2)
    pairs = zip(*(dynamics.evolve(linearization, sgd, (0, 1, 30)) for dynamics in (FROZEN, GradientFlow())))
    for law, flow in pairs:
        torch.testing.assert_close(law.mean, flow.mean, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(law.test_mean, flow.test_mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("wrong", [{"batch_size": 2}, {"lr": 0.1}, {"sampling": "without_replacement"}], ids=str)
def test_the_comparison_notices_a_wrong_factor(wrong: dict) -> None:
    problem = BY_NAME["two outputs"].problem()
    sgd = sgdsde.SGD(**{"lr": 0.2, "batch_size": 3, **wrong})
    law = list(FROZEN.evolve(sgdsde.linearize(problem), sgd, (0, 6)))[1]
    with pytest.raises(AssertionError):
        assert_covariance(law, problem, weight_covariance(problem, 1.2, 0.2 / 3))
