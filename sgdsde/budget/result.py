"""The result of an error budget: a table, a picture, and the numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

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
    """What a prediction gets wrong, and what by; ``str()`` is a table, ``plot()`` a picture.

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
        return self.train.terms

    @property
    def gap(self) -> Tensor:
        return self.train.gap

    @property
    def gap_standard_error(self) -> Tensor:
        return self.train.gap_standard_error

    @property
    def curves(self) -> dict[str, CurveBudget]:
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
        """The terms stacked over training, in per cent of the measured loss, one axes a curve; saved where ``path``
        says (needs matplotlib)."""
        from sgdsde.plots import plot_error_budget

        return plot_error_budget(self, path)

    def __str__(self) -> str:
        lines = [self.sentence]
        for side, curve in self.curves.items():
            lines += [
                "",
                f"{side} loss: measured - predicted and its terms, in % of the measured loss",
                *self._rows(curve),
            ]
        lines.append("")
        lines += [f"{name}: {term.note}" for name, term in self.terms.items()]
        return "\n".join(lines)

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
