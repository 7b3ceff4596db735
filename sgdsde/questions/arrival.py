"""How long until the loss is below a number?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sgdsde import plots
from sgdsde._checks import complaint, finite_number, fraction
from sgdsde._words import percent, told
from sgdsde.bands import HIGH, LOW, LossBand, draw_loss, label_bands
from sgdsde.questions.crossing import Crossing, first_below, said, where_from
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Side: TypeAlias = Literal["train", "test"]

STANDARD_ERRORS = 2.0
"""Of the mean loss, on either side, that the interval of its step covers."""

STILL_FALLING = 0.98
"""Share of the loss a third of the steps before, below which the last loss is called falling."""


@dataclass(frozen=True, eq=False)
class StepsTo:
    """The first step at which a loss is below a number, of the mean loss and of the runs; ``str()`` says it in words.

    Attributes:
        trajectory: what was asked. side: "train" or "test". loss: the number.
        of_mean: the ``Crossing`` of the mean loss; None where it is not below at any recorded step.
        earliest, latest: the same for the mean loss minus and plus two standard errors (sampled means) and the
            estimated error and truncation error of a prediction; None where not reached.
    Exactness: between recorded steps a straight line in log loss. A run that dips below and back between two recorded
        steps is seen late. Spread of samples: exact for these runs; those that do not arrive count as later than the
        last recorded step. Spread of moments in closed form: from the law at each step (a Gamma law), which tells no
        run's path; the share of runs that were below at some step is then at least what is said, so that the quantiles
        of the step are bounds from above (as far as the Gamma law holds), equal where the loss of every run only falls.
        Sampled dynamics (``LinearizedSGD``) have paths, and no such bound is needed.
    """

    trajectory: Trajectory
    side: Side
    loss: float
    of_mean: Crossing | None
    earliest: Crossing | None
    latest: Crossing | None

    @property
    def step(self) -> int | None:
        """The first step at which the mean loss is below; None: not within the record."""
        return None if self.of_mean is None else self.of_mean.step

    @property
    def interval(self) -> tuple[int | None, int | None]:
        """Steps between which the mean arrives, by the errors of the mean; None: not within the record."""
        return tuple(None if c is None else c.step for c in (self.earliest, self.latest))  # type: ignore[return-value]

    @property
    def last_step(self) -> int:
        """The last recorded step."""
        return int(self.trajectory.steps[-1])

    @property
    def run_steps(self) -> Tensor | None:
        """int64 [n_runs], the first step of each run; last_step + 1 = not within the record. None without samples."""
        samples = self.band.samples
        if samples is None:
            return None
        steps, never = self.trajectory.steps.numpy(), self.last_step + 1
        found = [first_below(steps, run, self.loss) for run in samples.numpy()]
        return torch.tensor([never if c is None else c.step for c in found], dtype=torch.int64)

    @property
    def band(self) -> LossBand:
        """The losses that were asked."""
        return self.trajectory.losses[self.side]

    def share_by(self, step: int) -> float:
        """The share of runs below at some recorded step up to this one; of closed forms a bound from below."""
        upto = self.trajectory.steps <= step
        if self.band.samples is not None:
            return float((self.band.samples[:, upto] < self.loss).any(1).double().mean()) if upto.any() else 0.0
        return float(self.band.share_below(self.loss)[upto].max()) if upto.any() else 0.0

    @property
    def share(self) -> float:
        """The share of runs that are below at some recorded step."""
        return self.share_by(self.last_step)

    @property
    def share_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of Clopper and Pearson for the share of all possible runs; None without samples."""
        samples = self.band.samples
        if samples is None:
            return None
        n = len(samples)
        k = round(self.share * n)
        low = 0.0 if k == 0 else float(stats.beta.ppf(0.025, k, n - k + 1))
        return low, 1.0 if k == n else float(stats.beta.ppf(0.975, k + 1, n - k))

    def quantile(self, q: float) -> int | None:
        """The step by which a share q of the runs has arrived; None: later than the record, or never.

        Raises:
            ValueError: q outside of (0, 1).
        """
        q = fraction("q", q)
        if not 0 < q < 1:
            raise ValueError(complaint("q", "above 0 and below 1", q, "0.5 asks for the median"))
        if (steps := self.run_steps) is not None:
            found = int(np.quantile(steps.numpy(), q, method="inverted_cdf"))
            return found if found <= self.last_step else None
        crossing = first_below(self.trajectory.steps.numpy(), self.band.quantile(q).numpy(), self.loss)
        return None if crossing is None else crossing.step

    @property
    def sentence(self) -> str:
        """The answer in words, with its numbers."""
        what = f"the {self._mean} {self.side} loss"
        if self.of_mean is None:
            lowest = int(self.band.mean.nan_to_num(torch.inf).argmin())
            value, step = float(self.band.mean[lowest]), int(self.trajectory.steps[lowest])
            answer = f"{what[0].upper()}{what[1:]} is not below {self.loss:.4g} at any of the {self.last_step} steps"
            return f"{answer}; the smallest is {value:.4g}, at step {step}. {self._runs()}"
        if self.of_mean.after < 0:
            at = f"already at step {self.of_mean.step}, the first recorded"
            return f"{what[0].upper()}{what[1:]} is below {self.loss:.4g} {at}. {self._runs()}"
        note = where_from([self.of_mean])
        note = f" ({note})" if note else ""
        answer = (
            f"{what[0].upper()}{what[1:]} is first below {self.loss:.4g} {said(self.of_mean, self.last_step)}{note}"
        )
        return f"{answer}. {self._runs()}"

    @property
    def _mean(self) -> str:
        return "mean" if self.band.has_samples else "expected"

    def _runs(self) -> str:
        """The spread over runs in words."""
        if not self.band.has_samples and not bool((self.band.std > 0).any()):
            return "No spread over runs is known."
        low, high = self.quantile(LOW), self.quantile(HIGH)
        text = f"Of the runs, {percent(LOW)} arrive by step {low}" if low is not None else "Of the runs"
        if low is None:
            share = "at least " * (not self.band.has_samples) + percent(self.share)
            return f"{text}, {share} arrive within the record."
        if high is None:
            return f"{text}; {percent(self.share)} arrive within the record, the others later or never."
        return f"{text} and {percent(HIGH)} by step {high}."

    def __str__(self) -> str:
        asked = f"at which step is the {self.side} loss first below {self.loss:.4g}? Looked up in: "
        asked += f"{self.trajectory.dynamics}, {len(self.trajectory.steps)} recorded steps up to {self.last_step}."
        terms = ["run", *(["mean-square limit"] if self.trajectory.is_past_limit else [])]
        terms += [] if self.band.has_samples else ["linearized model"]
        return told(asked=asked, answer=self.sentence, sure=self._sure(), do=self._do(), terms=terms)

    def _sure(self) -> str:
        if self.trajectory.is_past_limit:
            return (
                "not at all: the learning rate is past the mean-square limit "
                f"{self.trajectory.mean_square_limit:.4g}, where no finite prediction can be believed."
            )
        parts = []
        if self.earliest != self.latest:
            first, last = (said(c, self.last_step) for c in (self.earliest, self.latest))
            parts.append(
                f"by the error of the {self._mean} loss the true mean arrives {first} at the earliest, {last} at the "
                "latest"
            )
        if self.band.samples is not None:
            low, high = self.share_interval or (0.0, 1.0)
            n_runs = len(self.band.samples)
            parts.append(
                f"{round(self.share * n_runs)} of {n_runs} runs arrive, so {percent(low)} to {percent(high)} of all "
                "possible ones (95 % interval); a dip between recorded steps is not seen"
            )
        elif bool((self.band.std > 0).any()):
            parts.append(
                "the spread comes from the law at each step (of Gamma shape), which tells no run's path: runs that "
                "fluctuate around the level arrive earlier than said"
            )
        if self.trajectory.assumptions:
            parts.append(f"the prediction assumes that {'; '.join(self.trajectory.assumptions)}")
        return "; ".join(parts) + "." if parts else "as far as the prediction holds."

    def _do(self) -> str:
        if self.trajectory.is_past_limit:
            return "lower the learning rate (stability.max_lr), or measure with run_ensemble."
        diverged = int((self.trajectory.diverged_at <= self.last_step).sum())
        if diverged:
            return f"{diverged} runs diverged, so the mean is infinite from there on; look at quantile(q), or lower lr."
        if self.of_mean is None:
            mean, steps = self.band.mean, self.trajectory.steps
            before = int((steps <= 2 * self.last_step / 3).sum()) - 1
            if float(mean[-1]) < STILL_FALLING * float(mean[max(before, 0)]):
                return "the loss still falls at the end: ask for more steps."
            return "the loss has nearly stopped falling: more steps will not do, a smaller lr or a larger batch may."
        if not self.of_mean.is_exact and self.of_mean.after >= 0:
            record = f"record=range({self.of_mean.after}, {self.of_mean.by + 1})"
            return f"for the exact step, predict or measure again with {record}."
        return "nothing; the step is exact for this curve."

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The axes of a picture: the loss with its band, the level, and the steps at which mean and runs arrive.

        Path and errors are those of ``Trajectory.plot``.
        """
        kind = self.trajectory.origin
        with plots.canvas(path, size=(6.4, 3.6)) as figure:
            axes = figure.subplots()
            draw_loss(axes, self.trajectory.steps, self.band, kind, self.side)
            axes.axhline(self.loss, color="0.4", linestyle=":", linewidth=1, label=f"loss {self.loss:.4g}")
            if self.of_mean is not None:
                axes.plot([self.of_mean.step], [self.loss], "o", color="#d55e00", label="the mean arrives", zorder=5)
            low, high = self.quantile(LOW), self.quantile(HIGH)
            if low is not None and high is not None and high > low:
                words = f"{percent(LOW)} to {percent(HIGH)} of the runs arrive"
                axes.plot([low, high], [self.loss] * 2, color="#d55e00", linewidth=4, alpha=0.5, label=words)
            plots.scale_losses(axes)
            plots.scale_steps(axes, self.last_step)
            plots.title(axes, self.sentence)
            label_bands(axes, self.band, kind)
        return axes


def steps_to(trajectory: Trajectory, *, loss: float, side: Side = "train") -> StepsTo:
    """The first step at which the loss is below a number, with its spread over runs.

    Args:
        trajectory: of ``predict`` or ``run_ensemble``. loss: the number, positive.
        side: whose loss, "train" or "test".
    Returns:
        A ``StepsTo``: ``.step`` of the mean loss, ``.quantile(q)`` of the runs, ``.share`` that arrives. None stands
        for later than the last recorded step.
    Raises:
        ValueError: a loss that is not positive; the test loss of a trajectory without one.
    """
    if not isinstance(trajectory, Trajectory):
        remedy = "pass what predict or run_ensemble returned"
        raise TypeError(complaint("trajectory", "a Trajectory", type(trajectory).__name__, remedy))
    level = finite_number("loss", loss)
    if level <= 0:
        raise ValueError(complaint("loss", "positive", loss))
    band, steps = band_of(trajectory, side), trajectory.steps.numpy()
    error = STANDARD_ERRORS * band.standard_error.nan_to_num(0.0)
    if side == "train":
        if trajectory.truncation_error is not None:
            error = error + trajectory.truncation_error
        if trajectory.estimated_error is not None:
            error = error + trajectory.estimated_error * band.mean
    curves = (band.mean, band.mean - error, band.mean + error)
    found = [first_below(steps, torch.where(torch.isfinite(c), c, torch.inf).numpy(), level) for c in curves]
    return StepsTo(trajectory, side, level, *found)


def band_of(trajectory: Trajectory, side: Side) -> LossBand:
    """The losses of one side.

    Raises:
        ValueError: another word, or no test set.
    """
    if side not in ("train", "test"):
        raise ValueError(complaint("side", "'train' or 'test'", repr(side)))
    if side not in trajectory.losses:
        remedy = "give the Problem x_test and y_test, or ask for side='train'"
        raise ValueError(complaint("side", "'train' for a problem without a test set", repr(side), remedy))
    return trajectory.losses[side]
