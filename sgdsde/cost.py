"""The cost of a prediction, stage by stage, before it starts: seconds, bytes, and real training runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgdsde._checks import complaint, whole_number
from sgdsde.dynamics import (
    Dynamics,
    GradientDescent,
    MomentRecursion,
    ReducedMoments,
    SDEPaths,
    TracedRecursion,
    Volterra,
)
from sgdsde.dynamics.modal_moments import ModalMoments
from sgdsde.dynamics.reduced_moments import cost_in_plain_steps, pays_after
from sgdsde.ensemble import run_ensemble
from sgdsde.kernel import KernelPlan, KroneckerKernel
from sgdsde.linearization import Linearization
from sgdsde.prediction import default_dynamics
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd

SPECTRUM_ROWS = 320
"""Rows of the matrix whose eigendecomposition is timed."""

CHECKS = 0.1
"""Seconds of the checks of problem and kernel that every prediction makes."""

SAMPLED_EPOCHS, DIRECTIONS = 64, 66
"""Of a reduced model of shuffled epochs; the number of epochs is multiplied where their error asks for it."""

OVERHEAD = 2e-4
"""Seconds of a step beside its products, on a processor."""

REAL_STEPS = (3, 13)
"""Steps of the two short runs whose difference is the cost of real training."""


@dataclass(frozen=True)
class StageCost:
    """One stage of a prediction; ``bytes`` is what it holds at most."""

    name: str
    seconds: float
    bytes: int


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
        return sum(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> int:
        """Bytes of the largest stage."""
        return max(stage.bytes for stage in self.stages)

    @property
    def real_runs(self) -> float | None:
        """How many real training runs take as long."""
        return None if self.run_seconds is None else self.seconds / self.run_seconds

    def __str__(self) -> str:
        lines = [f"{stage.name:<28}{stage.seconds:>10.2f} s {stage.bytes / 2**20:>10.0f} MiB" for stage in self.stages]
        total = f"{self.dynamics}: {self.seconds:.2f} s, {self.bytes / 2**20:.0f} MiB"
        runs = "" if self.real_runs is None else f", as long as {self.real_runs:.2g} real training runs"
        return "\n".join([total + runs, *lines])


def expected_cost(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    dynamics: Dynamics | None = None,
) -> ExpectedCost:
    """Seconds and bytes of ``predict(problem, sgd, n_steps, dynamics=...)`` on this machine, by stage.

    Rates of matrix products and of an eigendecomposition are measured on small matrices, real training on 16 steps of
    one run; the rest are operation counts. A kernel that was made before, or its eigenbasis, costs nothing again.

    Args:
        dynamics: default the one that ``predict`` takes.
    Raises:
        ValueError: a dynamics whose cost is not known beforehand (it depends on what it meets on the way).
    Exactness: a factor of two on a machine that does nothing else, for the dense kernels of ``linearize(problem)``.
    Cost: about a second.
    """
    n_steps = whole_number("n_steps", n_steps)
    check_sgd(sgd)
    linearized = isinstance(problem_or_linearization, Linearization)
    problem = (
        problem_or_linearization.problem
        if isinstance(problem_or_linearization, Linearization)
        else (problem_or_linearization)
    )
    if not isinstance(problem, Problem):
        remedy = "use sgdsde.Problem(model, ...)"
        raise TypeError(complaint("problem", "a Problem or a Linearization", type(problem).__name__, remedy))
    machine = _Machine.measure(problem)
    size = _Size.of(problem_or_linearization)
    if dynamics is None:
        dynamics = default_dynamics(problem, sgd)
        reducible = isinstance(dynamics, MomentRecursion) and not sgd.momentum
        if reducible and pays_after(sgd, size.rank) < n_steps:
            dynamics = ReducedMoments()
    stages = [] if linearized else [_kernel_stage(problem)]
    if not isinstance(dynamics, (SDEPaths, Volterra)) and not size.has_basis:
        stages.append(StageCost("eigenbasis", machine.spectrum(size.d), 4 * 8 * size.d**2))
    stages.append(StageCost("checks", CHECKS, 0))
    stages.append(StageCost("stability limit", 0.4 * machine.spectrum(size.d), 3 * 8 * size.d**2))
    stages.append(_evolution_stage(dynamics, sgd, n_steps, size, machine))
    run = None if linearized else _run_seconds(problem, sgd) * n_steps
    return ExpectedCost(repr(dynamics), tuple(stages), run)


@dataclass(frozen=True)
class _Size:
    """d = n c, r and the number of test outputs."""

    d: int
    rank: int
    test: int
    has_basis: bool

    @classmethod
    def of(cls, one: Problem | Linearization) -> _Size:
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
class _Machine:
    """Measured: operations a second of products in float64, entries a second, seconds of an eigendecomposition."""

    products: float
    entries: float
    spectrum_seconds: float

    @classmethod
    def measure(cls, problem: Problem) -> _Machine:
        matrix = torch.ones(768, 768, dtype=torch.float64)
        out = torch.empty_like(matrix)
        products = _shortest(lambda: torch.mm(matrix, matrix, out=out))
        passes = _shortest(lambda: out.addcmul_(matrix, matrix))
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(SPECTRUM_ROWS, SPECTRUM_ROWS, dtype=torch.float64, generator=generator)
        symmetric = half @ half.mT
        return cls(2 * 768**3 / products, 768**2 / passes, _shortest(lambda: torch.linalg.eigh(symmetric)))

    def spectrum(self, d: int) -> float:
        """Seconds of an eigendecomposition of d rows."""
        return self.spectrum_seconds * (d / SPECTRUM_ROWS) ** 3

    def plain_step(self, size: _Size) -> float:
        """Seconds of one step of the moment recursion."""
        return 4 * size.d * size.rank**2 / self.products + 8 * size.rank**2 / self.entries + OVERHEAD


def _kernel_stage(problem: Problem) -> StageCost:
    functional, x, c = problem.functional, problem.x_train, problem.n_outputs
    seconds, held = 0.0, 0
    for first, second in ((x, None), (problem.x_test, x)):
        if first is None:
            continue
        plan = KernelPlan.make(functional, functional.params, first, second, c).timed(functional)
        seconds += plan.seconds or 0.0
        held += plan.total_bytes
    return StageCost("kernel", seconds, held)


def _evolution_stage(dynamics: Dynamics, sgd: SGD, n_steps: int, size: _Size, machine: _Machine) -> StageCost:
    r, d = size.rank, size.d
    recorded = len(recorded_steps(n_steps))
    spreads = recorded * (2 * r**3 + (2 * r**3 if size.test else 0)) / machine.products
    plain, matrices = machine.plain_step(size), 9 if sgd.momentum else 5
    if isinstance(dynamics, ReducedMoments):
        if sgd.sampling == "shuffled":
            products = SAMPLED_EPOCHS * 4 * (DIRECTIONS + recorded / 2) * r**3
            return StageCost("sampled epochs", products / machine.products + 100 * plain, 8 * 3 * DIRECTIONS * r**2)
        settings = 1 if sgd.is_constant else 4
        seconds = cost_in_plain_steps(r, settings) * plain + (spreads / 2 if size.test else 0)
        return StageCost("reduced model", seconds, 8 * (60 * r**2 * settings // 2 + 5 * r**2))
    if isinstance(dynamics, (MomentRecursion, TracedRecursion)):
        if sgd.sampling == "shuffled":
            return StageCost("shuffled epochs", n_steps * 10 * d**3 / machine.products + spreads, 8 * 20 * d**2)
        slower = 1.5 if sgd.momentum else 1.0
        return StageCost("moment recursion", n_steps * slower * plain + spreads, 8 * matrices * r**2)
    if isinstance(dynamics, ModalMoments):
        step = 8 * d * r / machine.entries + OVERHEAD
        return StageCost("modal moments", n_steps * step + spreads, 8 * 3 * d * r)
    if isinstance(dynamics, GradientDescent):
        return StageCost("gradient descent", n_steps * OVERHEAD + recorded * 2 * d * r / machine.products, 8 * d * r)
    if isinstance(dynamics, SDEPaths):
        step = 2 * d**2 * dynamics.n_paths / machine.products + 10 * d * dynamics.n_paths / machine.entries
        return StageCost("sample paths", n_steps * (step + OVERHEAD), 8 * 6 * d * dynamics.n_paths)
    if isinstance(dynamics, Volterra):
        products = 4 * dynamics.rank + dynamics.n_lanczos * (1 + dynamics.n_probes)
        return StageCost("Volterra", products * d**2 / machine.entries + n_steps * OVERHEAD, 8 * 4 * 60 * d)
    remedy = "ask for the cost of MomentRecursion, ReducedMoments, ModalMoments, Volterra, SDEPaths or GradientDescent"
    raise ValueError(complaint("dynamics", "one whose cost is known beforehand", repr(dynamics), remedy))


def _run_seconds(problem: Problem, sgd: SGD) -> float:
    """Seconds of a step of one real training run."""
    constant = dataclasses.replace(sgd, lr=1e-6 if callable(sgd.lr) else sgd.lr)
    seconds = []
    for n_steps in REAL_STEPS:
        start = time.perf_counter()
        run_ensemble(problem, constant, n_steps, n_runs=1, record=[n_steps])
        seconds.append(time.perf_counter() - start)
    return max(seconds[1] - seconds[0], 1e-6) / (REAL_STEPS[1] - REAL_STEPS[0])


def _shortest(work: Callable[[], object], repeats: int = 4) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
