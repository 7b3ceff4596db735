"""The result of a diagnosis: what can be done, what is advised, and the checks behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

from sgdsde._words import told
from sgdsde.advice import Advice as AdviceForAnswer
from sgdsde.advice import Way
from sgdsde.diagnosis.expected_errors import ExpectedError
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
    """FROZEN_KERNEL: the default prediction. MOVING_KERNEL: ``dynamics.MovingKernel``. INTERPOLATE: runs at a few
    anchors, and a response surface between them (``EnsembleSurface``). MEASURE: runs of this setting (``measure``)."""

    FROZEN_KERNEL = "frozen kernel"
    MOVING_KERNEL = "moving kernel"
    INTERPOLATE = "interpolate"
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


@dataclass(frozen=True)
class Option:
    """One way to know the mean loss.

    Attributes:
        advice: which way. dynamics: of a prediction, else None. n_runs: real runs that it takes, None of a prediction.
        error: relative error of the mean training loss to expect at the worst recorded step. cost: in plain runs of
            this training. runs_of_same_accuracy: real runs whose mean would be as accurate as a prediction.
    """

    advice: Advice
    dynamics: Dynamics | None
    n_runs: int | None
    error: ExpectedError
    cost: float
    runs_of_same_accuracy: int | None = None

    @property
    def words(self) -> str:
        """What is to be done."""
        if self.dynamics is not None:
            return f"predict with {self.dynamics!r}"
        if self.advice is Advice.INTERPOLATE:
            return f"measure {self.n_runs} runs at anchors, and interpolate"
        return f"measure {self.n_runs} runs"

    @property
    def call(self) -> str:
        """The call that does it."""
        if self.dynamics is not None:
            return "predict(problem, sgd, n_steps, dynamics=found.dynamics)."
        if self.advice is Advice.INTERPOLATE:
            return "EnsembleSurface.fit(problem, sgd, n_steps), then .at(sgd) for each setting."
        return "measure(problem, sgd, n_steps, target=tolerance / 2)."


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What a prediction of this training would get wrong and cost, and what to do; ``str()`` is a report.

    Attributes:
        options: every way, with error and cost. best: the advised one, the cheapest within the tolerance.
        checks: by name. tolerance: the relative error that was asked for.
        sentence: the advice in words.
        steps: int64 [T], the first 0. measured, linearized: mean training loss of the pilot's runs of the network and
            of the linearized model, [T]: measured, not predicted. n_pairs: how many of each.
        spread: standard deviation of one run's loss over the mean, at the worst recorded step.
        cost: plain runs that the diagnosis itself took.
    """

    options: tuple[Option, ...]
    best: Option
    checks: Mapping[str, Check]
    tolerance: float
    sentence: str
    steps: Tensor
    measured: Tensor
    linearized: Tensor
    n_pairs: int
    spread: float
    cost: float

    @property
    def advice(self) -> Advice:
        """Which way is advised."""
        return self.best.advice

    @property
    def dynamics(self) -> Dynamics | None:
        """The advised dynamics, None where runs are advised."""
        return self.best.dynamics

    @property
    def predictor(self) -> Dynamics | None:
        """Older name of ``dynamics``."""
        return self.dynamics

    @property
    def n_runs(self) -> int | None:
        """The advised number of real runs, None where a prediction is advised."""
        return self.best.n_runs

    @property
    def expected_error(self) -> float:
        """Relative error to expect of what is advised."""
        return self.best.error.value

    @property
    def frozen_error(self) -> float:
        """Relative error to expect of the frozen kernel; infinite where a mean loss is not finite."""
        return self.option(Advice.FROZEN_KERNEL).error.value

    @property
    def moving_error(self) -> float:
        """Relative error to expect of the moving kernel; infinite beyond what it was held against."""
        return self.option(Advice.MOVING_KERNEL).error.value

    @property
    def regime(self) -> Regime:
        """The kernel's motion along a run in a word.

        "kernel" up to the threshold of the check, "rich" beyond half of itself, where features are learned.
        """
        drift = self.checks["kernel_drift"]
        if drift.value <= drift.threshold:
            return "kernel"
        return "rich" if drift.value > RICH_DRIFT else "between"

    @property
    def for_answer(self) -> AdviceForAnswer:
        """The advice as ``answer(problem, sgd, n_steps, advice=...)`` follows it."""
        best = self.best
        way: Way = "predict" if best.dynamics is not None else "measure"
        runs = best.n_runs
        if best.advice is Advice.INTERPOLATE:
            way, runs = "surface", None
        bounds = (best.error.low, best.error.high)
        return AdviceForAnswer(way, best.dynamics, runs, best.error.value, bounds, best.cost, self.sentence)

    def option(self, advice: Advice) -> Option:
        """The option of that kind."""
        return next(each for each in self.options if each.advice is advice)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a check: name, value, threshold, grade, source, sentence (needs pandas)."""
        import pandas

        rows = [vars(check) | {"grade": check.grade.value} for check in self.checks.values()]
        return pandas.DataFrame(rows, columns=["name", "value", "threshold", "grade", "source", "sentence"])

    def __str__(self) -> str:
        table = [f"{'way':>14} {'error to expect':>26} {'cost in runs':>13}"]
        for each in self.options:
            cost = f"{each.cost:.2g}" if math.isfinite(each.cost) else "unknown"
            same = each.runs_of_same_accuracy
            as_many = f"   the mean of {same} runs is as accurate" if same is not None else ""
            runs = f"   {each.n_runs} runs" if each.n_runs is not None else ""
            table.append(f"{each.advice.value:>14} {each.error!s:>26} {cost:>13}{as_many}{runs}")
        table += ["", f"{'check':>14} {'value':>9} {'threshold':>9}"]
        for check in self.checks.values():
            table.append(f"{check.name:>14} {check.value:>9.3g} {check.threshold:>9.3g}  {check.grade.value:8}")
            table.append(f"{'':>16}{check.sentence}")
            table.append(f"{'':>16}threshold: {check.source}")
        return told(
            asked=f"how to know the mean train loss within {100 * self.tolerance:g} % at every recorded step?",
            answer=f"{self.sentence} Regime: {self.regime}.",
            sure=f"intervals of about 80 %, from {self.n_pairs} pairs of runs, for {self.cost:.2g} plain runs in all "
            "(docs/diagnosis.md).",
            do=self.best.call,
            table=table,
            terms=["dynamics", "frozen kernel", "moving kernel", "mean-square limit"],
        )
