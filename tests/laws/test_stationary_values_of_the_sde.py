"""Claim: on three points and one weight SGD, its SDE and the process frozen at the optimum settle at three different
spreads, eta q / (6 (4 - 4 eta - 2 eta q)), eta q / (6 (4 - 2 eta q)) and eta q / 24, each met to six digits by the
dynamics of that name. Loss (1/2n) sum (w x - y)^2, so ``nn.MSELoss`` takes lr = eta / 2.
"""

from __future__ import annotations

import pytest

import sgdsde
from sgdsde.dynamics import (
    Dynamics,
    EulerMaruyama,
    ExponentialEuler,
    MomentEquations,
    MomentRecursion,
    OrnsteinUhlenbeck,
    SDEPaths,
)
from tests.problems import linear_problem
from tests.statistics import assert_mean_is

ETA, N_STEPS = 0.1, 150
SGD_VALUE, SDE_VALUE, FROZEN_VALUE = "0.00490196", "0.00438596", "0.00416667"


def three_points(start: float) -> sgdsde.Linearization:
    """x = (1, 2, -1), y = (1, 1, 0), optimum w = 1/2; the test example x = 1 shows the weight itself."""
    return sgdsde.linearize(
        linear_problem([[[1.0]], [[2.0]], [[-1.0]], [[1.0]]], [[1.0], [1.0], [0.0], [0.0]], [start], n_train=3)
    )


def weight_variance(dynamics: Dynamics, sgd: sgdsde.SGD) -> float:
    (law,) = dynamics.evolve(three_points(2.0), sgd, [N_STEPS])
    assert float(law.test_mean) == pytest.approx(0.5, abs=1e-9)
    assert law.test_covariance is not None
    return float(law.test_covariance.trace)


@pytest.mark.parametrize(("dynamics", "digits"), [
    (MomentRecursion(), SGD_VALUE),
    (MomentEquations(1, rtol=1e-10), SDE_VALUE),
    (OrnsteinUhlenbeck(), FROZEN_VALUE),
], ids=repr)  # fmt: skip
def test_each_by_its_own_predictor(dynamics: Dynamics, digits: str) -> None:
    assert f"{weight_variance(dynamics, sgdsde.SGD(ETA / 2, 1)):.8f}" == digits


def test_frozen_at_the_optimum_by_lyapunov() -> None:
    law = OrnsteinUhlenbeck().stationary(three_points(2.0), sgdsde.SGD(ETA / 2, 1))
    assert f"{float(law.test_covariance.trace):.8f}" == FROZEN_VALUE
    assert float(law.test_mean) == pytest.approx(0.5, abs=1e-14)


@pytest.mark.parametrize(("eta", "batch_size", "sampling", "q"), [
    (0.3, 2, "with_replacement", 0.5),
    (0.3, 2, "without_replacement", 0.25),
    (0.4, 1, "without_replacement", 1.0),
])  # fmt: skip
def test_closed_forms(eta: float, batch_size: int, sampling: str, q: float) -> None:
    sgd = sgdsde.SGD(eta / 2, batch_size, sampling=sampling)
    variance = weight_variance(MomentEquations(1, rtol=1e-8), sgd)
    assert variance == pytest.approx(eta * q / (6 * (4 - 2 * eta * q)), rel=1e-6)
    assert weight_variance(OrnsteinUhlenbeck(), sgd) == pytest.approx(eta * q / 24, rel=1e-8)
    # Order 2 has the drift 2 + 2 eta in place of 2: what is left of the gap to SGD is of second order.
    second = eta * q / (6 * (4 + 4 * eta - 2 * eta * q))
    assert weight_variance(MomentEquations(2, rtol=1e-8), sgd) == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize(("integrator", "digits", "others"), [
    (EulerMaruyama(), SGD_VALUE, (SDE_VALUE, FROZEN_VALUE)),
    (ExponentialEuler(), SDE_VALUE, (SGD_VALUE, FROZEN_VALUE)),
], ids=repr)  # fmt: skip
def test_paths(integrator: EulerMaruyama | ExponentialEuler, digits: str, others: tuple[str, ...]) -> None:
    """60000 paths tell the three apart: their standard error is 0.6 %, the values are 5 and 11 % away."""
    (law,) = SDEPaths(60_000, integrator).evolve(three_points(0.5), sgdsde.SGD(ETA / 2, 1), [60])
    squared = (law.test_samples - 0.5).square()
    assert_mean_is(0 * squared[0] + float(digits), squared)
    for other in others:
        with pytest.raises(AssertionError):
            assert_mean_is(0 * squared[0] + float(other), squared, error_rate=0.01)
