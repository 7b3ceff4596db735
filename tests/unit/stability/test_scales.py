"""The fastest learning rate, the critical batch size, the gradient noise scale: against their definitions."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.stability import (
    critical_batch_size,
    fastest_lr,
    gradient_noise_scale,
    max_lr,
    max_lr_full_batch,
    mean_square_radius,
    sufficient_lr,
)
from tests.problems import (
    BY_NAME,
    LARGER,
    Case,
    classification_problem,
    conv_problem,
    digits_problem,
    linear_problem,
    mlp_problem,
)


@pytest.mark.parametrize(("case", "words"), [
    ("one output", {}), ("one output", {"momentum": 0.6}), ("two outputs, null space", {}),
    ("one output, null space", {"momentum": 0.6, "nesterov": True}),
], ids=str)  # fmt: skip
def test_no_other_learning_rate_is_faster(case: str, words: dict) -> None:
    linearization = sgdsde.linearize(BY_NAME[case].problem())
    limit, best = max_lr(linearization, 2, **words), fastest_lr(linearization, 2, **words)
    assert 0 < best < limit

    def radius(lr: float) -> float:
        return mean_square_radius(linearization, sgdsde.SGD(lr, 2, **words))

    least = radius(best)
    assert least < 1
    assert all(radius(f * best) > least for f in (0.9, 0.95, 1.05, 1.1) if f * best < limit)
    everywhere = [radius(f * limit) for f in np.linspace(0.04, 1, 25)]
    assert np.log(least) < np.log(min(everywhere)) * (1 - 1e-4)


def test_the_fastest_step_of_gradient_descent_is_the_textbook_one() -> None:
    """B = n without replacement: 2 / (h_min + h_max)."""
    problem = BY_NAME["one output"].problem()
    linearization = sgdsde.linearize(problem)
    drift = 2 * linearization.eigenbasis.values / problem.n_train
    best = fastest_lr(linearization, 4, sampling="without_replacement")
    assert best == pytest.approx(float(2 / (drift.min() + drift.max())), rel=2e-3)


@pytest.mark.parametrize("problem", [LARGER.problem(), digits_problem(16)], ids=["two", "digits"])
def test_at_the_critical_batch_noise_halves_the_limit(problem: sgdsde.Problem) -> None:
    linearization = sgdsde.linearize(problem)
    critical, half = critical_batch_size(linearization), max_lr_full_batch(linearization) / 2
    low, high = int(np.floor(critical)), int(np.ceil(critical))
    assert low >= 1
    assert max_lr(linearization, low) <= half <= max_lr(linearization, high)
    whole = [max_lr(linearization, b) for b in (1, 2, 4 * high, 8 * high)]
    if critical > 4:
        assert whole[1] / whole[0] > 1.6, "far below, twice the batch allows nearly twice the step"
    assert whole[3] / whole[2] < 1.2, "far above, it buys nearly nothing"


def test_the_critical_batch_size_of_one_weight_in_closed_form() -> None:
    """One weight, inputs x: the limit at phi/B = q is 2 h / (h^2 + q (mean g^2 - h^2)), g = 2 x^2, h its mean."""
    x = np.array([1.0, 2.0, -1.0, 0.5])
    problem = linear_problem(x[:, None, None], np.ones((4, 1)), [0.0])
    curvature = 2 * x**2
    h, spread = curvature.mean(), curvature.var()
    assert critical_batch_size(problem) == pytest.approx(spread / h**2, rel=1e-6)
    assert max_lr(problem, 3) == pytest.approx(2 * h / (h**2 + spread / 3), rel=1e-8)
    assert sufficient_lr(sgdsde.linearize(problem), 3) <= max_lr(problem, 3)


def test_equal_examples_need_no_batch() -> None:
    problem = linear_problem(np.ones((4, 1, 1)), np.arange(4.0)[:, None], [0.3])
    assert critical_batch_size(problem) < 1e-3


@pytest.mark.parametrize("problem", [
    mlp_problem(), conv_problem(), classification_problem(), classification_problem(label_smoothing=0.1),
    Case("three outputs", 5, 3, 4).problem(),
], ids=["squared error", "convolution", "cross-entropy", "label smoothing", "linear"])  # fmt: skip
def test_the_noise_scale_is_that_of_per_example_gradients(problem: sgdsde.Problem) -> None:
    gradients = per_example_gradients(problem)
    mean = gradients.mean(0)
    expected = float((gradients - mean).square().sum(1).mean() / mean.square().sum())
    assert gradient_noise_scale(problem) == pytest.approx(expected, rel=1e-9)
    assert gradient_noise_scale(sgdsde.linearize(problem)) == pytest.approx(expected, rel=1e-9)
    unbiased = expected * len(gradients) / (len(gradients) - 1)
    assert gradient_noise_scale(problem) != pytest.approx(unbiased, rel=1e-3), "the divisor is n"


def per_example_gradients(problem: sgdsde.Problem) -> torch.Tensor:
    """One backward pass an example, [n, p]."""
    rows = []
    for i in range(problem.n_train):
        if isinstance(problem.model, torch.nn.Module):
            model = copy.deepcopy(problem.model)
            problem.loss(model(problem.x_train[i : i + 1]), problem.y_train[i : i + 1]).backward()
            rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        else:
            theta = problem.params["theta"].clone().requires_grad_()
            problem.loss(problem.x_train[i : i + 1] @ theta, problem.y_train[i : i + 1]).backward()
            rows.append(theta.grad)
    return torch.stack(rows)


def test_the_noise_scale_of_equal_gradients_is_zero() -> None:
    problem = linear_problem(np.ones((3, 1, 2)), np.ones((3, 1)), [0.5, 0.2])
    assert gradient_noise_scale(problem) == pytest.approx(0, abs=1e-12)
