"""The loss of networks that learn features: real SGD against a frozen kernel, descent, and the moving kernel."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch

import sgdsde
from experiments.curves import band, samples
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.problems import mnist_is_there
from sgdsde.dynamics import Dynamics, GradientDescent, MomentRecursion, MovingKernel, NoiseFeedback
from sgdsde.dynamics.moving_kernel import NearLimitWarning
from sgdsde.dynamics.moving_kernel.mean_path import kernel_drift

SEED = 0
BATCH_SIZE = 8
ACTIVATIONS = ("tanh", "relu")
FRACTION_OF_LIMIT = 0.4
"""Learning rate in units of the largest one that is stable in mean square with the kernel of the start."""

FROZEN: dict[str, Dynamics] = {"GradientDescent": GradientDescent(), "MomentRecursion": MomentRecursion()}


def thorough(feedback: NoiseFeedback | None) -> MovingKernel:
    """With more directions, draws and refreshes than the default."""
    return MovingKernel(rank=256, tolerance=0.1, feedback=feedback)


THOROUGH = thorough(NoiseFeedback(n_draws=32, n_kernel_draws=4))
INGREDIENTS: dict[str, MovingKernel] = {
    "kernel_of_path": thorough(None),
    "mean_gradient": thorough(NoiseFeedback(n_draws=32, outputs=False)),
    "mean_outputs": thorough(NoiseFeedback(n_draws=32)),
    "MovingKernel": THOROUGH,
}
"""Each adds one thing to the one before, the last the mean kernel."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    n_test: int
    widths: tuple[int, ...]
    mnist_widths: tuple[int, ...]
    n_steps: int
    n_runs: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    laptop = Sizes(32, 32, (32, 128, 1024), (64,), n_steps=150, n_runs=128)
    sizes = by_scale(
        scale,
        smoke=Sizes(8, 8, (16, 64), (16,), n_steps=10, n_runs=64),
        laptop=laptop,
        paper=Sizes(128, 128, (32, 64, 128, 256, 512, 1024), (32, 128, 512), n_steps=400, n_runs=1000),
    )
    record = [0, *np.unique(np.rint(np.geomspace(1, sizes.n_steps, 24)).astype(int)).tolist()]
    data = {"digits": sgdsde.datasets.digits(sizes.n_train, sizes.n_test, target="onehot")}
    widths = {"digits": sizes.widths}
    if mnist_is_there():
        data["mnist"] = sgdsde.datasets.mnist(sizes.n_train, sizes.n_test, target="onehot", image_size=14, flatten=True)
        widths["mnist"] = sizes.mnist_widths
    cells = [(name, activation, width) for name in data for activation in ACTIVATIONS for width in widths[name]]
    arrays = {"steps": np.array(record), "cells": np.array(["_".join(map(str, cell)) for cell in cells])}
    for name, activation, width in progress("networks")(cells):
        problem = network(data[name], activation, width)
        narrowest = name == "digits" and width == sizes.widths[0]
        arrays |= compared(f"{name}_{activation}_{width}", problem, record, sizes.n_runs, ingredients=narrowest)
    return arrays


def network(data: sgdsde.datasets.Dataset, activation: str, width: int) -> sgdsde.Problem:
    """One hidden layer in the standard parametrization, ten outputs, targets 0 and 1."""
    model = sgdsde.networks.MLP(
        data.in_features,
        width,
        10,
        activation=activation,
        parametrization="standard",
        generator=torch.Generator().manual_seed(SEED),
    )
    where = device()
    return sgdsde.Problem(model.to(where), **data.to(device=where).tensors(), loss=torch.nn.MSELoss())


def compared(
    name: str, problem: sgdsde.Problem, record: list[int], n_runs: int, *, ingredients: bool
) -> dict[str, np.ndarray]:
    """Measured and predicted losses of one network, by names that start with its own."""
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * sgdsde.stability.max_lr(linearization, BATCH_SIZE), BATCH_SIZE)
    measured = sgdsde.run_ensemble(problem, sgd, record[-1], n_runs, seed=SEED, record=record)
    arrays = {
        "drift": np.array(kernel_drift(problem, sgd, record[-1]).largest),
        "lr": np.array(sgd.lr),
        "train_measured": samples(measured, "train"),
        "test_measured": samples(measured, "test"),
    }
    kinds = FROZEN | (INGREDIENTS if ingredients else {"MovingKernel": THOROUGH})
    for kind, dynamics in kinds.items():
        started = time.process_time()
        with warnings.catch_warnings():
            # A prediction near the limit is what some of these networks are for.
            warnings.simplefilter("ignore", NearLimitWarning)
            predicted = sgdsde.predict(linearization, sgd, record[-1], record=record, dynamics=dynamics)
        seconds = time.process_time() - started
        for side in ("train", "test"):
            arrays[f"{side}_{kind}"] = band(predicted, side).mean.numpy()
        if ingredients:
            arrays[f"seconds_{kind}"] = np.array(seconds)
    return {f"{name}_{key}": value for key, value in arrays.items()}


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
