"""The numbers of a diagnosis that come from some of the examples, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.diagnosis import indicators
from sgdsde.diagnosis.sample import Sample
from tests.problems import classification_problem, digits_problem, mlp_problem


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "shuffled"])
@pytest.mark.parametrize("words", [{}, {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}])
def test_the_limit_is_that_of_the_whole_set_where_all_of_it_is_looked_at(words, sampling) -> None:
    problem = mlp_problem()
    fresh = "without_replacement" if sampling == "shuffled" else sampling
    limit = sgdsde.stability.max_lr(problem, 3, sampling=fresh, **words)
    sgd = sgdsde.SGD(0.25 * limit, 3, sampling=sampling, **words)
    assert Sample.of(problem).limit_ratio(sgd, 5) == pytest.approx(0.25, rel=0.02)


def test_the_limit_of_a_schedule_is_that_of_its_worst_step() -> None:
    linearization = sgdsde.linearize(digits_problem(24, width=64))
    limit = sgdsde.stability.max_lr(linearization, 2)
    schedule = sgdsde.SGD(lambda k: 0.5 * limit / (k + 1), lambda k: 2 + k)
    assert Sample.of(linearization.problem).limit_ratio(schedule, 10) == pytest.approx(0.5, rel=0.02)


def test_few_examples_stand_for_all(monkeypatch) -> None:
    """Of many alike the gradients' moments are the same in the mean; the sample is no larger than it may be."""
    problem = digits_problem(48, width=32)
    whole = Sample.of(problem)
    monkeypatch.setattr("sgdsde.diagnosis.sample.OUTPUTS", 12)
    few = Sample.of(problem)
    assert len(few.kernel) == 12
    assert few.gradients[0] == pytest.approx(whole.gradients[0], rel=0.5)
    assert torch.equal(few.kernel.diagonal()[0], whole.kernel.diagonal()[0])


def test_laziness_is_the_curvature_of_the_outputs_along_the_first_step() -> None:
    """Twin: finite differences along J^T r."""
    problem = mlp_problem()
    linearization = sgdsde.linearize(problem)
    residual = linearization.outputs - problem.y_train
    leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    value = (problem.forward(leaves, problem.x_train) * residual).sum()
    direction = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()))))
    length = math.sqrt(sum(float(part.square().sum()) for part in direction.values()))

    def at(h: float) -> torch.Tensor:
        moved = {name: part + h * direction[name] / length for name, part in problem.params.items()}
        return problem.forward(moved, problem.x_train)

    h = 1e-3
    slope, bend = (at(h) - at(-h)) / (2 * h), (at(h) - 2 * at(0.0) + at(-h)) / h**2
    expected = float(residual.norm() * bend.norm() / slope.norm() ** 2)
    assert indicators.laziness(linearization) == pytest.approx(expected, rel=1e-4)


def test_laziness_falls_as_one_over_the_scale_of_centered_outputs() -> None:
    """alpha (f - f_0): f_0 = 0, so |f_0 - y| stays, D^2 f grows like alpha, |D f|^2 like its square."""
    base = mlp_problem()
    start = {name: value.clone() for name, value in base.params.items()}
    values = []
    for alpha in (1.0, 4.0, 16.0):

        def centered(params, x, alpha=alpha):
            return alpha * (base.forward(params, x) - base.forward(start, x))

        problem = sgdsde.Problem((centered, start), base.x_train, base.y_train, loss=nn.MSELoss())
        values.append(indicators.laziness(sgdsde.linearize(problem)))
    assert values[0] / values[1] == pytest.approx(4, rel=1e-9)
    assert values[1] / values[2] == pytest.approx(4, rel=1e-9)


def test_the_noise_ratio_is_variance_over_squared_mean() -> None:
    """From one backward pass an example; phi for batches without replacement."""
    problem = mlp_problem()
    n, each = problem.n_train, []
    for i in range(n):
        leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
        loss = problem.loss(problem.forward(leaves, problem.x_train[i : i + 1]), problem.y_train[i : i + 1])
        each.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(leaves.values()))]))
    gradients = torch.stack(each)
    variance = float((gradients - gradients.mean(0)).square().sum() / n)
    squared = float(gradients.mean(0).square().sum())
    sample = Sample.of(problem)
    for sampling, phi in (("with_replacement", 1.0), ("without_replacement", (n - 3) / (n - 1))):
        ratio = sample.noise_ratio(sgdsde.SGD(0.1, 3, sampling=sampling))
        assert ratio == pytest.approx(phi * variance / (3 * squared), rel=1e-9)
    assert sample.noise_ratio(sgdsde.SGD(0.1, n, sampling="without_replacement")) == 0


@pytest.mark.parametrize("problem", [mlp_problem, classification_problem])
def test_the_sde_errs_by_half_of_lr_times_the_top_curvature(problem) -> None:
    linearization = sgdsde.linearize(problem())
    one = linearization.problem
    blocks = one.criterion.hessian(linearization.outputs, linearization.targets)
    dense = linearization.kernel @ torch.block_diag(*blocks) / one.n_train
    top = float(torch.linalg.eigvals(dense).real.max())
    assert indicators.sde_error(linearization, sgdsde.SGD(0.1, 3), 5) == pytest.approx(0.1 * top / 2, rel=1e-3)
    assert math.isnan(indicators.sde_error(linearization, sgdsde.SGD(0.1, 3, sampling="shuffled"), 5))
