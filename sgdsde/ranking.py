"""Masks of one network, ranked by the loss that the pruned networks are predicted to reach: nothing is trained."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sgdsde._checks import complaint, whole_number, word
from sgdsde._progress import covered, ticker
from sgdsde._types import Progress
from sgdsde.budget import ErrorBudget, error_budget
from sgdsde.dynamics import MovingKernel
from sgdsde.linearization import Linearization, linearize
from sgdsde.prediction import predict
from sgdsde.problem import Problem
from sgdsde.pruning import Masks, rescale_to_edge_of_chaos
from sgdsde.sgd import SGD, check_sgd
from sgdsde.stability import UnstableWarning, max_lr_of

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class RankedNetwork:
    """One network and what is predicted of it.

    Attributes:
        density, live_density: of its masks (1 for the dense network); live_density None where unknown.
        train_loss, test_loss: predicted after the last step; inf past the mean-square limit; test_loss None without a
            test set.
        max_lr: the mean-square limit of this network at the first batch size. kernel_trace: Tr K.
        moving_train_loss, moving_test_loss: the same losses by ``MovingKernel``, where asked for and where it has an
            answer (a network that dies on the way has none; a warning says so).
        budget: the gap to real runs in terms, where asked for.
    """

    name: str
    density: float
    live_density: float | None
    train_loss: float
    test_loss: float | None
    max_lr: float
    kernel_trace: float
    moving_train_loss: float | None = None
    moving_test_loss: float | None = None
    budget: ErrorBudget | None = None


@dataclass(frozen=True, eq=False)
class Ranking:
    """Pruned networks from the smallest predicted loss to the largest, and the dense one beside them.

    Attributes:
        rows: in the order of ``by``. dense: the network without masks, for comparison; not ranked.
        lr: that of the first step. n_steps: updates.
    """

    rows: tuple[RankedNetwork, ...]
    dense: RankedNetwork
    by: str
    lr: float
    n_steps: int

    @property
    def names(self) -> list[str]:
        """Names of the masks, best first."""
        return [row.name for row in self.rows]

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a network, the dense one last (needs pandas)."""
        import pandas

        fields = [field.name for field in dataclasses.fields(RankedNetwork) if field.name != "budget"]
        rows = (*self.rows, self.dense)
        return pandas.DataFrame({name: [getattr(row, name) for row in rows] for name in fields})

    def __str__(self) -> str:
        moves = any(row.moving_train_loss is not None for row in self.rows)
        head = f"{'':<24}{'density':>10}{'live':>10}{'train loss':>12}{'test loss':>12}"
        head += (f"{'moving train':>14}" if moves else "") + f"{'lr / limit':>12}{'limit / dense':>15}{'Tr K':>12}"
        lines = [f"predicted after {self.n_steps} steps at lr={self.lr:.4g}, smallest {self.by} loss first", head]
        for row in (*self.rows, self.dense):
            line = f"{row.name:<24.24}{row.density:>10.4g}{_or_dash(row.live_density):>10}{row.train_loss:>12.5g}"
            line += f"{_or_dash(row.test_loss):>12}"
            line += f"{_or_dash(row.moving_train_loss):>14}" if moves else ""
            change = row.max_lr / self.dense.max_lr if math.isfinite(self.dense.max_lr) else math.nan
            lines.append(line + f"{self.lr / row.max_lr:>12.3g}{change:>15.4g}{row.kernel_trace:>12.5g}")
        lines.append(
            "The kernel is that of the initial weights. One learning rate for all ranks well while small for each one; "
            "pruned networks are less lazy, so check with moving=True or n_runs=8, or rescale first."
        )
        return "\n".join(lines)


def rank(
    problem: Problem,
    masks: Mapping[str, Masks],
    sgd: SGD,
    n_steps: int,
    *,
    by: Literal["train", "test"] = "train",
    rescale: Literal["neuron", "layer", "data"] | None = None,
    moving: bool = False,
    n_runs: int = 0,
    seed: int = 0,
    progress: Progress = None,
) -> Ranking:
    """Masks ordered by predicted loss under one SGD, without training.

    Args:
        problem: the dense network, its data and loss. masks: by a name of your choice.
        sgd: one learning rate for all: each network at a part of its own limit is not predicted well, since pruned and
            unrescaled networks leave the linear regime there (docs/pruning.md).
        by: the loss that ranks. rescale: bring each network back to the edge of chaos first (``rescale_to_...``).
        moving: also predict with a kernel that moves. n_runs: if at least 2, train so many runs and report the
            ``error_budget`` of each network.
    Returns:
        ``Ranking``, printable; masks past their mean-square limit come last with an infinite loss.
    Raises:
        ValueError, TypeError: masks of another model, and all that ``predict`` refuses.
    Cost: per mask one linearization (the kernel of a masked network is made from plain Jacobians) and one prediction.
    """
    check_sgd(sgd)
    n_steps, n_runs = whole_number("n_steps", n_steps, minimum=1), whole_number("n_runs", n_runs)
    word("by", by, ("train", "test"))
    if n_runs == 1:
        raise ValueError(complaint("n_runs", "0, or at least 2 for an error budget", n_runs))
    if by == "test" and problem.n_test == 0:
        raise ValueError(complaint("by", "'train' for a problem without a test set", repr(by)))
    if not isinstance(masks, Mapping) or not masks or not all(isinstance(m, Masks) for m in masks.values()):
        received = f"a {type(masks).__name__} of {len(masks) if isinstance(masks, Mapping) else 'other things'}"
        raise TypeError(complaint("masks", "a mapping of names to Masks", received, 'use {"SynFlow": masks}'))
    study = _Study(sgd, n_steps, moving, n_runs, seed, covered if progress else None)
    ticks, rows = ticker(progress, len(masks) + 1, "networks"), []
    for name, mask in masks.items():
        pruned = mask.apply(problem)
        pruned = pruned if rescale is None else rescale_to_edge_of_chaos(pruned, normalizer=rescale)
        rows.append(study.row(name, pruned, mask))
        ticks.update(1)
    dense = dataclasses.replace(study, n_runs=0, moving=False).row("dense", problem, None)
    ticks.update(1)
    ticks.close()
    rows.sort(key=lambda row: row.train_loss if row.test_loss is None or by == "train" else row.test_loss)
    return Ranking(tuple(rows), dense, by, sgd.lr_at(0), n_steps)


@dataclass(frozen=True)
class _Study:
    """What is asked of every network."""

    sgd: SGD
    n_steps: int
    moving: bool
    n_runs: int
    seed: int
    progress: Progress

    def row(self, name: str, problem: Problem, masks: Masks | None) -> RankedNetwork:
        with warnings.catch_warnings():  # no path from inputs to outputs: the table says so
            warnings.filterwarnings("ignore", message="the kernel is zero")
            linearization = linearize(problem, progress=self.progress)
        trace = linearization.operator.trace()
        train, test = self._last(linearization, None)
        budget = None
        moved = self._moved(name, linearization) if self.moving and trace > 0 else (None, None)
        if self.n_runs:
            budget = error_budget(
                linearization, self.sgd, self.n_steps, self.n_runs, seed=self.seed, progress=self.progress
            )
        return RankedNetwork(
            name,
            density=1.0 if masks is None else masks.density,
            live_density=1.0 if masks is None else masks.live_density,
            train_loss=train,
            test_loss=test,
            max_lr=self._limit(linearization),
            kernel_trace=trace,
            moving_train_loss=moved[0],
            moving_test_loss=moved[1],
            budget=budget,
        )

    def _moved(self, name: str, linearization: Linearization) -> tuple[float | None, float | None]:
        """By a moving kernel; a network that loses all of its gradients on the way leaves it without directions."""
        try:
            return self._last(linearization, MovingKernel())
        except ValueError as error:
            warnings.warn(f"MovingKernel has no prediction of {name!r}: {error}", UserWarning, stacklevel=4)
            return None, None

    def _last(self, linearization: Linearization, dynamics: MovingKernel | None) -> tuple[float, float | None]:
        with warnings.catch_warnings():  # the table says so
            warnings.simplefilter("ignore", UnstableWarning)
            found = predict(
                linearization,
                self.sgd,
                self.n_steps,
                dynamics=dynamics,
                record=[0, self.n_steps],
                progress=self.progress,
            )
        if dynamics is None and found.is_past_limit:
            return math.inf, None if found.test_loss is None else math.inf
        test = None if found.test_loss is None else float(found.test_loss.mean[-1])
        return float(found.train_loss.mean[-1]), test

    def _limit(self, linearization: Linearization) -> float:
        smallest = dataclasses.replace(self.sgd, batch_size=self.sgd.batch_size_at(0))
        return max_lr_of(linearization, smallest)


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"
