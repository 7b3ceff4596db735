"""Ensembles of real runs at a few settings, their losses at common effective times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde._streams import numpy_stream
from sgdsde._types import Progress
from sgdsde.measurement import RealRuns
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.surface.effective_time import step_at
from sgdsde.trajectory import Trajectory

PLACES: tuple[tuple[float, int], ...] = ((1.2, 1), (0.6, 1), (1.2, 4), (0.5, 4), (0.8, 2))
"""(lr, batch size) of the anchors in units of the base setting; the last one, inside of the others, is the check."""

FIRST, MOST = 12, 32
"""Runs at an anchor."""

ANCHOR_ERROR = 0.025
"""Relative standard error that further runs aim at."""

SEVERAL = 10
"""Times at which losses are compared."""


@dataclass(frozen=True, eq=False)
class Anchor:
    """The ensemble of one setting.

    Attributes:
        place: lr and batch size in units of the base. measured: its trajectory, at the steps around each time.
        losses: by side, [R, T] at the common effective times, linear between the steps around each.
    """

    place: tuple[float, int]
    sgd: SGD
    measured: Trajectory
    losses: dict[str, Tensor]

    def log_mean(self, side: str) -> Tensor:
        """[T], infinite where a run has diverged."""
        return self.losses[side].mean(0).log()

    def variance(self, side: str) -> Tensor:
        """Of ``log_mean``: var / (R mean^2), [T]."""
        losses = self.losses[side]
        return losses.var(0) / (len(losses) * losses.mean(0).square())

    def spread(self, side: str) -> Tensor:
        """Standard deviation of one run relative to the mean, [T]; infinite where a run has diverged."""
        losses = self.losses[side]
        relative = losses.std(0) / losses.mean(0)
        return torch.where(torch.isfinite(losses).all(0), relative, torch.inf)

    @property
    def largest_spread(self) -> float:
        return max(float(self.spread(side).max()) for side in self.losses)


def anchor(
    problem: Problem,
    sgd: SGD,
    place: tuple[float, int],
    times: Sequence[float],
    *,
    n_runs: int | None,
    seed: int,
    memory: int | None,
    progress: Progress,
) -> Anchor:
    """Train at one anchor: ``n_runs`` runs, or 12 to 32, as many as a standard error of 2.5 % takes."""
    setting = at_place(sgd, place)
    steps = [step_at(time, float(setting.lr_at(0)), setting.momentum) for time in times]
    below = [math.floor(step + 1e-9) for step in steps]
    record = sorted({0, *below, *(k + 1 for k, step in zip(below, steps) if step - k > 1e-9)})
    stream = int(numpy_stream(seed, "anchors of a surface", PLACES.index(place)).integers(2**62))
    runs = RealRuns(problem, setting, record[-1], record, stream, ("loss",), memory, progress)
    runs.extend(FIRST if n_runs is None else n_runs)
    made = _at_times(place, setting, runs.trajectory(), steps)
    wanted = 0 if n_runs is not None else min(MOST, math.ceil(min((made.largest_spread / ANCHOR_ERROR) ** 2, 1e6)))
    if wanted > runs.count:
        runs.extend(wanted - runs.count)
        made = _at_times(place, setting, runs.trajectory(), steps)
    return made


def at_place(sgd: SGD, place: tuple[float, int]) -> SGD:
    """The setting of an anchor."""
    return replace(sgd, lr=place[0] * sgd.lr_at(0), batch_size=place[1] * sgd.batch_size_at(0))


def _at_times(place: tuple[float, int], sgd: SGD, measured: Trajectory, steps: Sequence[float]) -> Anchor:
    recorded = measured.steps.double()
    at = torch.tensor(steps, dtype=torch.float64)
    right = torch.searchsorted(recorded, at - 1e-9).clamp(max=len(recorded) - 1)
    left = torch.where((recorded[right] - at).abs() < 1e-9, right, right - 1)
    share = torch.where(left == right, 0.0, (at - recorded[left]) / (recorded[right] - recorded[left]).clamp_min(1))
    losses = {}
    for side, band in measured.losses.items():
        assert band.samples is not None
        losses[side] = band.samples[:, left] * (1 - share) + band.samples[:, right] * share
    return Anchor(place, sgd, measured, losses)
