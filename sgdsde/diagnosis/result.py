"""The result of a diagnosis: checks with their numbers, and what they advise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

from sgdsde._words import told
from sgdsde.dynamics import Dynamics

if TYPE_CHECKING:
    import pandas


Regime: TypeAlias = Literal["kernel", "between", "rich"]
"""How far training is from that of the linearized model."""

RICH_DRIFT = 0.5
"""Relative change of the kernel from which training is called rich: a name, not a calibrated threshold."""


class Grade(Enum):
    """GOOD: within the threshold. CAUTION: beyond it. BAD: beyond what any prediction here stands."""

    GOOD = "good"
    CAUTION = "caution"
    BAD = "bad"


class Advice(Enum):
    """FROZEN_KERNEL: the default prediction is enough. MOVING_KERNEL: ``dynamics.MovingKernel`` is needed, and enough.
    MEASURE: no prediction is expected within the tolerance; train a few runs (``run_ensemble``)."""

    FROZEN_KERNEL = "frozen kernel"
    MOVING_KERNEL = "moving kernel"
    MEASURE = "measure"


@dataclass(frozen=True)
class Check:
    """One number against its threshold.

    Attributes:
        value: NaN where it does not apply. threshold: up to which it is good. source: where the threshold comes from.
        sentence: what it means here.
    """

    name: str
    value: float
    threshold: float
    source: str
    grade: Grade
    sentence: str


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Advised dynamics and the error to expect; ``str()`` says it in words.

    Attributes:
        checks: by name. advice: which kernel, or to measure. predictor: older name of ``dynamics``.
        frozen_error, moving_error: the relative error of the training loss to expect at the worst recorded step, of the
            frozen and of the moving kernel; infinity where the prediction is refused. Nine of ten settings of the
            calibration were below (docs/diagnosis.md).
        tolerance: the relative error that was asked for.
        steps: int64 [T]. frozen_losses, moving_losses: expected training losses of the two predictions, [T]; None where
            the moving kernel refused.
    """

    checks: Mapping[str, Check]
    advice: Advice
    predictor: Dynamics | None
    frozen_error: float
    moving_error: float
    tolerance: float
    sentence: str
    steps: Tensor
    frozen_losses: Tensor
    moving_losses: Tensor | None

    @property
    def regime(self) -> Regime:
        """The kernel's motion along full-batch descent in a word.

        "kernel" up to the threshold of the check, "rich" beyond half of itself, where features are learned.
        """
        drift = self.checks["kernel_drift"]
        if drift.value <= drift.threshold:
            return "kernel"
        return "rich" if drift.value > RICH_DRIFT else "between"

    @property
    def dynamics(self) -> Dynamics | None:
        """The advised dynamics, None where none is advised."""
        return self.predictor

    @property
    def expected_error(self) -> float:
        """Error to expect of the advised dynamics, or of the better one where none is advised."""
        errors = {Advice.FROZEN_KERNEL: self.frozen_error, Advice.MOVING_KERNEL: self.moving_error}
        return errors.get(self.advice, min(self.frozen_error, self.moving_error))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a check: name, value, threshold, grade, source, sentence (needs pandas)."""
        import pandas

        rows = [vars(check) | {"grade": check.grade.value} for check in self.checks.values()]
        return pandas.DataFrame(rows, columns=["name", "value", "threshold", "grade", "source", "sentence"])

    def __str__(self) -> str:
        table = [f"{'check':>18} {'value':>9} {'threshold':>9}  {'':8}"]
        for check in self.checks.values():
            table.append(f"{check.name:>18} {check.value:>9.3g} {check.threshold:>9.3g}  {check.grade.value:8}")
            table.append(f"{'':>20}{check.sentence}")
            table.append(f"{'':>20}threshold: {check.source}")
        do = {
            Advice.FROZEN_KERNEL: "predict(problem, sgd, n_steps, dynamics=found.dynamics).",
            Advice.MOVING_KERNEL: "predict(problem, sgd, n_steps, dynamics=found.dynamics).",
            Advice.MEASURE: "run_ensemble(problem, sgd, n_steps, n_runs=16).",
        }
        return told(
            asked=f"which prediction of the train loss can be trusted within {100 * self.tolerance:g} %, and how far?",
            answer=f"{self.sentence} Regime: {self.regime}.",
            sure="nine of ten settings of the calibration had a smaller error than said (docs/diagnosis.md).",
            do=do[self.advice],
            table=table,
            terms=["dynamics", "frozen kernel", "moving kernel", "mean-square limit"],
        )
