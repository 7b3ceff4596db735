"""Loss of minibatch SGD, predicted from the linearization at initialization and measured over real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.predictors import predictors
from experiments.problems import digits_mlp, mnist_cnn, mnist_is_there, mnist_mlp

SEED = 0
FRACTION_OF_LIMIT = 0.5
"""Learning rate in units of the largest one that is stable in mean square."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    width: int
    n_steps: int
    n_runs: int
    n_mnist: int
    channels: int
    image_size: int

    @property
    def n_linearized(self) -> int:
        return 1000


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(n_train=64, width=256, n_steps=60, n_runs=16, n_mnist=48, channels=16, image_size=7),
        laptop=Sizes(n_train=512, width=1024, n_steps=400, n_runs=64, n_mnist=256, channels=64, image_size=14),
        paper=Sizes(n_train=512, width=4096, n_steps=4000, n_runs=1000, n_mnist=256, channels=256, image_size=28),
    )
    arrays: dict[str, np.ndarray] = {"dynamics": np.array(list(predictors()))}
    digits = sgdsde.linearize(digits_mlp(sizes.n_train, 256, sizes.width), progress=progress("kernel, digits"))
    for batch_size in (8, 2):
        arrays |= panel(f"digits_{batch_size}", digits, batch_size, sizes, progress)
    arrays["panels"] = np.array(["digits_8", "digits_2"])
    if not mnist_is_there():
        return arrays
    makers: dict[str, Callable[[], sgdsde.Problem]] = {
        "mnist_cnn": lambda: mnist_cnn(sizes.n_mnist, 256, sizes.channels, image_size=sizes.image_size, depth=1),
        "mnist_mlp": lambda: mnist_mlp(sizes.n_mnist, 256, sizes.width, image_size=sizes.image_size),
    }
    for name, make in makers.items():
        linearization = sgdsde.linearize(make(), progress=progress(f"kernel, {name}"))
        arrays |= panel(name, linearization, 4, sizes, progress)
    return arrays | {"panels": np.array(["digits_8", "digits_2", *makers])}


def panel(
    name: str, linearization: sgdsde.Linearization, batch_size: int, sizes: Sizes, progress: Progress
) -> dict[str, np.ndarray]:
    """Everything that is drawn for one problem and batch size, by names that start with ``name``."""
    limit = sgdsde.stability.max_lr(linearization, batch_size)
    sgd = sgdsde.SGD(lr=FRACTION_OF_LIMIT * limit, batch_size=batch_size)
    measured = sgdsde.run_ensemble(
        linearization.problem, sgd, sizes.n_steps, sizes.n_runs, seed=SEED, progress=progress(f"{name}, real runs")
    )
    # The first of these runs see the very batches of the real ones.
    linearized = sgdsde.run_ensemble(
        linearization, sgd, sizes.n_steps, sizes.n_linearized, seed=SEED, progress=progress(f"{name}, linearized runs")
    )
    predicted = {
        key: sgdsde.predict(linearization, sgd, sizes.n_steps, dynamics=dynamics, progress=progress(f"{name}, {key}"))
        for key, dynamics in predictors().items()
    }
    arrays: dict[str, np.ndarray] = {
        "steps": measured.steps.numpy(),
        "times": measured.times.numpy(),
        "lr": np.array(sgd.lr),
        "batch_size": np.array(batch_size),
        "limit": np.array(limit),
        "limit_full_batch": np.array(sgdsde.stability.max_lr_full_batch(linearization)),
        "first_step": first_step(linearization, sgd),
        "descent": descent(linearization, sgd, sizes.n_steps),
    }
    for side in ("train", "test"):
        arrays[f"{side}_measured"] = _band(measured, side).samples.numpy()
        arrays[f"{side}_linearized"] = _band(linearized, side).samples.numpy()
        arrays[f"{side}_predicted"] = np.stack([_band(each, side).mean.numpy() for each in predicted.values()])
    return {f"{name}_{key}": value for key, value in arrays.items()}


def first_step(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> np.ndarray:
    """Expected training loss after one step, from the n steps that single examples would make.

    A batch is B independent draws, so E|e_1|^2 = (1/B) mean_i |e_0 - lr g_i|^2 + (1 - 1/B) |e_0 - lr mean_i g_i|^2.
    """
    residual, batch_size = linearization.residual.flatten(), sgd.batch_size_at(0)
    single = residual[:, None] - sgd.lr_at(0) * 2 * linearization.kernel * residual
    alone, together = single.square().sum(0).mean(), single.mean(1).square().sum()
    return np.array(float(alone / batch_size + (1 - 1 / batch_size) * together) / len(residual))


def descent(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int) -> np.ndarray:
    """Training loss of gradient descent after the last step, by a matrix power."""
    residual = linearization.residual.flatten()
    step = torch.eye(len(residual), dtype=residual.dtype, device=residual.device)
    step = step - sgd.lr_at(0) * 2 / len(residual) * linearization.kernel
    return np.array(float((torch.linalg.matrix_power(step, n_steps) @ residual).square().mean()))


def _band(trajectory: sgdsde.Trajectory, side: str) -> sgdsde.LossBand:
    band = trajectory.train_loss if side == "train" else trajectory.test_loss
    assert band is not None
    return band


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
