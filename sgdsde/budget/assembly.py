"""Makes the curves of a budget, for any dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._types import Progress
from sgdsde.budget.chain import Chain, Curve
from sgdsde.budget.result import ErrorBudget
from sgdsde.dynamics import (
    Dynamics,
    EulerMaruyama,
    GaussianClosure,
    GradientDescent,
    GradientFlow,
    LinearizedSGD,
    MomentEquations,
    MomentRecursion,
    MovingKernel,
    OrnsteinUhlenbeck,
    SDEPaths,
)
from sgdsde.ensemble import run_ensemble
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.prediction import default_dynamics, evolve, predict
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd

RTOL = 1e-6
"""Of the reference equations, relative to the covariance that a panel adds."""

REFERENCE_RUNS = 2048
"""Runs and paths of the expectations that are sampled."""

REFERENCE_SEED = 2**31
"""Added to the seed, so that no reference shares its paths with the prediction."""

MORE_RUNS = 4
"""Times the measured runs that such an expectation takes at least."""


def error_budget(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    n_runs: int,
    *,
    dynamics: Dynamics | None = None,
    seed: int = 0,
    record: Sequence[int] | None = None,
    n_reference: int = REFERENCE_RUNS,
    memory: int | None = None,
    progress: Progress = None,
) -> ErrorBudget:
    """The gap between measured and predicted loss as a sum of terms, each with its standard error.

        measured - predicted = linearization     real runs - runs of the linearized model on the same batches
                             + monte_carlo       these runs - their expectation
                             + non_gaussian      expectation - expectation under Gaussian noise; 0 under squared error
                             + discretization    Gaussian chain - SDE
                             + frozen_noise      SDE - Ornstein-Uhlenbeck process
                             + closure           what else the dynamics leaves out; sampling error of its paths
                             + kernel_motion     frozen - moving kernel: what it makes good of the linearization, less
                                                 what it neglects of the noise

    Args:
        dynamics: the theory that predicts; default that of ``predict``. Any: its kind decides which terms there are,
            and what is not known of it is in ``closure``.
        n_runs: measured runs, at least 2. seed, record, memory: as in ``run_ensemble``.
        n_reference: runs and paths of expectations without a closed form (losses other than squared error, shuffled
            epochs); at least 4 n_runs are taken.
    Raises:
        ValueError: what the dynamics cannot represent; a loss that is not finite at a recorded step.
    Exactness: the terms add up to rounding. Under squared error and i.i.d. batches the expectation is exact. What a
        truncated kernel leaves out is in ``closure`` (in the first term of the theory where the kernel is no tensor).
    Cost: real and linearized runs, the prediction, and the curves between, of which ``MomentRecursion`` is always one
        under squared error.
    """
    n_steps, n_runs = whole_number("n_steps", n_steps), whole_number("n_runs", n_runs, minimum=2)
    n_reference = max(whole_number("n_reference", n_reference, minimum=2), MORE_RUNS * n_runs)
    steps = recorded_steps(n_steps, record)
    check_sgd(sgd)
    linearization = as_linearization(problem_or_linearization, sgd=sgd, progress=progress)
    dynamics = default_dynamics(linearization.problem, sgd) if dynamics is None else dynamics
    predicted = predict(linearization, sgd, n_steps, dynamics=dynamics, record=steps.tolist(), progress=progress)
    curves = Curves(linearization, sgd, n_steps, steps.tolist(), seed, n_runs, n_reference, memory, progress)
    chain = curves.chain(dynamics, Curve(predicted, repr(dynamics)))
    chain.check_finite()
    budgets = {side: chain.budget(side) for side in chain.sides}
    times = chain.curves[0].trajectory.times
    return ErrorBudget(steps, times, n_runs, predicted.dynamics, budgets["train"], budgets.get("test"))


@dataclass(frozen=True, eq=False)
class Curves:
    """The curves of one budget, made as they are needed."""

    linearization: Linearization
    sgd: SGD
    n_steps: int
    record: list[int]
    seed: int
    n_runs: int
    n_reference: int
    memory: int | None
    progress: Progress

    def chain(self, dynamics: Dynamics, used: Curve) -> Chain:
        """From the real runs to the prediction ``used`` of a dynamics."""
        whole = self._at_whole_kernel(dynamics, used)
        real = self._runs(self.linearization.problem, self.n_runs, "real runs")
        runs, expectation = self._linearized(dynamics, whole)
        gaussian, why = self._gaussian(dynamics, expectation)
        sde, frozen, closed, reasons = self._theory(dynamics, gaussian, whole)
        closed = used if closed is whole else closed
        return Chain([real, runs, expectation, gaussian, sde, frozen, closed, used], reasons | {"non_gaussian": why})

    def _at_whole_kernel(self, dynamics: Dynamics, used: Curve) -> Curve:
        """The prediction where no eigenpairs are left out of a kernel that could give them all."""
        is_truncated = self.linearization.basis is not None and isinstance(self.linearization.kernel, Tensor)
        by_modes = not isinstance(dynamics, SDEPaths | GaussianClosure | MovingKernel)
        return self._evolved(dynamics) if is_truncated and by_modes and self._is_squared else used

    def _linearized(self, dynamics: Dynamics, used: Curve) -> tuple[Curve, Curve]:
        """Runs on the batches of the measured ones, and their expectation."""
        name = "runs of the linearized model"
        if self._is_squared and self.sgd.sampling != "shuffled" and self._whole.basis is None:
            exact = used if isinstance(dynamics, MomentRecursion) else self._evolved(MomentRecursion())
        elif self._is_certain:
            exact = self._evolved(GradientDescent())
        else:
            many = self._runs(self.linearization, self.n_reference, f"{self.n_reference} {name}")
            return Curve(many.first_runs(self.n_runs).trajectory, name), many
        return self._runs(self.linearization, self.n_runs, name), exact

    def _gaussian(self, dynamics: Dynamics, expectation: Curve) -> tuple[Curve, str]:
        """The expectation under Gaussian noise, or why it is the same."""
        if self._is_certain:
            return expectation, "whole batches have no noise"
        if self._is_squared:
            return expectation, "the expected squared error depends on the first two moments of the noise only"
        if isinstance(dynamics, LinearizedSGD):
            return expectation, "LinearizedSGD draws the minibatches of SGD"
        if self.sgd.sampling == "shuffled":
            return expectation, "no Gaussian chain has the dependent noise of shuffled epochs; closure holds the rest"
        return self._evolved(SDEPaths(self.n_reference, seed=self.seed + REFERENCE_SEED)), ""

    def _theory(self, dynamics: Dynamics, gaussian: Curve, used: Curve) -> tuple[Curve, Curve, Curve, dict[str, str]]:
        """SDE, frozen noise and closure as far as this dynamics goes, and why terms are zero."""
        name = type(dynamics).__name__
        reasons = {
            "discretization": f"{name} takes the steps of SGD",
            "frozen_noise": "there is no noise" if self._is_certain else f"the noise of {name} follows the state",
            "closure": f"{name} is exact at its place in the chain",
            "kernel_motion": "the kernel is frozen",
        }
        if isinstance(dynamics, GradientDescent | GradientFlow):
            reasons["frozen_noise"] = "there is no noise to freeze; what is missing is in closure"
        elif not isinstance(dynamics, KNOWN):
            reasons |= dict.fromkeys(("discretization", "frozen_noise"), f"not told apart for {name}; see closure")
        if isinstance(dynamics, MovingKernel):
            return gaussian, gaussian, self._at_frozen_kernel(gaussian), reasons
        if not _is_continuous(dynamics):
            return gaussian, gaussian, used, reasons
        if self.sgd.sampling == "shuffled":
            return gaussian, gaussian, used, reasons | {"discretization": "shuffled epochs have no SDE; see closure"}
        if isinstance(dynamics, MomentEquations) or (isinstance(dynamics, OrnsteinUhlenbeck) and self._is_certain):
            return used, used, used, reasons
        sde = self._sde(dynamics)
        frozen = used if isinstance(dynamics, OrnsteinUhlenbeck) else sde
        return sde, frozen, used, reasons

    def _at_frozen_kernel(self, gaussian: Curve) -> Curve:
        """The prediction of a moving kernel whose kernel does not move."""
        if self._is_certain or self._is_squared != (self.sgd.sampling == "shuffled"):
            return gaussian  # exact already, or without a closure of its own
        return self._evolved(MomentRecursion(epoch_starts=0) if self._is_squared else GaussianClosure())

    def _sde(self, dynamics: Dynamics) -> Curve:
        if self._is_squared:
            return self._evolved(MomentEquations(order=1, rtol=RTOL))
        assert isinstance(dynamics, SDEPaths)
        seed = self.seed + REFERENCE_SEED + 1
        return self._evolved(SDEPaths(self.n_reference, dynamics.integrator, seed, dynamics.ito_term))

    def _runs(self, source: Problem | Linearization, n_runs: int, note: str) -> Curve:
        measured = run_ensemble(
            source,
            self.sgd,
            self.n_steps,
            n_runs,
            seed=self.seed,
            record=self.record,
            memory=self.memory,
            progress=self.progress,
        )
        return Curve(measured, note)

    def _evolved(self, dynamics: Dynamics) -> Curve:
        """Without the warnings of ``predict``, which the prediction itself has given."""
        evolved = evolve(dynamics, self._whole, self.sgd, self.record, n_steps=self.n_steps, progress=self.progress)
        return Curve(evolved, repr(dynamics))

    @cached_property
    def _whole(self) -> Linearization:
        """With all eigenpairs, where the kernel is a tensor."""
        if self.linearization.basis is None or not isinstance(self.linearization.kernel, Tensor):
            return self.linearization
        return replace(self.linearization, basis=None)

    @property
    def _is_squared(self) -> bool:
        return isinstance(self.linearization.problem.criterion, SquaredError)

    @property
    def _is_certain(self) -> bool:
        """Whole batches and clean labels: nothing is random."""
        plan = self.sgd.plan(self.linearization.problem.n_train, self.n_steps)
        return self.sgd.label_noise_std == 0 and all(plan.noise_factor(k) == 0 for k in range(len(plan)))


KNOWN = (
    *(MomentRecursion, MomentEquations, OrnsteinUhlenbeck, GradientDescent, GradientFlow),
    *(GaussianClosure, SDEPaths, MovingKernel, LinearizedSGD),
)
"""Dynamics whose place in the chain is known."""


def _is_continuous(dynamics: Dynamics) -> bool:
    """Whether it is a theory of an SDE, which takes no steps."""
    if isinstance(dynamics, SDEPaths):
        return dynamics.integrator != EulerMaruyama(substeps=1)
    return isinstance(dynamics, MomentEquations | OrnsteinUhlenbeck | GradientFlow)
