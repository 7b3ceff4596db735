"""What is found of a problem and its SGD, and what it means."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._types import Progress
from sgdsde.comparison import TOLERANCE as SDE_TOLERANCE
from sgdsde.diagnosis import calibration, indicators
from sgdsde.diagnosis.kernel_path import KernelPath, kernel_path
from sgdsde.diagnosis.result import Advice, Check, Diagnosis, Grade
from sgdsde.dynamics import Dynamics, GaussianClosure, GradientDescent, MovingKernel, SDEPaths
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.prediction import default_dynamics
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.regimes.confusion import gradient_confusion
from sgdsde.sgd import SGD, check_sgd

CLOSED_OUTPUTS = 1024
"""Training outputs up to which the Gaussian closure costs no more than a thousand paths."""

NO_NOISE = 1e-12
"""Share of noise in the loss below which there is none."""


def diagnose(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    tolerance: float = 0.05,
    record: Sequence[int] | None = None,
    progress: Progress = None,
) -> Diagnosis:
    """Which prediction to trust, and the error to expect of it, without a measured run.

    Args:
        n_steps: how long it is trained: kernels drift and losses fall with the steps.
        tolerance: relative error of the training loss that is asked for, at every recorded step.
        record: as in ``predict``.
    Returns:
        A ``Diagnosis`` with checks ``stability``, ``kernel_drift``, ``laziness``, ``noise_scale``, ``confusion``,
        ``feedback``, ``linearization``, ``sde``; each has its number, threshold, source of the threshold, grade and
        sentence.
    Exactness: calibrated, not derived: the errors to expect are those that nine of ten settings stayed below, on small
        networks and digits (docs/diagnosis.md, where it is checked on other settings).
    Cost: the predictions of the frozen and of the moving kernel and of the SDE, a full-batch gradient a step, and three
        kernels.
    """
    n_steps = whole_number("n_steps", n_steps, minimum=1)
    tolerance = positive_number("tolerance", tolerance)
    steps = recorded_steps(n_steps, record).tolist()
    if steps[-1] == 0:
        raise ValueError(complaint("record", "with a step after 0", steps, "omit it for about 50 geometric steps"))
    check_sgd(sgd)
    linearization = as_linearization(problem_or_linearization, progress=progress)
    return _Findings(linearization, sgd, steps, tolerance, progress).diagnosis()


@dataclass(frozen=True, eq=False)
class _Findings:
    """A problem and its SGD, and what is found of them, each once."""

    linearization: Linearization
    sgd: SGD
    record: list[int]
    tolerance: float
    progress: Progress

    def diagnosis(self) -> Diagnosis:
        checks = [self._stability(), self._kernel_drift(), self._laziness(), self._noise_scale()]
        checks += [self._confusion(), self._feedback(), self._linearization(), self._sde()]
        frozen, moving = self.frozen_error, self.moving_error
        advice = Advice.MEASURE
        if frozen <= self.tolerance:
            advice = Advice.FROZEN_KERNEL
        elif moving <= self.tolerance:
            advice = Advice.MOVING_KERNEL
        predictor: dict[Advice, Dynamics] = {
            Advice.FROZEN_KERNEL: self.frozen_theory,
            Advice.MOVING_KERNEL: MovingKernel(),
        }
        return Diagnosis(
            checks={check.name: check for check in checks},
            advice=advice,
            predictor=predictor.get(advice),
            frozen_error=frozen,
            moving_error=moving,
            tolerance=self.tolerance,
            sentence=self._sentence(advice, frozen, moving),
            steps=torch.tensor(self.record),
            frozen_losses=self.frozen_losses,
            moving_losses=self.moving[0],
        )

    # ------------------------------------------------------------------------------------ what is found

    @cached_property
    def frozen_theory(self) -> Dynamics:
        return default_dynamics(self.linearization.problem)

    @cached_property
    def frozen_losses(self) -> Tensor:
        """Without sampling error where that is affordable: it would pass for an effect of the kernel."""
        theory = self.frozen_theory
        if isinstance(theory, SDEPaths) and self.linearization.outputs.numel() <= CLOSED_OUTPUTS:
            try:
                return indicators.expected_losses(GaussianClosure(), self.linearization, self.sgd, self.record)
            except ValueError:  # no second derivative, or shuffled epochs
                pass
        return indicators.expected_losses(theory, self.linearization, self.sgd, self.record)

    @cached_property
    def moving(self) -> tuple[Tensor | None, str]:
        """Losses of the moving kernel, and what it said: why there are none, or what it warned of."""
        if isinstance(self.path, str):
            return None, self.path
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                losses = indicators.expected_losses(MovingKernel(), self.linearization, self.sgd, self.record)
            except ValueError as error:
                return None, str(error)
        return losses, str(caught[0].message) if caught else ""

    @cached_property
    def path(self) -> KernelPath | str:
        """Or why there is none."""
        try:
            return kernel_path(self.linearization, self.sgd, self.record, progress=self.progress)
        except ValueError as error:
            return str(error)

    @cached_property
    def limit_ratio(self) -> float:
        """The largest along the path."""
        later = [] if isinstance(self.path, str) else list(self.path.linearizations.values())
        ratios = [indicators.limit_ratio(at, self.sgd, self.record[-1]) for at in (self.linearization, *later)]
        return max(ratios)

    @property
    def is_past_limit(self) -> bool:
        """Only under squared error: the quadratic of another loss has a limit past which the loss need not grow."""
        return isinstance(self.linearization.problem.criterion, SquaredError) and self.limit_ratio >= 1

    @property
    def is_beyond_measure(self) -> bool:
        """Past the limit, or past every kernel drift at which predictions have been held against runs."""
        return self.is_past_limit or isinstance(self.path, str) or self.path.drift > calibration.DRIFT_MEASURED

    @cached_property
    def noise_share(self) -> float:
        share = indicators.noise_share(self.frozen_losses, self.linearization, self.sgd, self.record)
        return share if share > NO_NOISE else 0.0

    @cached_property
    def feedback(self) -> float:
        """Kernel drift times the odds of noise in the loss."""
        if isinstance(self.path, str) or self.noise_share == 1:
            return math.inf
        return self.path.drift * self.noise_share / (1 - self.noise_share)

    @cached_property
    def kernel_gap(self) -> float:
        """What the drift of the kernel does to the expected loss, at the worst recorded step."""
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
        if self.moving[0] is None or self.is_beyond_measure:
            return math.inf
        return calibration.moving_error(self.feedback)

    @cached_property
    def frozen_error(self) -> float:
        if self.is_beyond_measure:
            return math.inf
        return self.kernel_gap + calibration.moving_error(self.feedback)

    # ------------------------------------------------------------------------------------- what it means

    def _stability(self) -> Check:
        ratio, bound = self.limit_ratio, calibration.SHARE_OF_LIMIT
        source = "1 is the limit of the linearized SGD; beyond 0.6 fluctuations amplify what a moving kernel leaves out"
        sentence = f"lr is {ratio:.2g} of the largest that is stable in mean square along the path"
        if math.isnan(ratio):
            said = "no limit: the loss is not curved upwards at the outputs"
            return Check("stability", ratio, bound, source, Grade.CAUTION, said)
        if self.is_past_limit:
            return Check("stability", ratio, bound, source, Grade.BAD, sentence + ": the expected loss grows")
        return _graded("stability", ratio, bound, source, sentence, beyond="errors are amplified")

    def _kernel_drift(self) -> Check:
        bound, source = (
            calibration.DRIFT_CUT,
            "best single cut between frozen kernels within 5 % and others (calibration)",
        )
        if isinstance(self.path, str):
            return Check("kernel_drift", math.inf, bound, source, Grade.BAD, self.path)
        drift = self.path.drift
        sentence = f"the kernel moves by {100 * drift:.2g} % along full-batch descent"
        if drift > calibration.DRIFT_MEASURED:
            return Check("kernel_drift", drift, bound, source, Grade.BAD, sentence + ", more than was ever measured")
        return _graded("kernel_drift", drift, bound, source, sentence, beyond="a frozen kernel is late off by more")

    def _laziness(self) -> Check:
        value = indicators.laziness(self.linearization)
        sentence = f"on its way to the targets the Jacobian changes by about {value:.2g} of itself"
        source = "best single cut between frozen kernels within 5 % and others (calibration); lazy training needs << 1"
        return _graded("laziness", value, calibration.LAZINESS_CUT, source, sentence, beyond="features are learned")

    def _noise_scale(self) -> Check:
        value = indicators.noise_ratio(self.linearization, self.sgd)
        source = "at 1 noise and mean of the first gradient are equally large (McCandlish et al.)"
        sentence = f"the first gradient's variance is {value:.2g} of its squared mean"
        return _graded("noise_scale", value, 1.0, source, sentence, beyond="gradient descent says little of this SGD")

    def _confusion(self) -> Check:
        source = "at 1 a step on one example raises another's loss by as much as an average step lowers its own"
        if self.linearization.problem.n_train < 2:
            return Check("confusion", math.nan, 1.0, source, Grade.GOOD, "a single example confuses none")
        found = gradient_confusion(self.linearization)
        value = found.bound / found.mean_square if found.mean_square > 0 else 0.0
        return _graded("confusion", value, 1.0, source, found.sentence, beyond="small batches undo each other's steps")

    def _feedback(self) -> Check:
        bound = calibration.feedback_at(self.tolerance)
        source = f"where {calibration.MOVING_SCALE:g} x^{calibration.MOVING_POWER:g}, the fit of the moving kernel's "
        source += f"errors, is {100 * self.tolerance:g} %"
        sentence = f"noise is up to {100 * self.noise_share:.2g} % of the expected loss, and moves a kernel that moves"
        return _graded(
            "feedback", self.feedback, bound, source, sentence, beyond="the mean path no longer follows full batches"
        )

    def _linearization(self) -> Check:
        source = "the tolerance asked for"
        sentence = f"letting the kernel move changes the expected loss by up to {100 * self.kernel_gap:.2g} %"
        losses, said = self.moving
        if said:
            sentence += f" (of full batches alone; {said})" if losses is None else f" ({said})"
        return _graded("linearization", self.kernel_gap, self.tolerance, source, sentence, beyond="let it move")

    def _sde(self) -> Check:
        if self.is_past_limit:
            said = "not compared past the mean-square limit"
            return Check("sde", math.nan, SDE_TOLERANCE, "the tolerance of compare", Grade.BAD, said)
        value = indicators.sde_error(self.frozen_losses, self.linearization, self.sgd, self.record)
        source = "the tolerance of compare"
        if math.isnan(value):
            said = "shuffled epochs have no SDE" if self.sgd.sampling == "shuffled" else "no curvature to tell by"
            return Check("sde", value, SDE_TOLERANCE, source, Grade.CAUTION, said)
        sentence = f"the SDE's expected loss is off from that of SGD by up to {100 * value:.2g} %"
        return _graded("sde", value, SDE_TOLERANCE, source, sentence, beyond="predict in steps, not in time")

    def _sentence(self, advice: Advice, frozen: float, moving: float) -> str:
        errors = f"error to expect: {_percent(frozen)} with a frozen kernel, {_percent(moving)} with a moving one"
        said = {
            Advice.FROZEN_KERNEL: f"Predict with {self.frozen_theory!r}: the kernel may be frozen",
            Advice.MOVING_KERNEL: "Predict with MovingKernel(): the kernel moves too much to be frozen",
            Advice.MEASURE: f"Measure: no prediction is expected within {100 * self.tolerance:g} %",
        }
        return f"{said[advice]}; {errors}."


def _graded(name: str, value: float, bound: float, source: str, sentence: str, *, beyond: str) -> Check:
    if value <= bound:
        return Check(name, value, bound, source, Grade.GOOD, sentence)
    return Check(name, value, bound, source, Grade.CAUTION, f"{sentence}: {beyond}")


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if math.isfinite(error) else "none given"
