"""Grids of optimizer settings: the predicted loss of each, and the measured one where asked for."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import StageCost, announced, covered, ticker
from sgdsde._types import Progress, Sampling
from sgdsde._words import told
from sgdsde.dynamics import Dynamics
from sgdsde.ensemble import run_ensembles
from sgdsde.evolution_cost import Course, Size, evolution_seconds
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import spectrum_cost, step_seconds
from sgdsde.prediction import default_dynamics, predict
from sgdsde.prediction_sweep import predicted_together
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD
from sgdsde.stability import UnstableWarning, max_lr_of
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
OneOrMore: TypeAlias = T | Sequence[T]
Kind: TypeAlias = Literal["predicted", "measured"]

_ROWS = 10
"""Settings of a printed table, the smallest losses first."""


@dataclass(frozen=True)
class LimitFraction:
    """A learning rate as a fraction of the mean-square limit of its batch size, momentum and decay."""

    fraction: float

    def __post_init__(self) -> None:
        positive_number("fraction", self.fraction)


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
    Returns:
        A ``Sweep``: rows, and ``.to_dataframe()`` where pandas, which the library does not require, is installed.
    Raises:
        ValueError, TypeError: what ``SGD`` refuses, before anything is computed.
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
    if measured:
        whole_number("n_runs", n_runs, minimum=1)
    steps = recorded_steps(n_steps, [n_steps] if record is None else record)
    linearization = as_linearization(problem_or_linearization, progress=progress)
    cells = _Cells(problem_or_linearization, linearization, n_steps, steps, dynamics)
    n_measured = n_runs * len(groups) * len(rates) if measured else 0
    progress = announced(cells.cost(groups, len(rates), n_measured), progress)
    bar = ticker(progress, len(groups) * len(rates), "sweep")
    settings: list[tuple[SGD, float]] = []
    for group in groups:
        limit = cells.limit(group, rates)
        factors = [rate.fraction * limit if isinstance(rate, LimitFraction) else rate for rate in rates]
        settings += [(replace(group, lr=lr), limit) for lr in factors]
    runs = cells.measured([sgd for sgd, _ in settings], n_runs, seed) if measured else []
    shared = cells.predicted_together(settings)
    rows: list[dict[str, Any]] = []
    for number, (sgd, limit) in enumerate(settings):
        predicted = shared[number] if number in shared else cells.predicted(sgd, limit)
        rows += cells.rows(sgd, limit, predicted, "predicted")
        if measured:
            rows += cells.rows(sgd, limit, runs[number], "measured")
        bar.update(1)
    bar.close()
    return Sweep(tuple(rows))


@dataclass(frozen=True)
class _Cells:
    """Inputs shared by all cells of a sweep."""

    trained: Problem | Linearization
    linearization: Linearization
    n_steps: int
    steps: Tensor
    dynamics: Dynamics | None

    def limit(self, group: SGD, rates: Sequence[float | LimitFraction]) -> float:
        """The mean-square limit of a group; NaN where nothing depends on it."""
        has_fractions = any(isinstance(rate, LimitFraction) for rate in rates)
        if has_fractions or self._has_limit:
            return max_lr_of(self.linearization, group)
        return math.nan

    def cost(self, groups: Sequence[SGD], n_rates: int, n_measured: int) -> StageCost:
        """The expected cost of all cells, each counted at the settings of its group."""
        problem, size = self.linearization.problem, Size.of(self.linearization)
        limit = spectrum_cost(size.d, part=0.4)
        seconds = 0.0 if size.has_basis else spectrum_cost(size.d).seconds
        held = limit.bytes
        for sgd in groups:
            dynamics = default_dynamics(problem, sgd) if self.dynamics is None else self.dynamics
            cell = evolution_seconds(dynamics, Course.of(self.linearization, sgd, self.steps))
            seconds += limit.seconds + n_rates * cell.seconds
            held = max(held, cell.bytes)
        if n_measured:
            batch = max(sgd.batch_size_at(0) for sgd in groups)
            seconds += n_measured * self.n_steps * step_seconds(problem, batch, n_measured * self.n_steps)
        return StageCost("sweep", seconds, held)

    @property
    def _has_limit(self) -> bool:
        """Whether the loss of the linearized model diverges past the limit, as squared error does."""
        return isinstance(self.linearization.problem.criterion, SquaredError)

    def is_past(self, sgd: SGD, limit: float) -> bool:
        return self._has_limit and sgd.lr_at(0) > limit

    def predicted(self, sgd: SGD, limit: float) -> Trajectory | None:
        """The prediction of a setting; None past its limit."""
        if self.is_past(sgd, limit):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnstableWarning)  # a learning rate within rounding of the limit
            return predict(
                self.linearization,
                sgd,
                self.n_steps,
                dynamics=self.dynamics,
                record=self.steps.tolist(),
                progress=covered,
            )

    def predicted_together(self, settings: Sequence[tuple[SGD, float]]) -> dict[int, Trajectory]:
        """The predictions, by place, of settings that cost less from one basis than one by one."""
        stable = {i: sgd for i, (sgd, limit) in enumerate(settings) if not self.is_past(sgd, limit)}
        return {} if self.dynamics is not None else predicted_together(self.linearization, stable, self.steps)

    def measured(self, sgds: Sequence[SGD], n_runs: int, seed: int) -> list[Trajectory]:
        """The runs of all settings, in one ensemble."""
        record = self.steps.tolist()
        return run_ensembles(self.trained, sgds, self.n_steps, n_runs, seed=seed, record=record, progress=covered)

    def rows(self, sgd: SGD, limit: float, found: Trajectory | None, kind: Kind) -> list[dict[str, Any]]:
        """One row a recorded step."""
        plan = sgd.plan(self.linearization.problem.n_train, self.n_steps)
        setting = {field.name: getattr(sgd, field.name) for field in fields(SGD) if field.compare}
        setting |= {"mean_square_limit": limit, "past_mean_square_limit": self.is_past(sgd, limit), "kind": kind}
        rows = []
        for i, step in enumerate(self.steps.tolist()):
            row: dict[str, Any] = setting | {"step": step, "time": float(plan.times[step])}
            row["examples"] = int(plan.batch_size[:step].sum())
            for side in ("train", "test") if self.linearization.problem.x_test is not None else ("train",):
                row |= self._losses(found, side, i, step)
            rows.append(row)
        return rows

    def _losses(self, found: Trajectory | None, side: str, i: int, step: int) -> dict[str, float]:
        if found is None and step > 0:
            return dict.fromkeys((f"{side}_loss", f"{side}_loss_std", f"{side}_loss_standard_error"), math.inf)
        if found is None:
            found, i = predict(self.linearization, SGD(1.0, 1), 0), 0
        band = found.losses[side]
        parts = {"": band.mean, "_std": band.std, "_standard_error": band.standard_error}
        return {f"{side}_loss{part}": float(values[i]) for part, values in parts.items()}


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
