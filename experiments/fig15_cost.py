"""Processor seconds of predicting and of measuring the same curve, against horizon, examples and number of settings.

One thread. Costs that are proportional to the steps (the recursion's, real training's) are measured on a few steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.problems import digits_mlp
from sgdsde.dynamics import MomentRecursion, ReducedMoments

SEED = 0
BATCH = 4
SHARE = 0.5
"""Learning rate in units of the mean-square limit."""
HORIZONS = (10**2, 10**3, 10**4, 10**5, 10**6, 10**7)
SWEEP_STEPS = 2000
CHECKED = (0, 1, 20, 60, 150, 400)
FEW = 20


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    examples = by_scale(scale, smoke=(48, 96), laptop=(64, 128, 256, 512), paper=(64, 128, 256, 512, 1024))
    settings = by_scale(scale, smoke=(1, 8), laptop=(1, 3, 10, 30, 100), paper=(1, 3, 10, 30, 100, 300))
    held = by_scale(scale, smoke=64, laptop=256, paper=256)
    width = by_scale(scale, smoke=128, laptop=1024, paper=1024)
    prepared(digits_mlp(16, 16, width, seed=SEED))  # what is imported late, before the clock
    problem = digits_mlp(held, 16, width, seed=SEED)
    kernel, linearization, sgd, limit = prepared(problem)
    reduced = [seconds(partial(predict, linearization, sgd, k)) for k in progress("horizons")(HORIZONS)]
    errors = [error(linearization, sgd)]
    by_examples = []
    for n in progress("examples")(examples):
        one = digits_mlp(n, 16, width, seed=SEED)
        made, line, how, _ = prepared(one)
        by_examples.append([made, seconds(partial(predict, line, how, 10**4)), plain_step(line, how)])
        by_examples[-1].append(real_step(one, how))
        errors.append(error(line, how))
    sweeps = []
    for count in progress("settings")(settings):
        sgds = [sgdsde.SGD(share * limit, BATCH) for share in np.linspace(0.1, 0.8, count)]
        sweeps.append(seconds(partial(sgdsde.predict_many, linearization, sgds, SWEEP_STEPS)))
    return {
        "horizons": np.array(HORIZONS),
        "kernel": np.array(kernel),
        "reduced": np.array(reduced),
        "plain_step": np.array(plain_step(linearization, sgd)),
        "real_step": np.array(real_step(problem, sgd)),
        "examples": np.array(examples),
        "by_examples": np.array(by_examples),
        "settings": np.array(settings),
        "sweeps": np.array(sweeps),
        "sweep_steps": np.array(SWEEP_STEPS),
        "held": np.array(held),
        "width": np.array(width),
        "errors": np.array(errors),
    }


def prepared(problem: sgdsde.Problem) -> tuple[float, sgdsde.Linearization, sgdsde.SGD, float]:
    """Seconds of kernel and spectrum, and the setting that is predicted."""
    start = time.process_time()
    linearization = sgdsde.linearize(problem)
    assert linearization.eigenbasis.values.numel() > 0
    spent = time.process_time() - start
    limit = sgdsde.stability.max_lr(linearization, BATCH)
    return spent, linearization, sgdsde.SGD(SHARE * limit, BATCH), limit


def predict(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int) -> object:
    return sgdsde.predict(linearization, sgd, n_steps, dynamics=ReducedMoments())


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def plain_step(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> float:
    """Of the recursion, from the difference of two horizons."""

    def go(steps: int) -> float:
        return seconds(lambda: sgdsde.predict(linearization, sgd, steps, dynamics=MomentRecursion(), record=[steps]))

    return max((go(FEW + 2) - go(2)) / FEW, 1e-7)


def real_step(problem: sgdsde.Problem, sgd: sgdsde.SGD) -> float:
    """Of one real training run, from the difference of two horizons."""

    def go(steps: int) -> float:
        return seconds(lambda: sgdsde.run_ensemble(problem, sgd, steps, n_runs=1, record=[steps]))

    return max((go(10 * FEW + 2) - go(2)) / (10 * FEW), 1e-7)


def error(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> float:
    """Largest relative error of the reduced model against the recursion itself."""
    curves = [
        sgdsde.predict(linearization, sgd, CHECKED[-1], dynamics=one, record=CHECKED).train_loss.mean
        for one in (ReducedMoments(), MomentRecursion())
    ]
    return float((curves[0] / curves[1] - 1).abs().max())


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
