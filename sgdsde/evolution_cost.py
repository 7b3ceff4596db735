"""Operations and bytes of each dynamics, in seconds of a machine: what an evolution will cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from sgdsde._progress import StageCost
from sgdsde.dynamics import (
    Dynamics,
    GaussianClosure,
    GradientDescent,
    GradientFlow,
    LinearizedSGD,
    MomentRecursion,
    MovingKernel,
    ReducedMoments,
    SDEPaths,
    TracedRecursion,
    Volterra,
)
from sgdsde.dynamics.modal_moments import ModalMoments
from sgdsde.dynamics.moving_kernel.initial_directions import ALL_UP_TO
from sgdsde.dynamics.reduced_moments import cost_in_plain_steps, pays_after
from sgdsde.kernel import KroneckerKernel
from sgdsde.linearization import Linearization, problem_of
from sgdsde.losses import SquaredError
from sgdsde.machine import Machine, linearized_runs_seconds, step_seconds
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

OVERHEAD = 2e-4
"""Seconds of a step beside its products, on a processor."""

MODAL_STEPS = 300
"""Steps of the closure of variances that its first steps and the samples of its sources cost, whatever the horizon."""

AVERAGES = 1000
"""Entries of an average of a loss and its derivatives for each output: 128 points, some eight passes."""

SLOWER_WITH_MOMENTUM = 1.5
"""A step of the recursion with momentum, in steps without."""

SAMPLED_EPOCHS, REDUCED = 64, 66
"""Orders of an epoch and directions of a reduced model of shuffled epochs; more orders where errors ask for them."""


@dataclass(frozen=True)
class Size:
    """d = n c, the rank r, test outputs m c, and what is there already."""

    d: int
    rank: int
    test: int
    has_basis: bool

    @classmethod
    def of(cls, one: Problem | Linearization) -> Size:
        problem = one.problem if isinstance(one, Linearization) else one
        d, test = problem.n_train * problem.n_outputs, problem.n_test * problem.n_outputs
        rank = min(d, sum(value.numel() for value in problem.params.values()))
        if not isinstance(one, Linearization):
            return cls(d, rank, test, has_basis=False)
        known = one.basis is not None or "eigenbasis" in vars(one)
        if one.basis is not None:
            rank = len(one.basis.values)
        if isinstance(one.kernel, KroneckerKernel):
            d, test, rank = problem.n_train, problem.n_test, min(rank, problem.n_train)
        return cls(d, rank, test, has_basis=known)


@dataclass(frozen=True)
class Course:
    """A training to be predicted: its problem, SGD and number of steps, of which so many are recorded."""

    problem: Problem
    sgd: SGD
    n_steps: int
    recorded: int
    size: Size

    @classmethod
    def of(cls, one: Problem | Linearization, sgd: SGD, record: Sequence[int] | Tensor) -> Course:
        return cls(problem_of(one), sgd, int(record[-1]), len(record), Size.of(one))


def evolution_cost(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    """The expected cost of ``dynamics.evolve``; NaN seconds of a dynamics whose cost depends on what it meets.

    Exactness: operation counts at the rates of the machine, within a factor of two on an idle one. A moving kernel is
        counted with refreshes at intervals that grow by half; where its kernel moves fast it takes up to three times as
        many.
    """
    for kinds, cost in COSTS.items():
        if isinstance(dynamics, kinds):
            return cost(dynamics, course, machine)
    return StageCost(type(dynamics).__name__, math.nan, 8 * 6 * course.size.rank**2)


def evolution_seconds(dynamics: Dynamics, course: Course) -> StageCost:
    """The same on the measured machine where the stage is long, else on an everyday one: it costs nothing to ask."""
    # A forward pass is timed once, whichever machine is asked.
    return evolution_cost(dynamics, course, Machine.worth(lambda at: _counted(dynamics, course, at)))


def _counted(dynamics: Dynamics, course: Course, machine: Machine) -> float:
    seconds = evolution_cost(dynamics, replace(course, n_steps=min(course.n_steps, 10**7)), machine).seconds
    return 0.0 if math.isnan(seconds) else seconds


def _plain_step(size: Size, machine: Machine) -> float:
    """Seconds of one step of the moment recursion."""
    return 4 * size.d * size.rank**2 / machine.products + 8 * size.rank**2 / machine.entries + OVERHEAD


def _spreads(course: Course, machine: Machine) -> float:
    """Seconds of the spread of the losses at all recorded steps."""
    r3 = 2 * course.size.rank**3
    return course.recorded * (r3 + (r3 if course.size.test else 0)) / machine.products


def _reduced(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    r, settings = course.size.rank, 1 if course.sgd.is_constant else 4
    if course.sgd.sampling == "shuffled":
        seconds = SAMPLED_EPOCHS * 4 * (REDUCED + course.recorded / 2) * r**3 / machine.products
        return StageCost("sampled epochs", seconds, 8 * 3 * REDUCED * r**2, at_least=True)
    steps, matrices = cost_in_plain_steps(r, settings), 60 * settings // 2 + 5
    if course.sgd.momentum:
        steps, matrices = SLOWER_WITH_MOMENTUM * min(course.n_steps, pays_after(course.sgd, r)), 150
    seconds = steps * _plain_step(course.size, machine)
    seconds += _spreads(course, machine) / 2 if course.size.test else 0
    return StageCost("reduced model", seconds, 8 * matrices * r**2)


def _recursion(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    d, r, spreads = course.size.d, course.size.rank, _spreads(course, machine)
    if course.sgd.sampling == "shuffled":
        seconds = course.n_steps * 10 * d**3 / machine.products + spreads
        return StageCost("shuffled epochs", seconds, 8 * 20 * d**2)
    slower, matrices = (SLOWER_WITH_MOMENTUM, 9) if course.sgd.momentum else (1.0, 5)
    seconds = course.n_steps * slower * _plain_step(course.size, machine) + spreads
    return StageCost("moment recursion", seconds, 8 * matrices * r**2)


def _modal(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    d, r = course.size.d, course.size.rank
    step = 8 * d * r / machine.entries + OVERHEAD
    seconds = course.n_steps * step
    if course.sgd.is_constant and not course.sgd.momentum:
        coupling = 2 * d * (d // course.problem.n_train) * r**2 / machine.products
        seconds = min(seconds, MODAL_STEPS * step + coupling + machine.spectrum(r))
    return StageCost("modal moments", seconds + _spreads(course, machine), 8 * 3 * d * r)


def _noiseless(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    d, r = course.size.d, course.size.rank
    steps = course.n_steps if isinstance(dynamics, GradientDescent) else course.recorded
    name = "gradient descent" if isinstance(dynamics, GradientDescent) else "gradient flow"
    return StageCost(name, steps * OVERHEAD + course.recorded * 2 * d * r / machine.products, 8 * d * r)


def _paths(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    assert isinstance(dynamics, SDEPaths)
    d, paths = course.size.d, dynamics.n_paths
    step = 2 * d**2 * paths / machine.products + 10 * d * paths / machine.entries
    return StageCost("sample paths", course.n_steps * (step + OVERHEAD), 8 * 6 * d * paths)


def _runs(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    assert isinstance(dynamics, LinearizedSGD)
    d, rows, runs = course.size.d, course.size.d + course.size.test, dynamics.n_runs
    examples = course.sgd.batch_size_at(0) * course.problem.n_outputs
    step = runs * linearized_runs_seconds(rows, d, examples, machine) + 2 * OVERHEAD
    return StageCost("runs of the linearized model", course.n_steps * step, 8 * 4 * rows * runs)


def _closure(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    d, momentum = course.size.d, course.sgd.momentum
    products = (3 if momentum else 2) * 2 * d**3 / machine.products
    step = products + 30 * d**2 / machine.entries + 5 * OVERHEAD
    return StageCost("Gaussian closure", course.n_steps * step, 8 * (10 if momentum else 6) * d**2)


def _volterra(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    assert isinstance(dynamics, Volterra)
    d, products = course.size.d, 4 * dynamics.rank + dynamics.n_lanczos * (1 + dynamics.n_probes)
    return StageCost("Volterra", products * d**2 / machine.entries + course.n_steps * OVERHEAD, 8 * 4 * 60 * d)


def _moving(dynamics: Dynamics, course: Course, machine: Machine) -> StageCost:
    assert isinstance(dynamics, MovingKernel)
    problem, size, steps = course.problem, course.size, course.n_steps
    n, d, c = problem.n_train, size.d, problem.n_outputs
    weights = sum(value.numel() for value in problem.params.values())
    rank = dynamics.rank_under(course.sgd)
    r = min(d, weights, rank)
    gradient = step_seconds(problem, n, 2 * steps)
    step = gradient + 6 * d * r * (r + c) / machine.products + 6 * d * r / machine.entries + 2 * OVERHEAD
    refreshes = min(steps, 2 + 4 * math.log(max(steps, 1)))
    draws = 0 if dynamics.feedback is None else 2 * dynamics.feedback.n_draws
    passes = draws + 3 + 3 * (c + 1) / 2  # noise, look ahead, and the factors of J three times
    refresh = passes * gradient + (8 * r * n * weights + 30 * d * r**2) / machine.products
    if isinstance(problem.criterion, SquaredError):
        averages = 0.0
    else:
        averages = (steps + refreshes + 4 * course.recorded) * AVERAGES * d / machine.entries
    if d > ALL_UP_TO:
        found = 5 * rank * (2 * d * (d + size.test) + 4 * d * 5 * rank) / machine.products
    else:
        found = machine.spectrum(d) + 2 * size.test * d * d / machine.products
    seconds = steps * step + refreshes * refresh + averages + found
    return StageCost("moving kernel", seconds, 4 * r * weights * problem.dtype.itemsize + 8 * 10 * d * r)


COSTS: dict[type[Dynamics] | tuple[type[Dynamics], ...], Callable[[Dynamics, Course, Machine], StageCost]] = {
    ReducedMoments: _reduced,
    (MomentRecursion, TracedRecursion): _recursion,
    ModalMoments: _modal,
    (GradientDescent, GradientFlow): _noiseless,
    SDEPaths: _paths,
    LinearizedSGD: _runs,
    GaussianClosure: _closure,
    Volterra: _volterra,
    MovingKernel: _moving,
}
"""By kind of dynamics."""
