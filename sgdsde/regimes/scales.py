"""Where a frozen kernel is right, where a moving one is needed, and where neither is: errors measured over scales."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.budget import ErrorBudget, error_budget
from sgdsde.dynamics import MovingKernel
from sgdsde.linearization import linearize
from sgdsde.networks import DiagonalLinear, Rescaled
from sgdsde.prediction import predict
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability import max_lr


@dataclass(frozen=True, eq=False)
class ScaleSweep:
    """Predictions against real runs of one network at S scales and T steps; NaN where nothing finite was measured.

    Attributes:
        scales, lrs: [S]. steps: [S, T], the same for all.
        z: max|beta_l2| / scale^D of a diagonal network, [S]: below 1 the kernel regime; NaN for other networks.
        measured, frozen, moving: mean training losses [S, T]. standard_errors: of the measured ones.
        test_measured, test_frozen, test_moving: the same of the test loss; NaN without a test set.
        linearization, linearization_standard_errors: (real - linearized runs on the same batches) / measured, [S, T].
        notes: what a prediction said or why it is missing, one a scale; "" for nothing.
    """

    scales: Tensor
    lrs: Tensor
    steps: Tensor
    z: Tensor
    measured: Tensor
    standard_errors: Tensor
    frozen: Tensor
    moving: Tensor
    test_measured: Tensor
    test_frozen: Tensor
    test_moving: Tensor
    linearization: Tensor
    linearization_standard_errors: Tensor
    notes: tuple[str, ...]

    @property
    def frozen_error(self) -> Tensor:
        """(predicted - measured)/measured of the training loss, [S, T]."""
        return self.frozen / self.measured - 1

    @property
    def moving_error(self) -> Tensor:
        """The same of ``MovingKernel``."""
        return self.moving / self.measured - 1

    def slopes(self, power: float = 1.0) -> Tensor:
        """d log|linearization| / d log(scale^power) between neighboring scales, [S - 1, T].

        -2 for diagonal networks in scale^depth, whose symmetry kills the first order; -1 for smooth networks.
        """
        size = self.linearization.abs().log()
        return (size[1:] - size[:-1]) / (power * (self.scales[1:] / self.scales[:-1]).log())[:, None]


def scale_sweep(
    problem: Problem,
    scales: Sequence[float],
    *,
    n_steps: int,
    n_runs: int,
    batch_size: int,
    lr_fraction: float = 0.3,
    record: Sequence[int] | None = None,
    seed: int = 0,
    moving: bool = True,
    progress: Progress = None,
) -> ScaleSweep:
    """Errors of the frozen and of the moving kernel over the scale of a network, each against real runs of its own.

    Args:
        problem: of a ``DiagonalLinear``, remade at every scale, or of any module, wrapped in ``Rescaled``.
        scales: increasing. lr_fraction: of ``stability.max_lr`` at the start, the learning rate of each scale. A kernel
            that grows leaves that limit behind: where runs diverge the scale has a note and no numbers.
        n_runs, batch_size, seed, record: as in ``error_budget``. moving: whether to predict with ``MovingKernel`` too.
    Returns:
        A ``ScaleSweep``.
    Cost: for each scale an error budget, n_runs real and linearized runs, and the moving kernel's prediction.
    """
    values = [positive_number("scales", scale) for scale in scales]
    if not values or sorted(set(values)) != values:
        raise ValueError(complaint("scales", "increasing", values))
    n_steps, share = whole_number("n_steps", n_steps, 1), positive_number("lr_fraction", lr_fraction)
    rows, ticks = [], ticker(progress, len(values), "scales")
    for scale in values:
        scaled = at_scale(problem, scale)
        linearization = linearize(scaled)
        sgd = SGD(share * max_lr(linearization, batch_size), batch_size)
        try:
            budget = error_budget(linearization, sgd, n_steps, n_runs, seed=seed, record=record)
        except ValueError as error:
            rows.append(_Row(sgd.lr_at(0), None, None, f"measured losses are not finite: {error}"))
        else:
            moved, note = _moving(scaled, sgd, budget) if moving else (None, "")
            rows.append(_Row(sgd.lr_at(0), budget, moved, note))
        ticks.update(1)
    ticks.close()
    if all(row.budget is None for row in rows):
        raise ValueError(rows[0].note)
    return _collected(problem, torch.tensor(values, dtype=torch.float64), rows)


def at_scale(problem: Problem, scale: float) -> Problem:
    """The problem with its network at another scale."""
    model = problem.model
    if isinstance(model, DiagonalLinear):
        d, dtype, device = model.in_features, problem.dtype, problem.device
        scaled: torch.nn.Module = DiagonalLinear(d, depth=model.depth, scale=scale, dtype=dtype, device=device)
    elif isinstance(model, torch.nn.Module):
        scaled = Rescaled(model, scale)
    else:
        raise TypeError(complaint("problem.model", "an nn.Module", type(model).__name__))
    data = {"x_test": problem.x_test, "y_test": problem.y_test}
    return Problem(scaled, problem.x_train, problem.y_train, loss=problem.loss, **data)


@dataclass(frozen=True, eq=False)
class _Row:
    lr: float
    budget: ErrorBudget | None
    moving: dict[str, Tensor] | None
    note: str


def _moving(problem: Problem, sgd: SGD, budget: ErrorBudget) -> tuple[dict[str, Tensor] | None, str]:
    """Losses by side, and what the prediction said."""
    steps = budget.steps.tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = predict(problem, sgd, steps[-1], dynamics=MovingKernel(), record=steps)
        except ValueError as error:
            return None, str(error)
    said = str(caught[0].message) if caught else ""
    bands = {"train": found.train_loss} | ({"test": found.test_loss} if found.test_loss is not None else {})
    return {side: band.mean for side, band in bands.items()}, said


def _collected(problem: Problem, scales: Tensor, rows: list[_Row]) -> ScaleSweep:
    first = next(row.budget for row in rows if row.budget is not None)
    nothing = torch.full((len(first.steps),), torch.nan, dtype=torch.float64)

    def curve(row: _Row, side: str, what: str) -> Tensor:
        if row.budget is None or side not in row.budget.curves:
            return nothing
        if what == "moving":
            return nothing if row.moving is None else row.moving[side]
        budget = row.budget.curves[side]
        if what in ("measured", "predicted"):
            return getattr(budget, what)
        if what == "error":
            return budget.gap_standard_error
        return getattr(budget.terms["linearization"], what) / budget.measured

    def stacked(side: str, what: str) -> Tensor:
        return torch.stack([curve(row, side, what) for row in rows])

    return ScaleSweep(
        scales=scales,
        lrs=torch.tensor([row.lr for row in rows], dtype=torch.float64),
        steps=first.steps.expand(len(rows), -1),
        z=_regime_numbers(problem, scales),
        measured=stacked("train", "measured"),
        standard_errors=stacked("train", "error"),
        frozen=stacked("train", "predicted"),
        moving=stacked("train", "moving"),
        test_measured=stacked("test", "measured"),
        test_frozen=stacked("test", "predicted"),
        test_moving=stacked("test", "moving"),
        linearization=stacked("train", "value"),
        linearization_standard_errors=stacked("train", "standard_error"),
        notes=tuple(row.note for row in rows),
    )


def _regime_numbers(problem: Problem, scales: Tensor) -> Tensor:
    model = problem.model
    if not isinstance(model, DiagonalLinear):
        return torch.full_like(scales, torch.nan)
    least = torch.linalg.pinv(problem.x_train.double()) @ problem.y_train.double()[:, 0]
    return least.abs().max().cpu() / scales**model.depth
