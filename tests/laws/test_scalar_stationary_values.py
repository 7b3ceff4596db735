"""Claim: the stationary spread of one weight has the closed forms of docs/derivations.md, to six digits.

``nn.MSELoss`` with one output is the mean of (w x - y)^2, twice the textbook loss with 1/2: lr is half of eta below.
"""

from __future__ import annotations

import math

import pytest
import torch

import sgdsde
from sgdsde.dynamics import Dynamics, MomentRecursion, OrnsteinUhlenbeck
from tests.problems import linear_problem

TINY_X, TINY_Y, TINY_OPTIMUM = (1.0, 2.0, -1.0), (1.0, 1.0, 0.0), 0.5


def line(x: tuple[float, ...], y: tuple[float, ...], start: float) -> sgdsde.Problem:
    """f = w x with one weight, and x = 1 as the test set: its output is the weight itself."""
    return linear_problem([[[v]] for v in (*x, 1.0)], [[v] for v in (*y, 0.0)], [start], n_train=len(x))


def weight_variance(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, dynamics: Dynamics) -> float:
    """Of the weight after many steps, by the only test example x = 1; the mean must have settled."""
    predicted = sgdsde.predict(problem, sgd, n_steps, dynamics=dynamics, record=[0, n_steps], observe=("outputs",))
    return float(predicted.test_outputs.std[-1].square())


@pytest.mark.parametrize(("eta", "batch_size", "sampling", "q"), [
    (0.1, 1, "with_replacement", 1.0),
    (0.3, 1, "without_replacement", 1.0),
    (0.3, 2, "with_replacement", 0.5),
    (0.3, 2, "without_replacement", 0.25),
    (0.4, 3, "with_replacement", 1 / 3),
])  # fmt: skip
def test_sgd_on_three_points(eta: float, batch_size: int, sampling: str, q: float) -> None:
    sgd = sgdsde.SGD(eta / 2, batch_size, sampling=sampling)
    variance = weight_variance(line(TINY_X, TINY_Y, 2.0), sgd, 1000, MomentRecursion())
    assert variance == pytest.approx(eta * q / (6 * (4 - 4 * eta - 2 * eta * q)), rel=1e-6)


def test_sgd_on_three_points_in_digits() -> None:
    variance = weight_variance(line(TINY_X, TINY_Y, 2.0), sgdsde.SGD(0.05, 1), 1000, MomentRecursion())
    assert f"{variance:.8f}" == "0.00490196"


def test_the_sde_and_the_frozen_noise_are_other_numbers() -> None:
    """A test that took one for the other would notice: at eta = 0.1 they differ by 12 and by 18 %."""
    variance = weight_variance(line(TINY_X, TINY_Y, 2.0), sgdsde.SGD(0.05, 1), 1000, MomentRecursion())
    for other in (0.00438596, 0.00416667):
        assert variance != pytest.approx(other, rel=0.1)


def test_ornstein_uhlenbeck_started_at_the_optimum() -> None:
    """Frozen there, eta q / 24 = 0.00416667."""
    problem, sgd = line(TINY_X, TINY_Y, TINY_OPTIMUM), sgdsde.SGD(0.05, 1)
    variance = weight_variance(problem, sgd, 1000, OrnsteinUhlenbeck(freeze="init"))
    assert variance == pytest.approx(0.1 / 24, rel=1e-9)


@pytest.mark.parametrize("n_steps", [0, 1, 7, 100])
def test_ornstein_uhlenbeck_frozen_at_the_start(n_steps: int) -> None:
    """Var w(t) = eta q Sigma(w_0) (1 - exp(-2 h t)) / (2 h), h = mean x^2 = 2, Sigma the spread of x (x w_0 - y)."""
    eta, start, q = 0.1, 2.0, 0.25
    gradients = torch.tensor([x * (x * start - y) for x, y in zip(TINY_X, TINY_Y)], dtype=torch.float64)
    sigma = float(gradients.var(correction=0))
    sgd = sgdsde.SGD(eta / 2, 2, sampling="without_replacement")
    variance = weight_variance(line(TINY_X, TINY_Y, start), sgd, n_steps, OrnsteinUhlenbeck(freeze="init"))
    closed = eta * q * sigma * -math.expm1(-4 * eta * n_steps) / 4
    assert variance == pytest.approx(closed, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(("words", "digits"), [
    ({"momentum": 0.9}, "0.40765242"),
    ({"momentum": 0.9, "dampening": 0.3}, "0.27267602"),
    ({"momentum": 0.9, "nesterov": True}, "0.16956747"),
], ids=str)  # fmt: skip
def test_momentum_under_constant_noise(words: dict, digits: str) -> None:
    """Curvature 1.7, gradient noise 0.4, lr 0.3. Label noise on the only example is noise that does not depend on w:
    h = 2 x^2 and C = 4 x^2 v."""
    x, noise = math.sqrt(1.7 / 2), math.sqrt(0.4 / (4 * 1.7 / 2))
    sgd = sgdsde.SGD(0.3, 1, sampling="without_replacement", label_noise_std=noise, **words)
    variance = weight_variance(line((x,), (0.7,), 0.7 / x), sgd, 3000, MomentRecursion())
    assert f"{variance:.8f}" == digits


def test_momentum_in_closed_form() -> None:
    """l C / (h (1 - beta) (2 - l h / (1 + beta))) for other numbers than the stored ones."""
    rate, beta, v, x = 0.2, 0.5, 0.3, 1.1
    h, c = 2 * x**2, 4 * x**2 * v
    sgd = sgdsde.SGD(rate, 1, sampling="without_replacement", label_noise_std=v**0.5, momentum=beta)
    variance = weight_variance(line((x,), (0.4,), 0.0), sgd, 1000, MomentRecursion())
    assert variance == pytest.approx(rate * c / (h * (1 - beta) * (2 - rate * h / (1 + beta))), rel=1e-10)


def test_regression_through_the_origin_with_label_noise() -> None:
    """E u^2 = eta v / (2 - eta E x^4 / E x^2), B = 1, on a fixed data set; 3 takes the place of the ratio of moments
    for streaming normal features."""
    x = (1.0, -0.5, 2.0, 0.3, -1.2)
    eta, v = 0.2, 0.25
    second, fourth = (sum(value**power for value in x) / len(x) for power in (2, 4))
    sgd = sgdsde.SGD(eta / 2, 1, label_noise_std=v**0.5)
    problem = line(x, tuple(0.6 * value for value in x), 0.0)
    variance = weight_variance(problem, sgd, 1000, MomentRecursion())
    assert variance == pytest.approx(eta * v / (2 - eta * fourth / second), rel=1e-10)
    assert variance != pytest.approx(eta * v / (2 - 3 * eta), rel=0.02)


def test_weight_decay_moves_the_level() -> None:
    """Full batch: the weight settles at E xy / (E x^2 + wd / 2), with no spread."""
    sgd = sgdsde.SGD(0.1, 3, sampling="without_replacement", weight_decay=0.5)
    predicted = sgdsde.predict(line(TINY_X, TINY_Y, 2.0), sgd, 500, record=[0, 500], observe=("outputs",))
    assert float(predicted.test_outputs.mean[-1]) == pytest.approx(1.0 / (2.0 + 0.25), rel=1e-10)
    assert float(predicted.test_outputs.std[-1]) == 0.0
