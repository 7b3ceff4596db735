"""Evidence for a diagnosis: predictions and indicators of a problem and its SGD, each computed once."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sgdsde._progress import SharedBar, StageCost
from sgdsde.diagnosis import calibration, indicators
from sgdsde.diagnosis.kernel_path import KernelPath, kernel_path
from sgdsde.dynamics import Dynamics, GaussianClosure, GradientDescent, MovingKernel, SDEPaths
from sgdsde.evolution_cost import Course, Size, evolution_seconds
from sgdsde.linearization import Linearization, problem_of
from sgdsde.losses import SquaredError
from sgdsde.machine import spectrum_cost, step_seconds
from sgdsde.prediction import default_dynamics
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

CLOSED_OUTPUTS = 1024
"""Training outputs up to which the Gaussian closure costs no more than a thousand paths."""

NO_NOISE = 1e-12
"""Share of noise in the loss below which there is none."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Numbers and predictions of one linearized problem under one SGD, computed when first asked for.

    Attributes:
        record: steps at which losses are compared; the last one ends the training.
    """

    linearization: Linearization
    sgd: SGD
    record: list[int]
    bar: SharedBar

    @cached_property
    def frozen_theory(self) -> Dynamics:
        """The default dynamics of the loss."""
        return default_dynamics(self.linearization.problem, self.sgd)

    @cached_property
    def frozen_losses(self) -> Tensor:
        """Expected losses of the frozen kernel [T], without sampling error where that is affordable.

        A sampling error would pass for an effect of the kernel.
        """
        theory, at = self.frozen_theory, (self.linearization, self.sgd, self.record)
        if isinstance(theory, SDEPaths) and self.linearization.outputs.numel() <= CLOSED_OUTPUTS:
            try:
                return indicators.expected_losses(GaussianClosure(), *at, progress=self.bar.part("frozen kernel"))
            except ValueError:  # no second derivative, or shuffled epochs
                pass
        return indicators.expected_losses(theory, *at, progress=self.bar.part("frozen kernel"))

    @cached_property
    def moving(self) -> tuple[Tensor | None, str]:
        """Expected losses of the moving kernel [T], and its message: why there are none, or its first warning."""
        if isinstance(self.path, str):
            return None, self.path
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                at = (self.linearization, self.sgd, self.record)
                losses = indicators.expected_losses(MovingKernel(), *at, progress=self.bar.part("moving kernel"))
            except ValueError as error:
                return None, str(error)
        return losses, str(caught[0].message) if caught else ""

    @cached_property
    def path(self) -> KernelPath | str:
        """The path of full-batch descent, or the error where it diverges."""
        try:
            return kernel_path(self.linearization, self.sgd, self.record, progress=self.bar.part("path"))
        except ValueError as error:
            return str(error)

    @cached_property
    def limit_ratio(self) -> float:
        """The largest learning rate over the mean-square limit along the path."""
        later = [] if isinstance(self.path, str) else list(self.path.linearizations.values())
        ratios = [indicators.limit_ratio(at, self.sgd, self.record[-1]) for at in (self.linearization, *later)]
        return max(ratios)

    @property
    def is_past_limit(self) -> bool:
        """Whether the expected loss diverges.

        Only under squared error: the quadratic of another loss has a limit past which the loss need not grow.
        """
        return isinstance(self.linearization.problem.criterion, SquaredError) and self.limit_ratio >= 1

    @property
    def is_beyond_measure(self) -> bool:
        """Whether the setting lies past the limit, or past every kernel drift at which predictions met runs."""
        return self.is_past_limit or isinstance(self.path, str) or self.path.drift > calibration.DRIFT_MEASURED

    @cached_property
    def noise_share(self) -> float:
        """The largest share of noise in the expected loss."""
        share = indicators.noise_share(self.frozen_losses, self.linearization, self.sgd, self.record)
        return share if share > NO_NOISE else 0.0

    @cached_property
    def feedback(self) -> float:
        """The kernel drift times the odds of noise in the loss."""
        if isinstance(self.path, str) or self.noise_share == 1:
            return math.inf
        return self.path.drift * self.noise_share / (1 - self.noise_share)

    @cached_property
    def kernel_gap(self) -> float:
        """The relative change of the expected loss by the drift of the kernel, at the worst recorded step."""
        if isinstance(self.path, str):
            return math.inf
        losses, _ = self.moving
        if losses is not None:
            return float((self.frozen_losses / losses - 1).abs().nan_to_num(nan=math.inf).max())
        descent = indicators.expected_losses(GradientDescent(), self.linearization, self.sgd, self.record)
        change = (self.path.losses.to(descent) - descent) / self.frozen_losses
        return float(change.abs().nan_to_num(nan=math.inf).max())

    @cached_property
    def moving_error(self) -> float:
        """The relative error to expect of the moving kernel."""
        if self.moving[0] is None or self.is_beyond_measure:
            return math.inf
        return calibration.moving_error(self.feedback)

    @cached_property
    def frozen_error(self) -> float:
        """The relative error to expect of the frozen kernel."""
        if self.is_beyond_measure:
            return math.inf
        return self.kernel_gap + calibration.moving_error(self.feedback)


@dataclass(frozen=True)
class DiagnosisCost:
    """The expected cost of a diagnosis: of the whole, its parts in seconds by name, and of one plain run."""

    stage: StageCost
    parts: dict[str, float]
    run_seconds: float


def diagnosis_cost(problem_or_linearization: Problem | Linearization, sgd: SGD, record: list[int]) -> DiagnosisCost:
    """Counted like the evolutions; the moving kernel, and with it the whole, at its least."""
    problem, size = problem_of(problem_or_linearization), Size.of(problem_or_linearization)
    course = Course.of(problem_or_linearization, sgd, record)
    theory = default_dynamics(problem, sgd)
    if isinstance(theory, SDEPaths) and size.d <= CLOSED_OUTPUTS:
        theory = GaussianClosure()
    frozen, moving = evolution_seconds(theory, course), evolution_seconds(MovingKernel(), course)
    spectrum = spectrum_cost(size.d).seconds
    path = record[-1] * step_seconds(problem, problem.n_train, record[-1])
    rest = spectrum * (2 if size.has_basis else 3) + len(record) * spectrum / 9
    parts = {"frozen kernel": frozen.seconds, "path": path, "moving kernel": moving.seconds, "checks": rest}
    stage = StageCost("diagnosis", sum(parts.values()), max(frozen.bytes, moving.bytes), at_least=True)
    return DiagnosisCost(stage, parts, record[-1] * step_seconds(problem, sgd.batch_size_at(0), record[-1]))
