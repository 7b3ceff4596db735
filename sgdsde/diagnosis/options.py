"""What can be done to know a mean loss: predict, interpolate or measure, each with its error and its cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgdsde.diagnosis import calibration
from sgdsde.diagnosis.expected_errors import ExpectedError
from sgdsde.diagnosis.pilot import Pilot
from sgdsde.diagnosis.result import Advice, Option
from sgdsde.dynamics import Dynamics, MomentRecursion, MovingKernel, ReducedMoments
from sgdsde.evolution_cost import Course, Size, evolution_seconds
from sgdsde.kernel import KernelPlan
from sgdsde.linearization import Linearization, problem_of
from sgdsde.machine import EVERYDAY, spectrum_cost
from sgdsde.prediction import default_dynamics
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.surface.anchors import ANCHOR_ERROR, FIRST, MOST, PLACES

FEWEST_RUNS = 4
"""Runs that tell a standard error at all."""

SURFACE_DRIFT, SURFACE_SPREAD = 0.6, 0.3
"""Kernel drift and spread of one run up to which response surfaces kept their standard errors."""

SURFACE_ERROR = ExpectedError(ANCHOR_ERROR, 0.0, 0.05)
"""Of such a surface: what its anchors aim at, and what all of twelve fits stayed below (docs/measuring.md)."""


@dataclass(frozen=True)
class Costs:
    """Plain runs that a prediction takes, and the length of the batched runs of a pilot.

    Attributes:
        frozen, moving: in plain runs, infinite where unknown.
    """

    frozen: float
    moving: float

    @classmethod
    def of(cls, given: Problem | Linearization, sgd: SGD, steps: list[int], run_seconds: float) -> Costs:
        """From operation counts: within a factor of two or three of this machine."""
        problem, course = problem_of(given), Course.of(given, sgd, steps)
        theory = default_dynamics(problem, sgd)
        made = 0.0
        if isinstance(given, Problem):
            made = _kernel_seconds(problem) + 1.4 * spectrum_cost(Size.of(given).d).seconds
        found = [evolution_seconds(each, course).seconds for each in (theory, MovingKernel())]
        if isinstance(theory, MomentRecursion) and not sgd.momentum and sgd.sampling != "shuffled":
            found[0] = min(found[0], evolution_seconds(ReducedMoments(), course).seconds)
        return cls(*[(made + seconds) / run_seconds for seconds in found])


def _kernel_seconds(problem: Problem) -> float:
    functional, x, c = problem.functional, problem.x_train, problem.n_outputs
    try:
        pairs = [(x, None)] + ([] if problem.x_test is None else [(problem.x_test, x)])
        plans = [KernelPlan.make(functional, functional.params, first, second, c) for first, second in pairs]
    except MemoryError:
        return math.inf
    return sum(plan.operations for plan in plans) / EVERYDAY.products


def options(
    problem: Problem,
    sgd: SGD,
    pilot: Pilot,
    errors: tuple[ExpectedError, ExpectedError],
    costs: Costs,
    *,
    tolerance: float,
    n_settings: int,
) -> list[Option]:
    """All options, the costs of ``n_settings`` settings like this one."""
    frozen, moving = errors
    theory: Dynamics = default_dynamics(problem, sgd)
    found = [
        _prediction(Advice.FROZEN_KERNEL, theory, frozen, costs.frozen * n_settings, pilot),
        _prediction(Advice.MOVING_KERNEL, MovingKernel(), moving, costs.moving * n_settings, pilot),
    ]
    runs = runs_for(pilot, tolerance)
    measured = ExpectedError(tolerance / 2, 0.0, tolerance)
    if n_settings > 1 and pilot.drift <= SURFACE_DRIFT and pilot.spread <= SURFACE_SPREAD:
        at_each = min(MOST, max(FIRST, math.ceil((pilot.spread / ANCHOR_ERROR) ** 2)))
        cost = len(PLACES) * batched_cost(pilot, at_each)
        found.append(Option(Advice.INTERPOLATE, None, len(PLACES) * at_each, SURFACE_ERROR, cost))
    found.append(Option(Advice.MEASURE, None, runs, measured, batched_cost(pilot, runs) * n_settings))
    return found


def advised(found: list[Option], tolerance: float) -> Option:
    """The cheapest whose error stays within the tolerance; measuring always does."""
    within = [each for each in found if each.error.high <= tolerance]
    return min(within, key=lambda option: option.cost)


def _prediction(advice: Advice, theory: Dynamics, error: ExpectedError, cost: float, pilot: Pilot) -> Option:
    same = runs_for(pilot, 2 * error.value) if 0 < error.value < math.inf else None
    return Option(advice, theory, None, error, cost, runs_of_same_accuracy=same)


def runs_for(pilot: Pilot, tolerance: float) -> int:
    """Runs whose mean is within the tolerance at two standard errors, at the worst step."""
    if not math.isfinite(pilot.spread):
        return FEWEST_RUNS
    return max(FEWEST_RUNS, math.ceil((2 * pilot.spread / tolerance) ** 2))


def batched_cost(pilot: Pilot, n_runs: int) -> float:
    """Plain runs that ``n_runs`` runs stepped together take, from the pilot's own batch."""
    known = len(pilot.real)
    power = calibration.BATCH_POWER if pilot.is_batched else calibration.LOOP_POWER
    if n_runs < known:
        power = min(power, 1.0)
    return pilot.batch_seconds / pilot.run_seconds * (n_runs / known) ** power
