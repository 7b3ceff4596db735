"""The cost of a prediction, stage by stage, before it starts: seconds, bytes, and real training runs."""

from __future__ import annotations

from dataclasses import dataclass

from sgdsde._checks import complaint, whole_number
from sgdsde._progress import StageCost
from sgdsde._words import told
from sgdsde.dynamics import Dynamics, MomentRecursion, ReducedMoments, SDEPaths, Volterra
from sgdsde.dynamics.reduced_moments import pays_after
from sgdsde.evolution_cost import Course, evolution_cost
from sgdsde.kernel import KernelPlan
from sgdsde.linearization import Linearization, problem_of
from sgdsde.machine import Machine
from sgdsde.measurement.plain_run import plain_seconds
from sgdsde.prediction import default_dynamics
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd

CHECKS = 0.1
"""Seconds of the checks of problem and kernel that every prediction makes."""


@dataclass(frozen=True)
class ExpectedCost:
    """The expected cost of a prediction.

    Attributes:
        dynamics: in words. stages: in their order. run_seconds: of one real training run of as many steps, None for a
            bare linearization.
    """

    dynamics: str
    stages: tuple[StageCost, ...]
    run_seconds: float | None

    @property
    def seconds(self) -> float:
        """Seconds of all stages whose cost is known."""
        return sum(stage.seconds for stage in self.stages if stage.is_known)

    @property
    def bytes(self) -> int:
        """Bytes of the largest stage."""
        return max(stage.bytes for stage in self.stages)

    @property
    def real_runs(self) -> float | None:
        """How many real training runs take as long."""
        return None if self.run_seconds is None else self.seconds / self.run_seconds

    def __str__(self) -> str:
        table = [
            f"{stage.name:<28}{'at least' if stage.at_least else '':>9}"
            f"{f'{stage.seconds:.2f}' if stage.is_known else 'unknown':>10} s {stage.bytes / 2**20:>10.0f} MiB"
            for stage in self.stages
        ]
        least = "at least " if any(stage.at_least or not stage.is_known for stage in self.stages) else ""
        total = f"{self.dynamics}: {least}{self.seconds:.2f} s, {self.bytes / 2**20:.0f} MiB"
        runs = "" if self.real_runs is None else f", as long as {self.real_runs:.2g} real training runs"
        return told(
            asked="what does this prediction cost on this machine, before it starts?",
            answer=f"{total}{runs}.",
            sure="to a factor of two on a machine that does nothing else.",
            do="where it is too much: fewer examples, dynamics.ReducedMoments(), or linearize(problem, rank=500).",
            table=table,
            terms=["dynamics", *([] if self.real_runs is None else ["run"])],
        )


def expected_cost(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    dynamics: Dynamics | None = None,
) -> ExpectedCost:
    """Seconds and bytes of ``predict(problem, sgd, n_steps, dynamics=...)`` on this machine, by stage.

    Measured: rates of matrix products and of an eigendecomposition, on small matrices, once a process; real training,
    on 27 steps of a loop around ``torch.optim.SGD``. Estimated: everything else, by operation counts. A kernel that was
    made before, or its eigenbasis, costs nothing again. (The costs that ``predict`` and the others log by themselves
    measure less: machine and network only where a stage is long enough that this is nothing.)

    Args:
        dynamics: default the one that ``predict`` takes.
    Raises:
        ValueError: a dynamics whose cost is not known beforehand (it depends on what it meets on the way).
    Exactness: a factor of two on a machine that does nothing else, for the dense kernels of ``linearize(problem)``.
    Cost: about a second.
    """
    cost = foreseen_cost(problem_or_linearization, sgd, n_steps, dynamics=dynamics)
    if not all(stage.is_known for stage in cost.stages):
        remedy = "ask for the cost of MomentRecursion, ReducedMoments, ModalMoments, Volterra, SDEPaths or MovingKernel"
        raise ValueError(complaint("dynamics", "one whose cost is known beforehand", cost.dynamics, remedy))
    return cost


def foreseen_cost(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    dynamics: Dynamics | None = None,
) -> ExpectedCost:
    """The same where the cost of the evolution may be unknown: NaN seconds of that stage."""
    n_steps = whole_number("n_steps", n_steps)
    check_sgd(sgd)
    problem = problem_of(problem_or_linearization)
    is_linearized = isinstance(problem_or_linearization, Linearization)
    machine, course = Machine.measured(), Course.of(problem_or_linearization, sgd, recorded_steps(n_steps))
    dynamics, size = chosen_dynamics(course) if dynamics is None else dynamics, course.size
    evolution = evolution_cost(dynamics, course, machine)
    stages = [] if is_linearized else [kernel_cost(problem)]
    if not isinstance(dynamics, (SDEPaths, Volterra)) and not size.has_basis:
        stages.append(StageCost("eigenbasis", machine.spectrum(size.d), 4 * 8 * size.d**2))
    stages.append(StageCost("checks", CHECKS, 0))
    stages.append(StageCost("stability limit", 0.4 * machine.spectrum(size.d), 3 * 8 * size.d**2))
    stages.append(evolution)
    run = None if is_linearized else plain_seconds(problem, sgd, n_steps)
    return ExpectedCost(repr(dynamics), tuple(stages), run)


def chosen_dynamics(course: Course) -> Dynamics:
    """The dynamics that ``predict`` takes where none is named."""
    dynamics, sgd = default_dynamics(course.problem, course.sgd), course.sgd
    if isinstance(dynamics, MomentRecursion) and course.n_steps > pays_after(sgd, course.size.rank):
        return ReducedMoments()
    return dynamics


def kernel_cost(problem: Problem) -> StageCost:
    """The cost of both kernels of a problem, at measured rates."""
    functional, x, c = problem.functional, problem.x_train, problem.n_outputs
    seconds, held = 0.0, 0
    for first, second in ((x, None), (problem.x_test, x)):
        if first is None:
            continue
        plan = KernelPlan.make(functional, functional.params, first, second, c).timed(functional)
        seconds += plan.seconds or 0.0
        held += plan.total_bytes
    return StageCost("kernel", seconds, held)
