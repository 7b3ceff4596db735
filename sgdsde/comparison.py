"""Comparison of predicted and measured losses: errors relative to loss and noise, and a verdict."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sgdsde import plots
from sgdsde._checks import complaint
from sgdsde._words import percent, told
from sgdsde.bands import LossBand, draw_loss, label_bands
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOLERANCE = 0.03
"""Relative error of the loss up to which a prediction agrees."""

ERROR_RATE = 0.01
"""Chance that exact predictions are called anything worse than WITHIN_NOISE, over all steps of one curve."""


class Verdict(Enum):
    """AGREES: within 3 % at every step. WITHIN_NOISE: wherever it is not, the difference is no larger than chance
    explains at a family-wise error rate of 1 %. DISAGREES: neither. OUT_OF_RANGE: a curve that is not finite, or a
    prediction past the mean-square limit."""

    AGREES = "agrees"
    WITHIN_NOISE = "within noise"
    DISAGREES = "disagrees"
    OUT_OF_RANGE = "out of range"


_REMEDIES = {
    Verdict.AGREES: "use the prediction for this setting and those near it.",
    Verdict.WITHIN_NOISE: "for a sharper test measure more runs: the standard error falls with their square root.",
    Verdict.DISAGREES: "error_budget(problem, sgd, n_steps, n_runs) says where the gap comes from, diagnose which "
    "dynamics to use; a kernel that moves needs dynamics.MovingKernel().",
    Verdict.OUT_OF_RANGE: "lower the learning rate (stability.max_lr), or believe the runs alone.",
}
_TERMS = {Verdict.WITHIN_NOISE: ("within noise",), Verdict.OUT_OF_RANGE: ("mean-square limit",)}


@dataclass(frozen=True, eq=False)
class CurveComparison:
    """One loss curve, at the steps that both trajectories hold.

    Attributes:
        steps: int64 [T]. predicted, measured: mean losses [T].
        relative_error: (predicted - measured) / measured, [T].
        z_score: (predicted - measured) / (max(measured std, predicted std) / sqrt(n_runs)), [T]; 0 at step 0. Where the
            first is itself interpolated or measured, its standard error joins the denominator.
        coverage: fraction of the measured runs between the predicted 2.5 % and 97.5 % quantiles, [T]; 0.95 is ideal,
            NaN where the prediction has no spread.
    """

    steps: Tensor
    predicted: Tensor
    measured: Tensor
    relative_error: Tensor
    z_score: Tensor
    coverage: Tensor

    @property
    def max_relative_error(self) -> float:
        """The largest absolute relative error over the common steps."""
        return float(self.relative_error.abs().max())

    @property
    def is_finite(self) -> bool:
        """Whether both losses are finite at every step."""
        return bool((torch.isfinite(self.predicted) & torch.isfinite(self.measured)).all())

    def exceeding(self) -> Tensor:
        """Steps where the error is beyond both 3 % and chance."""
        threshold = float(stats.norm.isf(ERROR_RATE / 2 / max(len(self.steps), 1)))
        bad = (self.relative_error.abs() > TOLERANCE) & ~(self.z_score.abs() <= threshold)
        return self.steps[bad]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Comparison of a prediction with a measurement; ``str()`` says it in words, ``plot()`` draws it."""

    predicted: Trajectory
    measured: Trajectory
    train: CurveComparison
    test: CurveComparison | None

    @property
    def curves(self) -> dict[str, CurveComparison]:
        """The comparisons that there are, by ``"train"`` and ``"test"``."""
        return {"train": self.train} | ({"test": self.test} if self.test is not None else {})

    @property
    def verdict(self) -> Verdict:
        """How well prediction and measurement agree, in a word."""
        if self.predicted.is_past_limit or not all(curve.is_finite for curve in self.curves.values()):
            return Verdict.OUT_OF_RANGE
        if all(curve.max_relative_error <= TOLERANCE for curve in self.curves.values()):
            return Verdict.AGREES
        if all(len(curve.exceeding()) == 0 for curve in self.curves.values()):
            return Verdict.WITHIN_NOISE
        return Verdict.DISAGREES

    @property
    def sentence(self) -> str:
        """The verdict in one sentence with its numbers."""
        worst = {name: curve.max_relative_error for name, curve in self.curves.items()}
        errors = ", ".join(f"{name} {100 * error:.2g} %" for name, error in worst.items())
        compared = self.predicted.obtained or self.predicted.dynamics
        what = f"{compared} against {self.measured.n_runs} runs: largest relative error {errors}"
        if self.verdict is Verdict.OUT_OF_RANGE:
            limit = self.predicted.mean_square_limit
            reason = (
                f"the learning rate is past the mean-square limit {limit:.4g} of the initial kernel"
                if self.predicted.is_past_limit
                else ("a loss is not finite")
            )
            return f"Out of range: {reason}, so no agreement can be claimed. {what}."
        if self.verdict is Verdict.AGREES:
            return f"Agrees within {100 * TOLERANCE:.0f} % at every step. {what}."
        if self.verdict is Verdict.WITHIN_NOISE:
            return f"Within the noise of {self.measured.n_runs} runs (family-wise error rate {ERROR_RATE:.0%}). {what}."
        first = {name: curve.exceeding() for name, curve in self.curves.items()}
        where = ", ".join(f"{name} from step {int(bad[0])}" for name, bad in first.items() if len(bad))
        return f"Disagrees beyond {100 * TOLERANCE:.0f} % and beyond noise: {where}. {what}."

    def __str__(self) -> str:
        asked = f"does the prediction match the measured loss, at {len(self.train.steps)} steps that both recorded?"
        sure = (
            f"an exact prediction is called worse than within noise in {percent(ERROR_RATE)} of the cases (one curve)."
        )
        if self.predicted.assumptions:
            sure += f" The prediction assumes that {'; '.join(self.predicted.assumptions)}."
        terms = [self.predicted.origin, "measured", "run", "z", *_TERMS.get(self.verdict, ())]
        return told(
            asked=asked, answer=self.sentence, sure=sure, do=_REMEDIES[self.verdict], table=self._table(), terms=terms
        )

    def _table(self) -> list[str]:
        lines = [f"{'step':>8} {self.predicted.origin:>12} {'measured':>12} {'error':>9} {'z':>7}   (train loss)"]
        rows = torch.unique(torch.linspace(0, len(self.train.steps) - 1, 12).round().long())
        for name, curve in self.curves.items():
            if name == "test":
                lines.append(f"{'':>53}(test loss)")
            for i in rows.tolist():
                lines.append(
                    f"{int(curve.steps[i]):>8} {curve.predicted[i]:>12.5g} {curve.measured[i]:>12.5g} "
                    f"{100 * curve.relative_error[i]:>7.2f} % {curve.z_score[i]:>7.2f}"
                )
        return lines

    def plot(self, path: str | os.PathLike[str] | None = None) -> tuple[Axes, Axes]:
        """The two axes of a picture: losses above, relative errors below, the verdict as title.

        Above: measured means (solid) with the 10 to 90 % band of the runs, predicted means (dashed) with theirs. Below:
        the relative error of the predicted mean, shaded by two standard errors of the measured mean, between lines at
        3 %.

        Path and errors are those of ``Trajectory.plot``.
        """
        with plots.canvas(path, size=(6.4, 5.6)) as figure:
            top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
            for side in self.curves:
                draw_loss(top, self.measured.steps, self.measured.losses[side], "measured", side)
                self._draw_first(top, side)
                self._draw_error(bottom, side)
            plots.scale_losses(top)
            plots.scale_steps(bottom, int(max(self.predicted.steps[-1], self.measured.steps[-1])))
            plots.title(top, self.sentence)
            label_bands(top, self.predicted.train_loss, self.predicted.origin)
            for sign in (-1, 1):
                bottom.axhline(sign * 100 * TOLERANCE, color="0.4", linestyle=":", linewidth=1)
            bottom.axhline(0, color="0.4", linewidth=0.8)
            bottom.set_ylabel("relative error [%]")
            note = f"({self._first} - measured) / measured; shaded: two standard errors of the measurement; "
            note += f"dotted: {100 * TOLERANCE:.0f} %"
            bottom.set_title(note, fontsize=8, color="0.3")
        return top, bottom

    @property
    def _first(self) -> str:
        """The word of the first curve, told from that of the second."""
        return "also measured" if self.predicted.origin == "measured" else self.predicted.origin

    def _draw_first(self, axes: Axes, side: str) -> None:
        first = self.predicted
        look = "predicted" if first.origin == "measured" else first.origin
        draw_loss(axes, first.steps, first.losses[side], look, side, name=self._first)

    def _draw_error(self, axes: Axes, side: str) -> None:
        curve, color = self.curves[side], plots.COLORS["predicted", side]
        rows = np.searchsorted(self.measured.steps.numpy(), curve.steps.numpy())
        steps, error = curve.steps.numpy(), 100 * plots.finite(curve.relative_error)
        noise = 200 * plots.finite(self.measured.losses[side].standard_error)[rows] / plots.finite(curve.measured)
        axes.plot(steps, error, color=color, label=side)
        axes.fill_between(steps, error - noise, error + noise, color=color, alpha=0.25, linewidth=0)


def compare(predicted: Trajectory, measured: Trajectory) -> Comparison:
    """The comparison of two trajectories of one problem at their common steps.

    Args:
        predicted: of ``predict``. measured: of ``run_ensemble``, for the same problem and SGD.
    Raises:
        ValueError: different problems, fewer than two common steps, or a measured trajectory without runs.
    """
    for name, value in (("predicted", predicted), ("measured", measured)):
        if not isinstance(value, Trajectory):
            raise TypeError(complaint(name, "a Trajectory", type(value).__name__))
    if predicted.problem_digest != measured.problem_digest:
        received = f"digests {predicted.problem_digest} and {measured.problem_digest}"
        remedy = "predict and measure with the same Problem"
        raise ValueError(complaint("predicted and measured", "of the same problem", received, remedy))
    if measured.n_runs < 1:
        remedy = "swap the arguments, or use run_ensemble"
        raise ValueError(complaint("measured", "an ensemble of runs", measured.dynamics, remedy))
    common = sorted(set(predicted.steps.tolist()) & set(measured.steps.tolist()))
    if len(common) < 2:
        remedy = "use the same record for both"
        raise ValueError(complaint("predicted and measured", "recorded at two common steps at least", common, remedy))
    steps = torch.tensor(common)
    rows = torch.searchsorted(predicted.steps, steps), torch.searchsorted(measured.steps, steps)
    if not torch.allclose(predicted.times[rows[0]], measured.times[rows[1]], rtol=1e-9, atol=0):
        remedy = "predict and measure with the same SGD"
        raise ValueError(complaint("predicted and measured", "of the same learning rates", "different times", remedy))
    train = _curve(steps, rows, predicted, measured, "train")
    both = predicted.test_loss is not None and measured.test_loss is not None
    return Comparison(predicted, measured, train, _curve(steps, rows, predicted, measured, "test") if both else None)


def _curve(
    steps: Tensor, rows: tuple[Tensor, Tensor], first: Trajectory, second: Trajectory, side: str
) -> CurveComparison:
    predicted, measured = first.losses[side], second.losses[side]
    mean, other = predicted.mean[rows[0]], measured.mean[rows[1]]
    difference = mean - other
    error = torch.fmax(measured.std[rows[1]], predicted.std[rows[0]]) / second.n_runs**0.5
    if first.origin != "predicted":
        error = (error.square() + predicted.standard_error[rows[0]].square()).sqrt()
    z_score = torch.where(steps == 0, 0.0, difference / error)
    z_score = torch.where(difference == 0, 0.0, z_score)
    relative = torch.where(difference == 0, 0.0, difference / other)
    return CurveComparison(steps, mean, other, relative, z_score, _coverage(rows, predicted, measured))


def _coverage(rows: tuple[Tensor, Tensor], predicted: LossBand, measured: LossBand) -> Tensor:
    low, high = predicted.quantile(0.025)[rows[0]], predicted.quantile(0.975)[rows[0]]
    if measured.samples is None:
        return torch.full_like(low, torch.nan)
    samples = measured.samples[:, rows[1]]
    inside = ((samples >= low) & (samples <= high)).double().mean(0)
    return torch.where(predicted.std[rows[0]] > 0, inside, torch.nan)
