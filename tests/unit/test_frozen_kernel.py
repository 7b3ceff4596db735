"""What a prediction says of the kernel that it keeps: measured on a short path, silent where nothing moves."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import SGD, dynamics
from sgdsde.frozen_kernel import FrozenKernelWarning, kernel_motion
from tests.problems import BY_NAME, classification_problem, seeded_module


def narrow(loss: nn.Module | None = None) -> sgdsde.Problem:
    """Torch's own initialization, width 32, where features are learned."""
    data = sgdsde.datasets.digits(n_train=64)
    model = seeded_module(lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)), 0)
    return sgdsde.Problem(model, data.x_train.flatten(1).double(), data.y_train.double(), loss=loss or nn.MSELoss())


def motion(problem: sgdsde.Problem, sgd: SGD, n_steps: int):
    linearization = sgdsde.linearize(problem)
    predicted = sgdsde.predict(linearization, sgd, n_steps, dynamics=dynamics.GradientDescent())
    return kernel_motion(linearization, sgd, predicted)


def test_the_path_is_gradient_descent_and_its_end_the_drift_of_plainly_made_kernels():
    problem, sgd = narrow(), SGD(0.01, 64)
    found = motion(problem, sgd, 24)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.24 / 4)  # a time of 0.24 in four steps, the fewest
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = problem.loss(model(problem.x_train), problem.y_train)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    losses.append(problem.loss(model(problem.x_train), problem.y_train).item())
    initial, final = (sgdsde.empirical_ntk(each, problem.x_train) for each in (problem.model, model))
    assert found.share == 1
    assert found.drift == pytest.approx(float((final - initial).norm() / initial.norm()), rel=1e-9)
    frozen = sgdsde.predict(
        sgdsde.linearize(problem), SGD(0.06, 64), 4, dynamics=dynamics.GradientDescent(), record=range(5)
    ).train_loss.mean
    expected = sgdsde.predict(
        sgdsde.linearize(problem), sgd, 24, dynamics=dynamics.GradientDescent(), record=[0, 6, 12, 18, 24]
    ).train_loss.mean
    gaps = (torch.tensor(losses) - frozen).abs() / expected
    assert found.gap == pytest.approx(float(gaps.max()), rel=0.02)  # the prediction is read between recorded steps


@pytest.mark.parametrize("case", BY_NAME.values(), ids=lambda case: case.name)
def test_a_linear_model_moves_nothing_and_nothing_is_said(case):
    problem, sgd = case.problem(), SGD(0.05, 2, momentum=0.5, weight_decay=0.01)
    found = motion(problem, sgd, 30)
    assert found.drift < 1e-12
    assert found.gap < 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgdsde.predict(problem, sgd, 30)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("words", [{}, {"momentum": 0.9}], ids=str)
def test_a_network_that_learns_features_is_predicted_with_a_warning(loss, words):
    problem, sgd = narrow(loss), SGD(0.1 * (1 - words.get("momentum", 0)), 8, **words)
    theory = None if isinstance(loss, nn.MSELoss) else dynamics.LinearizedSGD(8)
    with pytest.warns(
        FrozenKernelWarning, match=r"the kernel moves by [\d.]+ % .*MovingKernel\(\), or ask sgdsde.diagnose"
    ):
        sgdsde.predict(problem, sgd, 300, dynamics=theory)


def test_who_linearizes_or_moves_the_kernel_is_not_told():
    problem, sgd = narrow(), SGD(0.1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FrozenKernelWarning)
        sgdsde.predict(sgdsde.linearize(problem), sgd, 300)
        warnings.simplefilter("ignore", UserWarning)
        sgdsde.predict(problem, sgd, 5, dynamics=dynamics.MovingKernel(feedback=None))


def test_trajectory_and_comparison_name_what_is_assumed(tmp_path):
    problem, sgd = classification_problem(), SGD(0.01, 3, sampling="shuffled")
    predicted = sgdsde.predict(sgdsde.linearize(problem), sgd, 4)
    assert predicted.assumptions == ("the kernel stays that of the initial weights",)
    measured = sgdsde.run_ensemble(problem, sgd, 4, 4)
    assert measured.assumptions == ()
    said = " ".join(str(sgdsde.compare(predicted, measured)).split())
    assert "assumes that the kernel stays that of the initial weights" in said
    paths = sgdsde.predict(sgdsde.linearize(problem), SGD(0.01, 3), 4, dynamics=dynamics.SDEPaths(4))
    paths.save(tmp_path / "a.npz")
    assert sgdsde.Trajectory.load(tmp_path / "a.npz").assumptions == paths.assumptions
    assert "Gaussian noise with the covariance of a minibatch" in paths.assumptions
