"""Does ``diagnose`` know how wrong a prediction will be, and what is cheapest? Its advice against measured errors.

Everyday trainings drawn at random (``experiments.everyday_settings``); two of three settled the constants of
``sgdsde.diagnosis.calibration``, one of three is kept for the check.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings

import numpy as np
import torch
from torch import Tensor

import sgdsde
from experiments.everyday_settings import Everyday, settings
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.diagnosis import Advice, Diagnosis, diagnose
from sgdsde.measurement import clock, plain_seconds
from sgdsde.prediction import evolve

SEED = 1
RECORDED = 16
TOLERANCE = 0.05
"""Relative error of the mean training loss that is asked for, at every recorded step."""

ADVICE = tuple(Advice)
TEST_EVERY = 3
"""Every third setting is kept for the check."""


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    count, n_runs = by_scale(scale, smoke=(4, 8), laptop=(72, 64), paper=(144, 512))
    drawn = settings(count, SEED)
    if scale == "smoke":
        drawn = [dataclasses.replace(one, n_steps=60, n_train=64) for one in drawn if one.loss != "ce"][:3]
    rows = [numbers(setting, n_runs) for setting in progress("settings")(drawn)]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    is_check = np.arange(len(rows)) % TEST_EVERY == TEST_EVERY - 1
    names = {name: np.array([getattr(one, name) for one in drawn]) for name in ("network", "loss", "sampling")}
    return arrays | names | {"is_check": is_check, "tolerance": np.array(TOLERANCE), "advice": _words()}


def _words() -> np.ndarray:
    return np.array([advice.value for advice in ADVICE])


def numbers(setting: Everyday, n_runs: int) -> dict[str, float]:
    """What was diagnosed, what was true, and what each way cost, in plain runs."""
    problem = dataclasses.replace(setting.problem(), x_test=None, y_test=None)
    sgd = setting.sgd(problem)
    record = sorted({0, *np.rint(np.geomspace(1, setting.n_steps, RECORDED)).astype(int).tolist()})
    unit = plain_seconds(problem, sgd, setting.n_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ranges: that is what is diagnosed
        start = clock(problem.device)
        found = diagnose(problem, sgd, setting.n_steps, record=record, tolerance=TOLERANCE)
        cost = (clock(problem.device) - start) / unit
        linearization = sgdsde.linearize(problem)
        start = clock(problem.device)
        real = _losses(problem, sgd, record, n_runs)
        batch = (clock(problem.device) - start) / unit
        linear = _losses(linearization, sgd, record, n_runs)
        moving, moving_cost = _moving(linearization, sgd, record, unit)
    mean = real.mean(0)
    spread = real.std(0) / mean
    return _diagnosed(found) | {
        "cost": cost,
        "measured_frozen": largest(linear.mean(0), mean),
        "measured_moving": math.inf if moving is None else largest(moving, mean),
        "moving_cost": moving_cost,
        "run_cost": batch / n_runs,
        "measured_spread": float(spread.nan_to_num(nan=math.inf).max()),
        "standard_error": float((spread / n_runs**0.5).nan_to_num(nan=math.inf).max()),
        "momentum": setting.momentum,
    }


def _diagnosed(found: Diagnosis) -> dict[str, float]:
    frozen, moving = found.option(Advice.FROZEN_KERNEL), found.option(Advice.MOVING_KERNEL)
    return {
        "advised": ADVICE.index(found.advice),
        "n_runs": found.option(Advice.MEASURE).n_runs or 0,
        "expected_frozen": frozen.error.value,
        "high_frozen": frozen.error.high,
        "frozen_cost": frozen.cost,
        "expected_moving": moving.error.value,
        "high_moving": moving.error.high,
        "drift": found.checks["kernel_drift"].value,
        "spread": found.spread,
    }


def _losses(what: sgdsde.Problem | sgdsde.Linearization, sgd: sgdsde.SGD, record: list[int], n_runs: int) -> Tensor:
    losses = sgdsde.run_ensemble(what, sgd, record[-1], n_runs, seed=SEED, record=record).train_loss.samples
    assert losses is not None
    return losses


def _moving(
    linearization: sgdsde.Linearization, sgd: sgdsde.SGD, record: list[int], unit: float
) -> tuple[Tensor | None, float]:
    """Expected losses of the moving kernel and what they cost; None where it refuses."""
    start, losses = clock(linearization.problem.device), None
    with contextlib.suppress(ValueError, NotImplementedError):
        losses = evolve(sgdsde.dynamics.MovingKernel(), linearization, sgd, record).train_loss.mean
    return losses, (clock(linearization.problem.device) - start) / unit


def largest(predicted: Tensor, real: Tensor) -> float:
    """Largest relative error; infinite where one of them is not finite."""
    return float((predicted / real - 1).abs().nan_to_num(nan=torch.inf).max())


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
