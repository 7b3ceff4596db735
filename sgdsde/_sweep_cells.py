"""The settings of a sweep: the limit, the prediction and the runs of each, and their rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from torch import Tensor

from sgdsde._checks import positive_number
from sgdsde._progress import StageCost, covered
from sgdsde.dynamics import Dynamics
from sgdsde.ensemble import run_ensembles
from sgdsde.evolution_cost import Course, Size, evolution_seconds
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import spectrum_cost, step_seconds
from sgdsde.prediction import default_dynamics, predict
from sgdsde.prediction_sweep import predicted_together
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability import UnstableWarning, max_lr_of
from sgdsde.trajectory import Trajectory

Kind: TypeAlias = Literal["predicted", "measured"]

Found: TypeAlias = tuple[Trajectory | None, Trajectory | None]
"""The prediction of a setting, None past its limit, and its runs, None where none are asked for."""


@dataclass(frozen=True)
class LimitFraction:
    """A learning rate as a fraction of the mean-square limit of its batch size, momentum and decay."""

    fraction: float

    def __post_init__(self) -> None:
        positive_number("fraction", self.fraction)


@dataclass(frozen=True)
class Cells:
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
