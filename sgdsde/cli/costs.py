"""``--dry-run``: what a command would cost, by stage, without computing it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import sgdsde
from sgdsde._progress import StageCost
from sgdsde.cost import ExpectedCost, chosen_dynamics, foreseen_cost, kernel_cost
from sgdsde.diagnosis import diagnosis_cost as cost_of_diagnosis
from sgdsde.dynamics import Dynamics
from sgdsde.evolution_cost import Course, evolution_cost
from sgdsde.machine import Machine, spectrum_cost
from sgdsde.measurement import plain_seconds
from sgdsde.recording import recorded_steps


def forecast_cost(
    problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, dynamics: Dynamics | None, n_runs: int = 0
) -> ExpectedCost:
    """Of ``predict``, and with runs of ``compare``."""
    cost = foreseen_cost(problem, sgd, n_steps, dynamics=dynamics)
    if not n_runs:
        return cost
    assert cost.run_seconds is not None
    runs = StageCost(f"{n_runs} runs, at most", n_runs * cost.run_seconds, 5 * n_runs * _bytes_of(problem))
    return dataclasses.replace(cost, stages=(*cost.stages, runs))


def diagnosis_cost(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int) -> ExpectedCost:
    """Of ``diagnose``."""
    return ExpectedCost("diagnosis", (cost_of_diagnosis(problem, sgd, n_steps),), plain_seconds(problem, sgd, n_steps))


def sweep_cost(
    problem: sgdsde.Problem, settings: Sequence[sgdsde.SGD], n_rates: int, n_steps: int, dynamics: Dynamics | None
) -> ExpectedCost:
    """Of a sweep: one kernel and its eigenbasis, a limit for each batch size, a prediction for each cell."""
    first, steps = foreseen_cost(problem, settings[0], n_steps, dynamics=dynamics), recorded_steps(n_steps)
    limit, cell = first.stages[-2:]
    n_limits, cells, seconds = len(settings), n_rates * len(settings), 0.0
    for course in (Course.of(problem, sgd, steps) for sgd in settings):
        seconds += n_rates * evolution_cost(dynamics or chosen_dynamics(course), course, Machine.measured()).seconds
    stages = (
        *first.stages[:-2],
        dataclasses.replace(limit, name=f"{n_limits} stability limits", seconds=n_limits * limit.seconds),
        dataclasses.replace(cell, name=f"{cells} predictions", seconds=seconds),
    )
    return dataclasses.replace(first, dynamics=f"sweep of {cells} settings", stages=stages)


def exploration_cost(
    problem: sgdsde.Problem, first: sgdsde.SGD, coarse: Sequence[sgdsde.SGD], n_limits: int, n_steps: int
) -> ExpectedCost:
    """Of the explorer's page: limits, one basis for independent batches, and the settings that have none."""
    cost, steps = foreseen_cost(problem, first, n_steps), recorded_steps(n_steps)
    machine, seconds = Machine.measured(), 0.0
    for course in (Course.of(problem, sgd, steps) for sgd in coarse):
        seconds += evolution_cost(chosen_dynamics(course), course, machine).seconds
    limit, basis = cost.stages[-2:]
    stages = (
        *cost.stages[:-2],
        dataclasses.replace(limit, name=f"{n_limits} stability limits", seconds=n_limits * limit.seconds),
        dataclasses.replace(basis, name="independent batches", at_least=True),
        dataclasses.replace(basis, name=f"{len(coarse)} other settings, at most", seconds=seconds),
    )
    return dataclasses.replace(cost, dynamics="explorer", stages=stages)


def kernel_command_cost(problem: sgdsde.Problem) -> ExpectedCost:
    """Of ``ntk``."""
    d = problem.n_train * problem.n_outputs
    return ExpectedCost(
        "kernel", (kernel_cost(problem), spectrum_cost(d), spectrum_cost(d, "stability limit", 0.4)), None
    )


def pruning_cost(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, n_masks: int, rounds: int) -> ExpectedCost:
    """Of ``prune``: rounds of scores, and the prediction of every pruned network and of the dense one."""
    one = foreseen_cost(problem, sgd, n_steps)
    assert one.run_seconds is not None
    network = n_masks + 1
    scores = StageCost(f"{rounds} rounds of scores", rounds * one.run_seconds / n_steps, 4 * _bytes_of(problem))
    stages = [dataclasses.replace(stage, seconds=network * stage.seconds, at_least=True) for stage in one.stages]
    return ExpectedCost(f"ranking of {network} networks", (scores, *stages), one.run_seconds)


def _bytes_of(problem: sgdsde.Problem) -> int:
    return sum(value.numel() * value.element_size() for value in problem.params.values())
