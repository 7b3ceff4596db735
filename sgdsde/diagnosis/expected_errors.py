"""The errors to expect of predictions, from what a pilot showed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

from sgdsde.diagnosis import calibration
from sgdsde.diagnosis.pilot import Pilot

LEVEL = 0.9
"""One-sided confidence of each end of an interval."""


@dataclass(frozen=True)
class ExpectedError:
    """A relative error of the mean training loss, at the worst recorded step.

    Attributes:
        value: what to expect; infinite where the mean loss is not finite. low, high: an interval of about 80 %.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "no bound"
        return f"{_percent(self.value)} ({_percent(self.low)} to {_percent(self.high)})"


def frozen_error(pilot: Pilot) -> ExpectedError:
    """What the frozen kernel gets wrong: runs of the linearized model against those of the network, in pairs.

    delta_t = mean(linear) / mean(real) - 1, with the standard error of a ratio of means of R pairs, and Student's law
    with R - 1 degrees of freedom. The largest over the steps of |delta_t| without what its own noise adds to its
    square; the ends of the interval are the largest of those of the steps.
    """
    real, linear = pilot.real[:, 1:], pilot.linear[:, 1:]
    if not torch.isfinite(real.sum()) or not torch.isfinite(linear.sum()):
        return ExpectedError(math.inf, math.inf, math.inf)
    delta, error = _ratio(linear, real)
    width = float(stats.t.ppf(LEVEL, len(real) - 1)) * error
    value = (delta.square() - error.square()).clamp_min(0).sqrt()
    low, high = (delta.abs() - width).clamp_min(0), delta.abs() + width
    return ExpectedError(float(value.max()), float(low.max()), float(high.max()))


def moving_error(pilot: Pilot, frozen: ExpectedError) -> ExpectedError:
    """What the moving kernel gets wrong: calibrated on kernel drift and spread (docs/diagnosis.md)."""
    if pilot.n_diverged or not math.isfinite(pilot.drift) or pilot.drift > calibration.DRIFT_MEASURED:
        return ExpectedError(math.inf, math.inf, math.inf)
    value = min(calibration.moving_error(pilot.drift, pilot.spread), frozen.value)
    return ExpectedError(value, value / calibration.MOVING_FACTOR, value * calibration.MOVING_FACTOR)


def _ratio(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """mean(above) / mean(below) - 1 and its standard error [T], of pairs [R, T]."""
    mean = below.mean(0)
    ratio = above.mean(0) / mean
    left = above - ratio * below
    return ratio - 1, left.std(0, correction=1) / (mean.abs() * len(below) ** 0.5)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if math.isfinite(share) else "no bound"
