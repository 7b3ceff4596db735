"""The path of the mean is full-batch training, and the drift along it that of plainly made kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath, kernel_drift
from tests.problems import LINEAR


def network(n_outputs: int = 2) -> sgdsde.Problem:
    data = sgdsde.datasets.synthetic(10, 3, 5, n_outputs, teacher="mlp", seed=3, dtype=torch.float64)
    model = sgdsde.networks.MLP(5, 6, n_outputs, activation="tanh", generator=torch.Generator().manual_seed(1)).double()
    return sgdsde.Problem(model, **data.tensors(), loss=nn.MSELoss())


def trained(problem: sgdsde.Problem, n_steps: int, **words: object) -> nn.Module:
    """Plain torch, the whole set at each step."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), **words)
    for _ in range(n_steps):
        optimizer.zero_grad()
        problem.loss(model(problem.x_train), problem.y_train).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8, "nesterov": True}, {"momentum": 0.8, "weight_decay": 0.1}])
def test_the_path_is_that_of_torch(words):
    problem, sgd = network(), sgdsde.SGD(0.3, 10, sampling="without_replacement", **words)
    path = MeanPath.start(problem, sgd, sgd.plan(10, 7))
    for k in range(7):
        path = path.advanced(k)
    for name, value in trained(problem, 7, lr=0.3, **words).named_parameters():
        torch.testing.assert_close(path.params[name], value.detach(), rtol=1e-12, atol=1e-13)


def test_a_correction_joins_the_gradient():
    problem, sgd = network(), sgdsde.SGD(0.3, 10)
    path = MeanPath.start(problem, sgd, sgd.plan(10, 1))
    pushed = path.advanced(0, correction={name: torch.ones_like(value) for name, value in path.params.items()})
    for name, value in path.advanced(0).params.items():
        torch.testing.assert_close(pushed.params[name], value - 0.3)


def test_the_drift_is_that_of_plainly_made_kernels():
    problem, sgd = network(), sgdsde.SGD(0.3, 10)
    drift = kernel_drift(problem, sgd, 9, record=[0, 4, 9])
    initial = sgdsde.empirical_ntk(problem.model, problem.x_train)
    for position, k in enumerate(drift.steps.tolist()):
        kernel = sgdsde.empirical_ntk(trained(problem, k, lr=0.3), problem.x_train)
        expected = torch.linalg.norm(kernel - initial) / torch.linalg.norm(initial)
        torch.testing.assert_close(drift.values[position], expected, rtol=1e-10, atol=1e-12)
    assert drift.largest > 0.05
    assert drift.n_examples == 10


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_the_kernel_of_a_linear_model_stays(case):
    drift = kernel_drift(case.problem(), sgdsde.SGD(1e-3, 2, momentum=0.5), 5)
    assert drift.steps[0] == 0
    assert drift.steps[-1] == 5
    assert drift.largest < 1e-12


def test_some_examples_stand_for_all():
    problem, sgd = network(), sgdsde.SGD(0.3, 10)
    some, every = (kernel_drift(problem, sgd, 9, most_outputs=most) for most in (10, 512))
    assert (some.n_examples, every.n_examples) == (5, 10)
    assert abs(some.largest / every.largest - 1) < 0.5


def test_a_path_that_diverges_is_an_error():
    with pytest.raises(ValueError, match="mean path of the network must stay finite, got NaN or infinity at step"):
        kernel_drift(network(), sgdsde.SGD(1e4, 10), 200)
