"""Grids of optimizer settings: the predicted loss of each, and the measured one where asked for."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from sgdsde import _memory
from sgdsde._checkpoint import Checkpoint
from sgdsde._checks import complaint, whole_number
from sgdsde._jobs import checked_jobs
from sgdsde._progress import announced, covered, ticker
from sgdsde._sweep_cells import Cells, Found, Kind, LimitFraction
from sgdsde._sweep_parts import BySetting, begin
from sgdsde._types import Progress, Sampling
from sgdsde._words import told
from sgdsde.dynamics import Dynamics
from sgdsde.linearization import Linearization, as_linearization, problem_of
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
OneOrMore: TypeAlias = T | Sequence[T]

_ROWS = 10
"""Settings of a printed table, the smallest losses first."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """The losses of a grid of settings, in tidy form.

    Attributes:
        rows: one mapping for each setting, kind and recorded step. Keys: every field of ``SGD``; ``mean_square_limit``,
            NaN where it was not needed; ``past_mean_square_limit``; ``kind``, "predicted" or "measured"; ``step``;
            ``time``; ``examples``, all that were drawn; ``train_loss``, ``train_loss_std``,
            ``train_loss_standard_error``, and the same three of ``test_loss`` where there is a test set. Predicted
            losses past the limit are infinite.
    """

    rows: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def best(self, loss: Literal["train_loss", "test_loss"] = "test_loss", *, kind: Kind = "predicted") -> SGD:
        """The setting whose loss at the last recorded step is smallest.

        Raises:
            ValueError: no such loss or kind in the rows, or no finite loss among them.
        """
        there = [row for row in self.rows if row["kind"] == kind and loss in row]
        last = max((row["step"] for row in there), default=0)
        finite = [row for row in there if row["step"] == last and math.isfinite(row[loss])]
        if not finite:
            expected = f"finite for one {kind} setting at least"
            raise ValueError(complaint(loss, expected, "none", "use smaller learning rates, or another loss or kind"))
        row = min(finite, key=lambda row: row[loss])
        return SGD(**{field.name: row[field.name] for field in fields(SGD) if field.compare})

    def __str__(self) -> str:
        last = max((row["step"] for row in self.rows), default=0)
        side = "test_loss" if self.rows and "test_loss" in self.rows[0] else "train_loss"
        rows = sorted((row for row in self.rows if row["step"] == last), key=lambda row: row[side])
        name, settled = side.replace("_", " "), [row for row in rows if math.isfinite(row[side])]
        answer = f"none of the {len(rows)} has a finite {name}."
        if settled:
            best = settled[0]
            answer = (
                f"lr = {best['lr']:.4g}, batch_size = {best['batch_size']} has the smallest {best['kind']} {name}, "
                f"{best[side]:.4g}."
            )
            lost = len(rows) - len(settled)
            answer += f" {lost} of {len(rows)} have no finite loss." if lost else ""
        table = [f"{'lr':>12} {'batch_size':>10} {'momentum':>9} {'kind':>10} {name:>12}"]
        for row in rows[:_ROWS]:
            cells = f"{row['lr']:>12.4g} {row['batch_size']:>10} {row['momentum']:>9g} {row['kind']:>10}"
            table.append(f"{cells} {row[side]:>12.5g}")
        return told(
            asked=f"which of {len(rows)} settings and kinds has the smallest {name} after {last} steps?",
            answer=answer,
            sure="that of the predictions; past the mean-square limit the loss counts as infinite under squared error.",
            do="train with sweep.best(), a measured one with kind='measured'; sweep.to_dataframe() has every row.",
            table=table,
            terms=["predicted", "measured", "mean-square limit"],
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows as a data frame (needs pandas)."""
        import pandas

        return pandas.DataFrame(list(self.rows))


def sweep(
    problem_or_linearization: Problem | Linearization,
    *,
    lr: OneOrMore[float | LimitFraction],
    batch_size: OneOrMore[int],
    momentum: OneOrMore[float] = 0.0,
    dampening: OneOrMore[float] = 0.0,
    nesterov: OneOrMore[bool] = False,
    weight_decay: OneOrMore[float] = 0.0,
    sampling: OneOrMore[Sampling] = "with_replacement",
    drop_last: OneOrMore[bool] = False,
    label_noise_std: OneOrMore[float] = 0.0,
    n_steps: int,
    record: Sequence[int] | None = None,
    dynamics: Dynamics | None = None,
    measured: bool = False,
    n_runs: int = 64,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    progress: Progress = None,
) -> Sweep:
    """The loss of every combination of settings, predicted on one linearization without training.

    Args:
        problem_or_linearization: a ``Problem`` is linearized once.
        lr, batch_size, momentum, dampening, nesterov, weight_decay, sampling, drop_last, label_noise_std: options of
            ``SGD``, each one value or several; ``lr`` may hold ``LimitFraction(0.5)``. No schedules.
            The learning rate varies fastest, then the batch size.
        n_steps: updates of every setting. record: steps to report; default the last one only.
        dynamics: as in ``predict``; by default, where it is cheaper, ``predict_many``: one basis for all settings of a
            weight decay, losses to 1e-3, their standard deviations to 5e-3 of the loss.
        measured: also train ``n_runs`` times at every setting: a problem's own model, or the linearized one of a
            ``Linearization``. Every setting gets the runs of ``seed``.
        checkpoint: a folder, new or of this sweep, that keeps every finished prediction and every finished block of 64
            runs of a setting: a sweep that was killed goes on from there, also with more runs.
        n_jobs: settings at once, in the processes of joblib (an extra), all processors with -1; under
            ``joblib.parallel_config(backend="dask")`` on a cluster. Default: this process, with the runs of all
            settings in one ensemble unless there is a checkpoint.
    Returns:
        A ``Sweep``: rows, and ``.to_dataframe()`` where pandas, which the library does not require, is installed.
    Raises:
        ValueError, TypeError: what ``SGD`` refuses, before anything is computed; a checkpoint of another sweep, or of
            another version: names what differs.
    Warns:
        CheckpointWarning: a damaged or foreign part of the checkpoint, which is computed again.
    Exactness: with ``checkpoint`` or ``n_jobs`` every setting is computed for itself: the same bits however often it
        was killed and whatever ``n_jobs`` (on one kind of machine, with one number of threads a process), and those of
        one ensemble to rounding.
    Cost: one linearization; one mean-square limit for each combination of the words besides the learning rate, under
        squared error or where a fraction of it is asked for; one prediction a setting that is not past its limit; the
        measured runs of all settings in one ensemble.
    """
    n_steps = whole_number("n_steps", n_steps, minimum=1)
    words = {"sampling": sampling, "drop_last": drop_last, "label_noise_std": label_noise_std, "momentum": momentum}
    words |= {"dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay, "batch_size": batch_size}
    groups = _settings({name: _several(name, value) for name, value in words.items()})
    rates = _several("lr", lr)
    for rate, group in itertools.product(rates, groups):
        if not isinstance(rate, LimitFraction):
            replace(group, lr=rate)
    n_runs = whole_number("n_runs", n_runs, minimum=1) if measured else 0
    seed, jobs = whole_number("seed", seed), checked_jobs(n_jobs)
    steps = recorded_steps(n_steps, [n_steps] if record is None else record)
    device = problem_of(problem_or_linearization).device
    kept = None if checkpoint is None else Checkpoint(checkpoint, device)
    memory = None if kept is None else kept.memory
    linearization = as_linearization(problem_or_linearization, memory=memory, progress=progress)
    cells = Cells(problem_or_linearization, linearization, n_steps, steps, dynamics)
    progress = announced(cells.cost(groups, len(rates), n_runs * len(groups) * len(rates)), progress)
    limits = [cells.limit(group, rates) for group in groups]
    if kept is not None:
        limits = begin(kept, cells, groups, rates=rates, limits=limits, seed=seed)
        if kept.memory != memory:  # another process began a moment ago, with another plan
            linearization = as_linearization(problem_or_linearization, memory=kept.memory, progress=covered)
            cells = replace(cells, linearization=linearization)
    settings: list[tuple[SGD, float]] = []
    for group, limit in zip(groups, limits):
        factors = [rate.fraction * limit if isinstance(rate, LimitFraction) else rate for rate in rates]
        settings += [(replace(group, lr=lr), limit) for lr in factors]
    if kept is not None or n_jobs is not None:
        memory = _memory.budget(None, device) if kept is None else kept.memory
        found = BySetting(cells, settings, kept, jobs, memory).found(n_runs, seed, progress)
    else:
        found = _together(cells, settings, n_runs, seed=seed, progress=progress)
    rows: list[dict[str, Any]] = []
    for (sgd, limit), (predicted, runs) in zip(settings, found):
        rows += cells.rows(sgd, limit, predicted, "predicted")
        if runs is not None:
            rows += cells.rows(sgd, limit, runs, "measured")
    return Sweep(tuple(rows))


def _together(
    cells: Cells, settings: Sequence[tuple[SGD, float]], n_runs: int, *, seed: int, progress: Progress
) -> list[Found]:
    """What is found of every setting, the runs of all in one ensemble."""
    bar = ticker(progress, len(settings), "sweep")
    runs: Sequence[Trajectory | None] = [None] * len(settings)
    if n_runs:
        runs = cells.measured([sgd for sgd, _ in settings], n_runs, seed)
    shared, found = cells.predicted_together(settings), []
    for number, (sgd, limit) in enumerate(settings):
        predicted = shared[number] if number in shared else cells.predicted(sgd, limit)
        found.append((predicted, runs[number]))
        bar.update(1)
    bar.close()
    return found


def _several(name: str, value: Any) -> list[Any]:
    """The values of one word, one or several."""
    if callable(value):
        raise TypeError(complaint(name, "a value or several", "a schedule", "use predict for a schedule"))
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not values:
        raise ValueError(complaint(name, "one value at least", "none"))
    return values


def _settings(words: Mapping[str, Sequence[Any]]) -> list[SGD]:
    """Every combination, the last word varying fastest, at a learning rate of 1."""
    return [SGD(1.0, **dict(zip(words, values))) for values in itertools.product(*words.values())]
