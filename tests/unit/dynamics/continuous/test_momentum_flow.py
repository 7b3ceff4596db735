"""The equation with momentum: a dampened first step, and a tolerance that knows the scale of the problem."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

import sgdsde
from sgdsde.dynamics import GradientDescent, MomentEquations
from sgdsde.dynamics.continuous import momentum_flow
from tests.epochs import step_map
from tests.oracles import features
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
        torch.testing.assert_close(one.test_mean, other.test_mean, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("words", chosen("momentum", "nesterov, decay", "momentum, dampening, decay").values(), ids=str)
def test_the_mean_of_first_order_is_the_flow_whose_euler_steps_are_those_of_torch(words):
    """dz/dk = (A - 1) z for the map A of one step on the whole batch, in the space of weights and buffer; by expm."""
    problem = CASE.problem()
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(lambda k: 0.03 if k < 4 else 0.01, 4, sampling="without_replacement", **words)
    rows, p = np.concatenate(features(problem)), CASE.n_weights
    state = np.concatenate([problem.params["theta"].numpy(), np.zeros(p), [1.0]])
    edges = ([0, 1] if sgd.dampening else [0]) + [4, 20]
    exact = {0: state}
    for start, stop in itertools.pairwise(edges):
        generator = step_map(problem, sgd, start, (0, 1, 2, 3)) - np.eye(2 * p + 1)
        for k in range(start, stop + 1):
            exact[k] = linalg.expm(generator * (k - start)) @ state
        state = exact[stop]
    for law in MomentEquations(1, rtol=1e-10).evolve(linearization, sgd, [0, 1, 3, 4, 20]):
        expected = torch.from_numpy(rows @ exact[law.step][:p]).view(-1, CASE.n_outputs)
        torch.testing.assert_close(torch.cat([law.mean, law.test_mean]), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("place", [0, 1, 7, 11, 17, 26])
def test_the_unit_of_a_component_is_the_largest_of_its_kind(place):
    """Of three modes: covariances in all three blocks, means of residual and buffer; the weights' share is 1."""
    r, state = 3, torch.full((3 * 9 + 6 + 2,), 1e-3, dtype=torch.float64)
    state[place], state[-2] = -50.0, 7.0
    units = momentum_flow._units(state, r)
    assert units.tolist() == [50.0] * 27 + [1e-3] * 6 + [1.0] * 2
    state[27 + place % 6] = -20.0
    assert momentum_flow._units(state, r).tolist() == [400.0] * 27 + [20.0] * 6 + [1.0] * 2
    assert momentum_flow._units(torch.zeros(35), r).tolist() == [1.0] * 35


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
