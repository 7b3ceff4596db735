"""The result of a question for a scaling rule: numbers, a sentence, a picture."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from sgdsde import plots
from sgdsde._words import listed, percent, told
from sgdsde.questions.forecasts import setting
from sgdsde.sgd import SGD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES: Mapping[str, float] = {"linear": 1.0, "square root": 0.5, "constant": 0.0}
"""Powers of the ratio of batch sizes by which rules multiply the learning rate."""

LOOKS = {"linear": ("#de8f05", "--"), "square root": ("#029e73", "-."), "constant": ("#8a8a8a", ":")}


@dataclass(frozen=True)
class RuleOutcome:
    """What a rule does at one batch size.

    Attributes:
        lr: the learning rate that it names. mismatch: the largest relative difference of the loss from the reference,
            infinite past the limit. is_stable: whether it is below the mean-square limit.
    """

    lr: float
    mismatch: float
    is_stable: bool


@dataclass(frozen=True)
class BatchScaling:
    """One batch size.

    Attributes:
        batch_size, n_steps: steps that are compared. lr: the learning rate that keeps the curve best.
        mismatch: of it. limit: the mean-square limit. rules: by name, as ``RULES`` has them.
    """

    batch_size: int
    n_steps: int
    lr: float
    mismatch: float
    limit: float
    rules: Mapping[str, RuleOutcome]


@dataclass(frozen=True, eq=False)
class ScalingRule:
    """Learning rates that keep a loss curve over batch sizes, and how far rules do; ``str()`` says it in words.

    Attributes:
        sgd: the reference. limit: its mean-square limit. n_steps: its steps.
        keep: "examples" or "steps", at which losses are compared. side: "train" or "test".
        tolerance: mismatch up to which a curve counts as kept. batches: one ``BatchScaling`` each, by batch size.
        kernel: what is said of the kernel. is_doubtful: the network's kernel moves, and the prediction kept it.
    """

    sgd: SGD
    limit: float
    n_steps: int
    keep: Literal["examples", "steps"]
    side: Literal["train", "test"]
    tolerance: float
    batches: tuple[BatchScaling, ...]
    kernel: str
    is_doubtful: bool

    @property
    def lrs(self) -> dict[int, float]:
        """The learning rate that keeps the curve best, by batch size."""
        return {row.batch_size: row.lr for row in self.batches}

    def holds(self, rule: str = "linear") -> list[int]:
        """The batch sizes at which a rule ("linear", "square root", "constant") keeps the curve."""
        return [row.batch_size for row in self.batches if row.rules[rule].mismatch <= self.tolerance]

    def is_stable(self, rule: str = "linear") -> list[int]:
        """The batch sizes at which the learning rate of a rule is below the mean-square limit."""
        return [row.batch_size for row in self.batches if row.rules[rule].is_stable]

    @property
    def kept(self) -> list[int]:
        """The batch sizes at which some learning rate keeps the curve within the tolerance."""
        return [row.batch_size for row in self.batches if row.mismatch <= self.tolerance]

    @property
    def sentence(self) -> str:
        """The answer in words: who keeps the curve where, and where rules stop being stable."""
        sizes = [row.batch_size for row in self.batches]
        kept = [f"lr = {row.lr:.3g} at batch {row.batch_size}" for row in self.batches if row.batch_size in self.kept]
        lost = [row.batch_size for row in self.batches if row.batch_size not in self.kept]
        text = f"The {self.side} loss at equal {self.keep} stays within {percent(self.tolerance)}"
        text += f" with {listed(kept)}" if kept else " at none of these batch sizes, with any lr"
        text += f", and with no lr at batch {listed(lost)}." if kept and lost else "."
        for rule in RULES:
            holds, stable = self.holds(rule), self.is_stable(rule)
            where = f"does so at batch {listed(holds)}" if holds else "does so at none"
            text += f" {rule[0].upper()}{rule[1:]} scaling {where}"
            gone = [size for size in sizes if size not in stable]
            text += f", and is past the mean-square limit at batch {listed(gone)}." if gone else "."
        return text + (" Doubtful: the kernel of the network moves." if self.is_doubtful else "")

    def __str__(self) -> str:
        batch = self.sgd.batch_size_at(0)
        reference = f"lr = {self.sgd.lr_at(0):.4g}, {setting(self.sgd)}"
        asked = (
            f"which lr keeps the {self.side} loss of {reference} at equal {self.keep}, over {self.n_steps} steps "
            f"({self.n_steps * batch} examples), when the batch size changes?"
        )
        return told(
            asked=asked,
            answer=self.sentence,
            sure=f"{self.kernel}. Kept means the mean over runs: the spread over runs changes with the batch.",
            do=self._do(),
            table=self._table(),
            terms=["mean-square limit", "moving kernel" if "MovingKernel" in self.kernel else "frozen kernel"],
        )

    def _table(self) -> list[str]:
        names = "".join(f"{name + ' lr':>16} {'off by':>8}" for name in RULES)
        lines = [f"{'batch':>7} {'steps':>7} {'limit':>9} {'best lr':>9} {'off by':>8}{names}"]
        for row in self.batches:
            line = f"{row.batch_size:>7} {row.n_steps:>7} {row.limit:>9.4g} {row.lr:>9.4g} {_short(row.mismatch):>8}"
            for name in RULES:
                rule = row.rules[name]
                line += f"{rule.lr:>16.4g} {_short(rule.mismatch) if rule.is_stable else 'unstable':>8}"
            lines.append(line)
        return lines

    def _do(self) -> str:
        if self.is_doubtful:
            return "do not rely on it: ask again with dynamics=dynamics.MovingKernel(), or train a few runs."
        if len(self.kept) == len(self.batches):
            return "take the lr of the table at each batch size; keep below the limit in its row."
        return (
            "take the lr of the table where the curve is kept; elsewhere no learning rate gives this curve, because it "
            "would have to pass the limit or the noise differs: choose_lr finds the best one there."
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> tuple[Axes, Axes]:
        """The two axes of a picture: learning rates against batch size with the limit, and how far each is off.

        Path and errors are those of ``Trajectory.plot``.
        """
        sizes = np.array([row.batch_size for row in self.batches])
        with plots.canvas(path, size=(6.4, 5.2)) as figure:
            top, bottom = figure.subplots(2, 1, sharex=True)
            top.plot(sizes, [row.limit for row in self.batches], color="#d55e00", label="mean-square limit")
            best = plots.COLORS["predicted", self.side]
            top.plot(
                sizes, [row.lr for row in self.batches], "o-", color=best, markersize=4, label="keeps the curve best"
            )
            bottom.plot(sizes, [100 * row.mismatch for row in self.batches], "o-", color=best, markersize=4)
            for name, (color, style) in LOOKS.items():
                top.plot(sizes, [row.rules[name].lr for row in self.batches], style, color=color, label=name)
                off = [100 * row.rules[name].mismatch for row in self.batches]
                bottom.plot(sizes, [x if math.isfinite(x) else math.nan for x in off], style, color=color)
            bottom.axhline(100 * self.tolerance, color="0.4", linestyle=":", linewidth=1)
            top.plot(
                [self.sgd.batch_size_at(0)], [self.sgd.lr_at(0)], "s", color="#202020", label="reference", zorder=4
            )
            for axes in (top, bottom):
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter("{x:g}")
            bottom.xaxis.set_major_formatter("{x:g}")
            top.set_ylabel("learning rate")
            bottom.set_ylim(bottom=max(0.1, bottom.get_ylim()[0]))
            bottom.set_ylabel(f"largest difference of\nthe {self.side} loss [%]")
            bottom.set_xlabel("batch size")
            plots.title(top, f"Learning rates that keep the expected {self.side} loss at equal {self.keep}")
            top.legend(ncols=2)
        return top, bottom


def _short(mismatch: float) -> str:
    return percent(mismatch) if math.isfinite(mismatch) else "-"
