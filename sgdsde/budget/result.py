"""The result of an error budget: a table, a picture, and the numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sgdsde import plots
from sgdsde._words import told

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

TERMS = (
    "linearization",
    "monte_carlo",
    "non_gaussian",
    "discretization",
    "frozen_noise",
    "closure",
    "kernel_motion",
)
"""Names of the terms, in the order in which they lead from the measurement to the prediction."""

TERM_LOOKS = {
    "linearization": ("#0173b2", "linearization"),
    "monte_carlo": ("#b5b5b5", "Monte-Carlo"),
    "non_gaussian": ("#de8f05", "non-Gaussian noise"),
    "discretization": ("#029e73", "discretization"),
    "frozen_noise": ("#d55e00", "frozen noise"),
    "closure": ("#cc78bc", "closure"),
    "kernel_motion": ("#56b4e9", "kernel motion"),
}
"""Color and label of each term of an error budget."""

_REMEDIES = {
    "linearization": "the network leaves its linearized model: predict with dynamics.MovingKernel(), or widen it.",
    "monte_carlo": "most of the gap is chance: measure more runs.",
    "non_gaussian": "the noise of small batches is not Gaussian: predict with dynamics.LinearizedSGD().",
    "discretization": "steps are too large for a differential equation: predict with dynamics.MomentRecursion().",
    "frozen_noise": "the noise changes as the loss falls: predict with dynamics.MomentRecursion() or SDEPaths().",
    "closure": "the dynamics leaves something out: predict with dynamics.MomentRecursion() or LinearizedSGD().",
    "kernel_motion": "the kernel moves: compare dynamics.MovingKernel() with a smaller tolerance, or measure.",
}
"""What to do where a term is the largest."""

ROWS = 12
"""Steps of a printed table."""


@dataclass(frozen=True, eq=False)
class Term:
    """One share of the gap: the difference of two curves.

    Attributes:
        value: [T], in the units of the loss. standard_error: [T], of the samples that it rests on; 0 where it is exact.
        note: which difference it is, or why it is zero.
    """

    value: Tensor
    standard_error: Tensor
    note: str

    @property
    def is_zero(self) -> bool:
        """Whether it vanishes exactly, at every step."""
        return not bool((self.value != 0).any() | (self.standard_error != 0).any())


@dataclass(frozen=True, eq=False)
class CurveBudget:
    """The budget of one loss curve at T steps.

    Attributes:
        measured, predicted: mean losses, [T]. terms: by name, as ``TERMS`` has them.
        gap_standard_error: [T], of measured - predicted. It is not that of the sum of the terms' errors, which are
            dependent: paired runs and the runs' sampling error are two sides of the same draws.
    """

    measured: Tensor
    predicted: Tensor
    gap_standard_error: Tensor
    terms: Mapping[str, Term]

    @property
    def gap(self) -> Tensor:
        """measured - predicted, [T]: the sum of all terms, to rounding."""
        return self.measured - self.predicted


@dataclass(frozen=True, eq=False)
class ErrorBudget:
    """Error of a prediction, split by cause; ``str()`` says it in words, ``plot()`` draws it.

    Attributes:
        steps: int64 [T]. times: [T]. n_runs: measured runs. dynamics: the theory that predicted.
        train, test: a ``CurveBudget`` each; test is None without a test set.
        terms, gap, gap_standard_error: those of the training loss.
    """

    steps: Tensor
    times: Tensor
    n_runs: int
    dynamics: str
    train: CurveBudget
    test: CurveBudget | None

    @property
    def terms(self) -> Mapping[str, Term]:
        """The terms of the training loss, by name."""
        return self.train.terms

    @property
    def gap(self) -> Tensor:
        """measured - predicted training loss, [T]."""
        return self.train.gap

    @property
    def gap_standard_error(self) -> Tensor:
        """The standard error of the training loss's gap, [T]."""
        return self.train.gap_standard_error

    @property
    def curves(self) -> dict[str, CurveBudget]:
        """The budgets that there are, by ``"train"`` and ``"test"``."""
        return {"train": self.train} | ({"test": self.test} if self.test is not None else {})

    @property
    def sentence(self) -> str:
        """The gap of the training loss where it is largest, and the term that makes most of it there."""
        curve = self.train
        relative = curve.gap / curve.measured
        at = int(relative.abs().nan_to_num().argmax())
        name, term = max(curve.terms.items(), key=lambda item: abs(float(item[1].value[at])))
        share, error = (100 * float(part[at] / curve.measured[at]) for part in (term.value, term.standard_error))
        side = "below" if relative[at] > 0 else "above"
        return (
            f"{self.dynamics} is at most {100 * abs(float(relative[at])):.2g} % {side} the mean loss of {self.n_runs} "
            f"runs, at step {int(self.steps[at])}; the largest term there is {name}, {share:+.2g} % +- {error:.2g} %."
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for every step and curve: losses, gap, and value and standard error of each term (needs pandas)."""
        import pandas

        frames = []
        for side, curve in self.curves.items():
            columns: dict[str, Any] = {"curve": side, "step": self.steps.numpy(), "time": self.times.numpy()}
            columns |= {name: getattr(curve, name).numpy() for name in ("measured", "predicted", "gap")}
            columns["gap_standard_error"] = curve.gap_standard_error.numpy()
            for name, term in curve.terms.items():
                columns |= {name: term.value.numpy(), f"{name}_standard_error": term.standard_error.numpy()}
            frames.append(pandas.DataFrame(columns))
        return pandas.concat(frames, ignore_index=True)

    def plot(self, path: str | os.PathLike[str] | None = None) -> tuple[Axes, ...]:
        """The axes of a picture, one a curve: the terms stacked over the steps, the gap as a line.

        In per cent of the measured loss; terms above zero are stacked upwards, those below downwards. The gap's error
        bars are two standard errors. Terms that are exactly zero are left out.

        Path and errors are those of ``Trajectory.plot``.
        """
        curves = self.curves
        with plots.canvas(path, size=(6.4, 0.6 + 2.8 * len(curves))) as figure:
            panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
            for axes, (side, curve) in zip(panels, curves.items()):
                _draw_terms(axes, self.steps.numpy(), curve)
                axes.set_ylabel(f"{side}: measured - predicted\n[% of measured]", fontsize=8)
            plots.title(panels[0], self.sentence)
            panels[0].legend(ncols=2)
            plots.scale_steps(panels[-1], int(self.steps[-1]))
        return tuple(panels)

    def __str__(self) -> str:
        lines: list[str] = []
        for side, curve in self.curves.items():
            lines += [
                *([""] if lines else []),
                f"{side} loss: measured - predicted and its terms, in % of the measured loss",
                *self._rows(curve),
            ]
        lines.append("")
        lines += [f"{name}: {term.note}" for name, term in self.terms.items()]
        return told(
            asked=f"where does the gap between the loss of {self.n_runs} measured runs and the prediction come from?",
            answer=self.sentence,
            sure="behind +- stands one standard error; a term below two may be chance. The terms add up to the gap.",
            do=_REMEDIES[self._largest],
            table=lines,
            terms=["measured", "predicted", "run", "standard error", "linearized model"],
        )

    @property
    def _largest(self) -> str:
        """The term that makes most of the training loss's gap where it is largest."""
        at = int((self.train.gap / self.train.measured).abs().nan_to_num().argmax())
        return max(self.terms, key=lambda name: abs(float(self.terms[name].value[at])))

    def _rows(self, curve: CurveBudget) -> list[str]:
        shown = {name: term for name, term in curve.terms.items() if not term.is_zero}
        header = f"{'step':>8} {'measured':>11} {'predicted':>11} {'gap':>17}"
        lines = [header + "".join(f" {name:>17}" for name in shown)]
        for i in torch.unique(torch.linspace(0, len(self.steps) - 1, ROWS).round().long()).tolist():
            scale = 100 / float(curve.measured[i]) if curve.measured[i] else torch.nan
            pairs = [(curve.gap, curve.gap_standard_error)] + [(t.value, t.standard_error) for t in shown.values()]
            cells = [f"{scale * float(value[i]):+.2f} +- {scale * float(error[i]):.2f}" for value, error in pairs]
            row = f"{int(self.steps[i]):>8} {curve.measured[i]:>11.5g} {curve.predicted[i]:>11.5g}"
            lines.append(row + "".join(f" {cell:>17}" for cell in cells))
        return lines


def _draw_terms(axes: Axes, steps: np.ndarray, curve: CurveBudget) -> None:
    scale = 100 / np.where(curve.measured.numpy() > 0, curve.measured.numpy(), np.nan)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for name, term in curve.terms.items():
        if term.is_zero:
            continue
        color, label = TERM_LOOKS[name]
        value = scale * term.value.numpy()
        above, below = up + np.maximum(value, 0), down + np.minimum(value, 0)
        axes.fill_between(steps, up, above, color=color, label=label, alpha=0.75, linewidth=0)
        axes.fill_between(steps, down, below, color=color, alpha=0.75, linewidth=0)
        up, down = above, below
    gap, error = scale * curve.gap.numpy(), 2 * scale * curve.gap_standard_error.numpy()
    look: dict[str, Any] = {"color": "#202020", "linewidth": 1.2, "capsize": 1.5, "elinewidth": 0.7}
    axes.errorbar(steps, gap, yerr=error, label="gap, two standard errors", **look)
    axes.axhline(0, color="0.4", linewidth=0.8)
