"""What ``expected_cost`` counts and refuses; ``benchmarks/bench_reduced.py`` measures whether the seconds are right."""

from __future__ import annotations

import pytest
from torch import nn

import sgdsde
from sgdsde.dynamics import MomentEquations, MomentRecursion, ReducedMoments
from tests.problems import digits_problem


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    return digits_problem(48, n_test=8)


SGD = sgdsde.SGD(0.1, 4)


def stage(cost: sgdsde.ExpectedCost, name: str) -> float:
    (found,) = (one.seconds for one in cost.stages if one.name == name)
    return found


def test_stages_add_up_and_are_told_in_real_runs(problem):
    cost = sgdsde.expected_cost(problem, SGD, 500, dynamics=MomentRecursion())
    names = [one.name for one in cost.stages]
    assert names == ["kernel", "eigenbasis", "checks", "stability limit", "moment recursion"]
    assert cost.seconds == pytest.approx(sum(one.seconds for one in cost.stages))
    assert cost.bytes == max(one.bytes for one in cost.stages)
    assert cost.run_seconds is not None
    assert cost.real_runs == pytest.approx(cost.seconds / cost.run_seconds)
    assert "real training runs" in str(cost)


def test_the_recursion_grows_with_the_horizon_and_the_reduced_model_does_not(problem):
    linearization = sgdsde.linearize(problem)
    short, long = (sgdsde.expected_cost(linearization, SGD, k, dynamics=MomentRecursion()) for k in (10**4, 10**6))
    assert 50 < stage(long, "moment recursion") / stage(short, "moment recursion") < 200
    short, long = (sgdsde.expected_cost(linearization, SGD, k, dynamics=ReducedMoments()) for k in (10**4, 10**6))
    assert 0.3 < stage(long, "reduced model") / stage(short, "reduced model") < 3


def test_what_was_made_before_costs_nothing_again(problem):
    linearization = sgdsde.linearize(problem)
    assert next(one.name for one in sgdsde.expected_cost(linearization, SGD, 10).stages) == "eigenbasis"
    assert linearization.eigenbasis.values.numel() > 0
    cost = sgdsde.expected_cost(linearization, SGD, 10)
    assert next(one.name for one in cost.stages) == "checks"
    assert cost.real_runs is None


def test_the_default_is_that_of_predict(problem):
    linearization = sgdsde.linearize(problem)
    for n_steps in (20, 10**5):
        expected = sgdsde.expected_cost(linearization, SGD, n_steps).dynamics
        assert sgdsde.predict(linearization, SGD, n_steps).dynamics.split("(")[0] == expected.split("(")[0]


def test_a_cost_that_is_not_known_beforehand_is_refused(problem):
    with pytest.raises(ValueError, match="whose cost is known beforehand"):
        sgdsde.expected_cost(problem, SGD, 10, dynamics=MomentEquations())
    with pytest.raises(TypeError, match="problem must be a Problem"):
        sgdsde.expected_cost(nn.Linear(1, 1), SGD, 10)
