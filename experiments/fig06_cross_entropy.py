"""Cross-entropy of ten classes: loss and accuracy of minibatch SGD, predicted from the network at initialization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import sgdsde
from experiments.curves import band, samples
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.problems import mnist_is_there
from sgdsde import dynamics
from sgdsde.stability import max_lr

SEED = 0
BATCH_SIZE = 8
FRACTION_OF_LIMIT = 0.3
"""Learning rate in units of the largest one that is stable in mean square near the initial outputs."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    n_test: int
    width: int
    n_steps: int
    n_runs: int
    n_linearized: int
    n_recorded: int


def predictors() -> dict[str, dynamics.Dynamics]:
    """Every theory that is drawn, coarsest first."""
    return {
        "GradientDescent": dynamics.GradientDescent(),
        "SDEPaths": dynamics.SDEPaths(n_paths=500),
        "GaussianClosure": dynamics.GaussianClosure(),
    }


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(24, 16, width=512, n_steps=24, n_runs=16, n_linearized=200, n_recorded=8),
        laptop=Sizes(64, 64, width=2048, n_steps=240, n_runs=128, n_linearized=600, n_recorded=24),
        paper=Sizes(256, 256, width=8192, n_steps=1000, n_runs=1000, n_linearized=4000, n_recorded=40),
    )
    data = {"digits": sgdsde.datasets.digits(sizes.n_train, sizes.n_test, target="class")}
    if mnist_is_there():
        data["mnist"] = sgdsde.datasets.mnist(sizes.n_train, sizes.n_test, target="class", image_size=14)
    arrays: dict[str, np.ndarray] = {"dynamics": np.array(list(predictors())), "panels": np.array(list(data))}
    for name, examples in data.items():
        arrays |= panel(name, examples, sizes, progress)
    return arrays


def panel(name: str, data: sgdsde.datasets.Dataset, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Everything that is drawn for one data set, by names that start with ``name``."""
    generator = torch.Generator().manual_seed(SEED)
    model = sgdsde.networks.MLP(data.in_features, sizes.width, data.out_features, generator=generator)
    where = device()
    problem = sgdsde.Problem(model.to(where), **data.to(device=where).tensors(), loss=nn.CrossEntropyLoss())
    linearization = sgdsde.linearize(problem, progress=progress(f"{name}, kernel"))
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * max_lr(linearization, BATCH_SIZE), BATCH_SIZE)
    record = [0, *np.unique(np.rint(np.geomspace(1, sizes.n_steps, sizes.n_recorded))).astype(int).tolist()]
    measured, linearized = (
        sgdsde.run_ensemble(
            what,
            sgd,
            sizes.n_steps,
            n_runs,
            seed=SEED,
            record=record,
            observe=("loss", "accuracy"),
            progress=progress(f"{name}, {words}"),
        )
        for what, n_runs, words in (
            (problem, sizes.n_runs, "real runs"),
            (linearization, sizes.n_linearized, "linearized runs"),
        )
    )
    arrays = {"steps": np.array(record), "lr": np.array(sgd.lr_at(0))}
    for side in ("train", "test"):
        arrays[f"{side}_measured"] = samples(measured, side)
        arrays[f"{side}_linearized"] = samples(linearized, side)
        right = accuracy(measured, side).samples
        assert right is not None
        arrays[f"{side}_accuracy_measured"] = right.numpy()
    for label, theory in predictors().items():
        predicted = sgdsde.predict(
            linearization,
            sgd,
            sizes.n_steps,
            dynamics=theory,
            record=record,
            observe=("loss", "accuracy"),
            progress=progress(f"{name}, {label}"),
        )
        for side in ("train", "test"):
            arrays[f"{side}_{label}"] = band(predicted, side).mean.numpy()
            arrays[f"{side}_spread_{label}"] = band(predicted, side).std.numpy()
            arrays[f"{side}_accuracy_{label}"] = accuracy(predicted, side).mean.numpy()
    return {f"{name}_{key}": value for key, value in arrays.items()}


def accuracy(trajectory: sgdsde.Trajectory, side: str) -> sgdsde.AccuracyBand:
    """The accuracy of one side, which must be there."""
    found = trajectory.train_accuracy if side == "train" else trajectory.test_accuracy
    assert found is not None
    return found


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
