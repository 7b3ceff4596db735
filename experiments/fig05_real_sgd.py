"""SGD as it is really run: momentum, Nesterov, weight decay, a schedule, shuffled epochs, noisy labels."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

import sgdsde
from experiments.curves import band, samples
from experiments.frame import Progress, Scale, by_scale, main
from experiments.problems import digits_mlp
from sgdsde.stability import max_lr

SEED = 0
BATCH_SIZE = 8
MOMENTUM = 0.9
FRACTION_OF_LIMIT = 0.4
"""Learning rate in units of the largest one that is stable in mean square, with the momentum of the panel."""

PEAK_OF_LIMIT = 0.8
"""Of the cosine schedule, whose mean is half of its peak."""

TOTAL_DECAY = 0.06
"""Share of the weights that decay takes in all; the kernel, and with it the linearization, moves by twice as much."""

LABEL_NOISE = 0.5


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    n_test: int
    width: int
    n_steps: int
    n_runs: int
    n_linearized: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(n_train=48, n_test=32, width=256, n_steps=48, n_runs=16, n_linearized=500),
        laptop=Sizes(n_train=192, n_test=96, width=1024, n_steps=144, n_runs=128, n_linearized=1000),
        paper=Sizes(n_train=512, n_test=256, width=4096, n_steps=1024, n_runs=1000, n_linearized=4000),
    )
    problem = digits_mlp(sizes.n_train, sizes.n_test, sizes.width)
    linearization = sgdsde.linearize(problem, progress=progress("kernel"))
    ways = ways_to_train(linearization, sizes.n_steps)
    arrays: dict[str, np.ndarray] = {
        "panels": np.array(list(ways)),
        "steps_per_epoch": np.array(sizes.n_train / BATCH_SIZE),
    }
    for name, sgd in ways.items():
        arrays |= panel(name, linearization, sgd, sizes, progress)
    return arrays


def ways_to_train(linearization: sgdsde.Linearization, n_steps: int) -> dict[str, sgdsde.SGD]:
    """One word each, beside learning rate and batch size."""
    limit = max_lr(linearization, BATCH_SIZE)
    heavy_ball = max_lr(linearization, BATCH_SIZE, momentum=MOMENTUM)
    nesterov = max_lr(linearization, BATCH_SIZE, momentum=MOMENTUM, nesterov=True)
    plain = sgdsde.SGD(FRACTION_OF_LIMIT * limit, BATCH_SIZE)

    def cosine(step: int) -> float:
        return PEAK_OF_LIMIT * limit * (1 + math.cos(math.pi * step / n_steps)) / 2

    return {
        "momentum": replace(plain, lr=FRACTION_OF_LIMIT * heavy_ball, momentum=MOMENTUM),
        "nesterov": replace(plain, lr=FRACTION_OF_LIMIT * nesterov, momentum=MOMENTUM, nesterov=True),
        "weight_decay": replace(plain, weight_decay=TOTAL_DECAY / (plain.lr_at(0) * n_steps)),
        "cosine": replace(plain, lr=cosine),
        "shuffled": replace(plain, sampling="shuffled"),
        "label_noise": replace(plain, label_noise_std=LABEL_NOISE),
    }


def without_the_word(sgd: sgdsde.SGD, n_steps: int) -> sgdsde.SGD:
    """Plain SGD over the same time: what is left when the word of the panel is ignored."""
    mean_lr = float(np.mean([sgd.lr_at(k) for k in range(n_steps)]))
    return sgdsde.SGD(mean_lr / (1 - sgd.momentum), BATCH_SIZE)


def panel(
    name: str, linearization: sgdsde.Linearization, sgd: sgdsde.SGD, sizes: Sizes, progress: Progress
) -> dict[str, np.ndarray]:
    """Everything that is drawn for one way of training, by names that start with ``name``."""
    n_steps = sizes.n_steps
    record = [0, *np.unique(np.rint(np.geomspace(1, n_steps, 36))).astype(int).tolist()]
    measured = sgdsde.run_ensemble(
        linearization.problem,
        sgd,
        n_steps,
        sizes.n_runs,
        seed=SEED,
        record=record,
        progress=progress(f"{name}, real runs"),
    )
    linearized = sgdsde.run_ensemble(
        linearization,
        sgd,
        n_steps,
        sizes.n_linearized,
        seed=SEED,
        record=record,
        progress=progress(f"{name}, linearized runs"),
    )
    predicted = sgdsde.predict(linearization, sgd, n_steps, record=record, progress=progress(f"{name}, recursion"))
    without = sgdsde.predict(linearization, without_the_word(sgd, n_steps), n_steps, record=record)
    arrays = {"steps": np.array(record), "lr": np.array(sgd.lr_at(0))}
    for side in ("train", "test"):
        arrays[f"{side}_measured"] = samples(measured, side)
        arrays[f"{side}_linearized"] = samples(linearized, side)
        arrays[f"{side}_predicted"] = band(predicted, side).mean.numpy()
        arrays[f"{side}_without"] = band(without, side).mean.numpy()
    arrays["train_quantiles"] = np.stack([band(predicted, "train").quantile(q).numpy() for q in (0.05, 0.95)])
    return {f"{name}_{key}": value for key, value in arrays.items()}


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
