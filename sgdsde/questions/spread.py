"""How much do two runs of one setting differ, and how many does a mean need?"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgdsde import plots
from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._words import percent, told
from sgdsde.bands import HIGH, LOW, LossBand
from sgdsde.questions.arrival import Side, band_of
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STANDARD_ERRORS = 2.0
"""That an error or a difference must be to be told from chance, about 95 %."""

EXAMPLE = 0.05
"""Relative error for which the words name the number of runs."""


@dataclass(frozen=True, eq=False)
class SpreadOverRuns:
    """The spread of a loss over runs that differ in their minibatches alone; ``str()`` says it in words.

    Attributes:
        trajectory: what was asked. side: "train" or "test".
        relative_std: [T], standard deviation over runs as a share of the mean, at each recorded step.
        relative_std_error: [T], standard error of that, of samples (by leaving out one run at a time); else 0.
        low, high: [T], the 10 and 90 % quantiles.
    Exactness: the initial weights are the same in every run: a spread over initializations comes on top. Of samples:
        unbiased in the variance. Of moments in closed form: standard deviations by a Gaussian closure, quantiles of a
        Gamma law.
    """

    trajectory: Trajectory
    side: Side
    relative_std: Tensor
    relative_std_error: Tensor
    low: Tensor
    high: Tensor

    @property
    def steps(self) -> Tensor:
        """int64 [T], the recorded steps."""
        return self.trajectory.steps

    @property
    def band(self) -> LossBand:
        """The losses that were asked."""
        return self.trajectory.losses[self.side]

    def at(self, step: int | None = None) -> float:
        """The relative standard deviation at a recorded step, the last one by default.

        Raises:
            ValueError: a step that is not recorded.
        """
        return float(self.relative_std[self._row(step)])

    def runs_needed(self, relative_error: float, step: int | None = None) -> int:
        """How many runs their mean needs to lie within a relative error of the expected loss, at 2 standard errors.

        Args:
            relative_error: 0.05 for 5 %. step: a recorded one, default the last.
        """
        ratio = STANDARD_ERRORS * self._finite(step) / positive_number("relative_error", relative_error)
        return max(1, math.ceil(ratio**2 - 1e-12))

    def smallest_difference(self, n_runs: int, step: int | None = None) -> float:
        """The relative difference of two settings of this spread that n_runs of each can tell, at 2 standard errors."""
        n_runs = whole_number("n_runs", n_runs, minimum=1)
        return STANDARD_ERRORS * math.sqrt(2 / n_runs) * self._finite(step)

    def _row(self, step: int | None) -> int:
        if step is None:
            return len(self.steps) - 1
        found = (self.steps == whole_number("step", step)).nonzero()
        if not len(found):
            raise ValueError(complaint("step", "a recorded step", step, f"use one of {self.steps.tolist()}"))
        return int(found[0])

    def _finite(self, step: int | None) -> float:
        value = self.at(step)
        if not math.isfinite(value):
            raise ValueError(
                complaint("the spread", "finite", value, "ask at a step before the loss diverges or becomes zero")
            )
        return value

    @property
    def sentence(self) -> str:
        """The spread at the last step in words, and the runs that a mean needs."""
        last, value = int(self.steps[-1]), self.at()
        if value == 0:
            return (
                f"At step {last} the {self.side} loss of every run is the same: a full batch has no noise, and a "
                "dynamics without noise of minibatches has no spread to tell."
            )
        if not math.isfinite(value):
            return f"At step {last} the {self.side} loss has no finite spread: runs diverge, or their mean is zero."
        error = float(self.relative_std_error[-1])
        plus = f" (+- {percent(error)})" if error else ""
        low, high = float(self.low[-1]), float(self.high[-1])
        return (
            f"At step {last} one run's {self.side} loss differs from the mean by {percent(value)}{plus}, 80 % of the "
            f"runs lie between {low:.4g} and {high:.4g}; two single runs differ by chance by up to "
            f"{percent(self.smallest_difference(1))}, and {self.runs_needed(EXAMPLE)} runs give the mean to "
            f"{percent(EXAMPLE)}."
        )

    def __str__(self) -> str:
        asked = f"how much does the {self.side} loss differ from run to run? Looked up in: {self.trajectory.dynamics}."
        sure = "the initial weights are the same in every run; other initial weights differ by more. "
        if self.trajectory.is_past_limit:
            sure = "not at all: the learning rate is past the mean-square limit. "
        elif self.band.has_samples:
            sure += f"From {len(self.band.samples if self.band.samples is not None else ())} runs."
        else:
            sure += "A prediction of the linearized model; its quantiles are those of a Gamma law."
        do = "compare settings by means over enough runs: .runs_needed(0.05), .smallest_difference(n_runs)."
        terms = ["run", *([] if self.band.has_samples else ["linearized model"])]
        return told(asked=asked, answer=self.sentence, sure=sure.strip(), do=do, terms=terms)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The axes of a picture: the relative standard deviation over the steps, shaded by two standard errors.

        Path and errors are those of ``Trajectory.plot``.
        """
        kind = self.trajectory.origin
        color, at = plots.COLORS[kind, self.side], self.steps.numpy()
        with plots.canvas(path, size=(6.4, 3.2)) as figure:
            axes = figure.subplots()
            value, error = 100 * plots.finite(self.relative_std), 200 * plots.finite(self.relative_std_error)
            axes.plot(at, value, color=color, label=f"{kind}, {self.side}")
            if bool((self.relative_std_error > 0).any()):
                axes.fill_between(at, value - error, value + error, color=color, alpha=0.25, linewidth=0)
            axes.set_ylim(bottom=0)
            plots.scale_steps(axes, int(self.steps[-1]))
            axes.set_ylabel("standard deviation over runs\n[% of the mean loss]")
            plots.title(axes, self.sentence)
            axes.legend()
        return axes


def spread_over_runs(trajectory: Trajectory, *, side: Side = "train") -> SpreadOverRuns:
    """The spread of the loss over runs of one setting, which differ in their minibatches alone.

    Args:
        trajectory: of ``run_ensemble`` with two runs at least, or of ``predict``. side: "train" or "test".
    Returns:
        A ``SpreadOverRuns``: ``.relative_std``, ``.runs_needed(0.05)``, ``.smallest_difference(n_runs)``.
    Raises:
        ValueError: a single run; a dynamics that gives no spread; the test loss of a trajectory without one.
    """
    if not isinstance(trajectory, Trajectory):
        remedy = "pass what predict or run_ensemble returned"
        raise TypeError(complaint("trajectory", "a Trajectory", type(trajectory).__name__, remedy))
    band = band_of(trajectory, side)
    if band.samples is not None and len(band.samples) < 2:
        raise ValueError(complaint("trajectory", "of two runs at least", "one run", "use n_runs=64"))
    if bool(band.std.isnan().any()):
        remedy = "use dynamics.MomentRecursion(), or SDEPaths()"
        raise ValueError(complaint("trajectory", "of a dynamics that gives a spread", trajectory.dynamics, remedy))
    ratio = band.std / band.mean
    relative = torch.where((band.std == 0) & (band.mean == 0), 0.0, ratio)
    error = torch.zeros_like(relative) if band.samples is None else _jackknife(band.samples)
    return SpreadOverRuns(trajectory, side, relative, error, band.quantile(LOW), band.quantile(HIGH))


def _jackknife(samples: Tensor) -> Tensor:
    """The standard error of std / mean over the first dimension, [T], by leaving out one run at a time."""
    n = len(samples)
    if n < 3:
        return torch.full_like(samples[0], torch.nan)
    mean = samples.mean(0)
    deviation = samples - mean
    left_mean = (n * mean - samples) / (n - 1)
    square = deviation.square().sum(0) - deviation.square() * n / (n - 1)
    values = (square.clamp_min(0) / (n - 2)).sqrt() / left_mean
    spread = ((n - 1) / n * (values - values.mean(0)).square().sum(0)).sqrt()
    return torch.where(mean == 0, 0.0, spread)
