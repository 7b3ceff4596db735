"""Claim: at step 0 everything predicted and measured is the untrained network, with no spread."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from tests.problems import LINEAR, Case, classification_problem, conv_problem, mlp_problem

DYNAMICS = (GradientFlow(), GradientDescent(), MomentRecursion(), OrnsteinUhlenbeck(freeze="init"))
SGD = sgdsde.SGD(0.1, 2)


def assert_initial(trajectory: sgdsde.Trajectory, problem: sgdsde.Problem) -> None:
    assert trajectory.steps.tolist() == [0, 3]
    assert float(trajectory.times[0]) == 0.0
    for side, x, y in (("train", problem.x_train, problem.y_train), ("test", problem.x_test, problem.y_test)):
        outputs = problem.forward(problem.params, x)
        band = getattr(trajectory, f"{side}_loss")
        torch.testing.assert_close(band.mean[0], problem.loss(outputs, y), rtol=1e-13, atol=1e-14)
        assert float(band.std[0]) == 0.0
        seen = getattr(trajectory, f"{side}_outputs")
        torch.testing.assert_close(seen.mean[0], outputs, rtol=1e-13, atol=1e-14)
        assert bool((seen.std[0] == 0).all())


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=repr)
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_predicted(case: Case, dynamics: Dynamics) -> None:
    problem = case.problem()
    trajectory = sgdsde.predict(problem, SGD, 3, dynamics=dynamics, record=(0, 3), observe=("loss", "outputs"))
    assert_initial(trajectory, problem)


@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
@pytest.mark.parametrize("build", [mlp_problem, conv_problem, classification_problem])
def test_measured(build, linearized: bool) -> None:
    problem = build()
    source = sgdsde.linearize(problem) if linearized else problem
    trajectory = sgdsde.run_ensemble(source, SGD, 3, 4, record=(0, 3), observe=("loss", "outputs"))
    assert_initial(trajectory, problem)


def test_no_steps_at_all() -> None:
    problem = mlp_problem()
    for trajectory in (sgdsde.predict(problem, SGD, 0), sgdsde.run_ensemble(problem, SGD, 0, 2)):
        assert trajectory.steps.tolist() == [0]
        expected = problem.loss(problem.forward(problem.params, problem.x_train), problem.y_train)
        assert float(trajectory.train_loss.mean[0]) == pytest.approx(float(expected), rel=1e-13)


@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_the_first_step_of_a_network_is_that_of_its_linearization_to_second_order(build) -> None:
    """The same batches: the outputs differ by O(lr^2) after one step, so a tenth of lr gives a hundredth."""
    problem = build()
    linearization = sgdsde.linearize(problem)
    gaps = []
    for lr in (1e-2, 1e-3, 1e-4):
        sgd = sgdsde.SGD(lr, 3)
        runs = [
            sgdsde.run_ensemble(source, sgd, 1, 4, record=[1], observe=("outputs",))
            for source in (problem, linearization)
        ]
        gaps.append(float((runs[0].train_outputs.samples - runs[1].train_outputs.samples).abs().max()))
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(100, rel=0.02)
