"""Does ``diagnose`` know beforehand how wrong a prediction will be? Its verdicts against measured errors.

Settings of two kinds: those that the constants of ``sgdsde.diagnosis.calibration`` were fitted to, and others, of
different networks, examples, batches and lengths, on which they are checked.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from sgdsde.budget import error_budget
from sgdsde.diagnosis import Advice, diagnose
from sgdsde.stability import max_lr

SEED = 0
ADVICE = tuple(Advice)
RECORDED = 10
TOLERANCE = 0.05
"""Relative error that is asked for, at every recorded step."""


@dataclass(frozen=True)
class Setting:
    """One network and one way to train it."""

    width: int
    parametrization: str
    fraction: float
    batch_size: int
    momentum: float
    activation: str
    depth: int
    n_train: int
    n_steps: int
    seed: int

    def linearization(self) -> sgdsde.Linearization:
        data = sgdsde.datasets.digits(self.n_train, 1, seed=self.seed)
        model = sgdsde.networks.MLP(
            data.in_features,
            self.width,
            1,
            depth=self.depth,
            activation=self.activation,
            parametrization=self.parametrization,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(self.seed),
        )
        tensors = data.to(device=device()).tensors()
        x, y = tensors["x_train"], tensors["y_train"]
        return sgdsde.linearize(sgdsde.Problem(model.to(device()), x, y, loss=torch.nn.MSELoss()))


def calibration(scale: Scale) -> Iterator[Setting]:
    """One hidden ReLU layer."""
    widths = by_scale(scale, smoke=(32,), laptop=(32, 128, 512), paper=(32, 128, 512, 2048))
    fractions = by_scale(scale, smoke=(0.15,), laptop=(0.15, 0.4, 0.75), paper=(0.05, 0.15, 0.4, 0.6, 0.75))
    n, n_steps = by_scale(scale, smoke=(24, 24), laptop=(64, 128), paper=(128, 256))
    sizes = by_scale(scale, smoke=(8,), laptop=(2, 8), paper=(2, 8))
    for width, name, fraction, size in itertools.product(widths, ("ntk", "standard"), fractions, sizes):
        yield Setting(width, name, fraction, size, 0.0, "relu", 1, n, n_steps, seed=0)
    for width, fraction, size in itertools.product(widths[-2:-1] or widths, fractions[:2], sizes):
        yield Setting(width, "ntk", fraction, size, 0.9, "relu", 1, n, n_steps, seed=0)


def check(scale: Scale) -> Iterator[Setting]:
    """Two hidden layers, tanh, other examples, batches, learning rates and lengths."""
    widths = by_scale(scale, smoke=(64,), laptop=(48, 320), paper=(64, 256, 1024))
    fractions = by_scale(scale, smoke=(0.1,), laptop=(0.1, 0.3, 0.6), paper=(0.03, 0.1, 0.2, 0.3, 0.6))
    n, n_steps = by_scale(scale, smoke=(20, 20), laptop=(48, 96), paper=(96, 192))
    sizes = by_scale(scale, smoke=(4,), laptop=(4, 16), paper=(4, 16))
    ways = (("ntk", 0.0), ("standard", 0.0), ("standard", 0.9))
    for width, fraction, size, (name, momentum) in itertools.product(widths, fractions, sizes, ways):
        yield Setting(width, name, fraction, size, momentum, "tanh", 2, n, n_steps, seed=1)


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    n_runs = by_scale(scale, smoke=8, laptop=32, paper=256)
    arrays: dict[str, np.ndarray] = {}
    for half, settings in (("calibration", list(calibration(scale))), ("check", list(check(scale)))):
        rows = [numbers(setting, n_runs) for setting in progress(half)(settings)]
        arrays |= {f"{half}_{name}": np.array([row[name] for row in rows]) for name in rows[0]}
    return arrays | {"advice": np.array([advice.value for advice in ADVICE]), "tolerance": np.array(TOLERANCE)}


def numbers(setting: Setting, n_runs: int) -> dict[str, float]:
    """What was diagnosed, and the largest relative errors of frozen and moving kernel over the recorded steps.

    The expected loss of the real network is that of the linearized one, which is exact, and the linearization term of a
    budget, real minus linearized runs on the same batches, whose sampling error is small.
    """
    linearization = setting.linearization()
    limit = max_lr(linearization, setting.batch_size, momentum=setting.momentum)
    sgd = sgdsde.SGD(setting.fraction * limit, setting.batch_size, momentum=setting.momentum)
    record = [0, *np.unique(np.rint(np.geomspace(1, setting.n_steps, RECORDED))).astype(int).tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Past its range the moving kernel warns: that is what is diagnosed.
        found = diagnose(linearization, sgd, setting.n_steps, record=record, tolerance=TOLERANCE)
    budget = error_budget(linearization, sgd, setting.n_steps, n_runs, seed=SEED, record=record).train
    real = budget.predicted + budget.terms["linearization"].value
    moving = torch.full_like(real, torch.inf) if found.moving_losses is None else found.moving_losses
    return {name: check.value for name, check in found.checks.items()} | {
        "width": setting.width,
        "fraction": setting.fraction,
        "batch_size": setting.batch_size,
        "momentum": setting.momentum,
        "advised": ADVICE.index(found.advice),
        "expected_frozen": found.frozen_error,
        "expected_moving": found.moving_error,
        "measured_frozen": largest(real - budget.predicted, real),
        "measured_moving": largest(real - moving, real),
        "standard_error": float((budget.terms["linearization"].standard_error / real).max()),
    }


def largest(error: torch.Tensor, real: torch.Tensor) -> float:
    """Largest relative error."""
    return float((error / real).abs().max())


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
