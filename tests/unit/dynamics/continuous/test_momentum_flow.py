"""The equation with momentum: a dampened first step, and a tolerance that knows the scale of the problem."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.dynamics import GradientDescent, MomentEquations
from sgdsde.dynamics.continuous import momentum_flow
from tests.problems import BY_NAME
from tests.settings import chosen

CASE = BY_NAME["two outputs, null space"]


@pytest.mark.parametrize("words", chosen("momentum, dampening", "momentum, dampening, decay").values(), ids=str)
def test_without_noise_the_flow_of_second_order_passes_through_the_steps(words):
    """Its flow of one step is the step itself, the first one included, which torch does not dampen."""
    linearization = sgdsde.linearize(CASE.problem())
    sgd = sgdsde.SGD(0.02, 4, sampling="without_replacement", **words)
    record = [0, 1, 2, 3, 10]
    flow, steps = (
        list(dynamics.evolve(linearization, sgd, record))
        for dynamics in (MomentEquations(rtol=1e-10), GradientDescent())
    )
    for one, other in zip(flow, steps):
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-8, atol=1e-9)


def scaled_problem(scale: float) -> sgdsde.Problem:
    """All outputs and targets of the case times ``scale``, with its kernel."""
    problem = CASE.problem()
    params = {name: scale * value for name, value in problem.params.items()}
    test = {"x_test": problem.x_test, "y_test": scale * problem.y_test}
    return sgdsde.Problem(
        (problem.model[0], params), problem.x_train, scale * problem.y_train, loss=nn.MSELoss(), **test
    )


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_neither_numbers_nor_work_depend_on_the_units_of_the_outputs(scale, monkeypatch):
    """Losses go with the square of a factor of outputs and targets; so does what the tolerance allows."""
    found, counts = [], []
    for factor in (1.0, scale):
        count: list[int] = []
        original = momentum_flow.StepNoise.__call__
        with monkeypatch.context() as patch:
            patch.setattr(
                momentum_flow.StepNoise, "__call__", lambda *args, c=count, o=original: c.append(1) or o(*args)
            )
            (law,) = MomentEquations().evolve(
                sgdsde.linearize(scaled_problem(factor)), sgdsde.SGD(0.02, 2, momentum=0.5), [40]
            )
        found.append((law.mean / factor, law.covariance.to_dense() / factor**2))
        counts.append(len(count))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))
    assert counts[1] < 1.2 * counts[0]
