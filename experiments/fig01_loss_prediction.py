"""Loss of minibatch SGD, predicted from the linearization at initialization and measured over real runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import sgdsde
from experiments.curves import band, samples
from experiments.frame import Progress, Scale, by_scale, main
from experiments.predictors import predictors
from experiments.problems import digits_mlp, mnist_cnn, mnist_is_there, mnist_mlp

SEED = 0
FRACTION_OF_LIMIT = 0.5
"""Learning rate in units of the largest one that is stable in mean square."""


N_LINEARIZED = 1000


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_runs: int
    digits: int
    digits_width: int
    digits_steps: int
    mnist: int
    mnist_width: int
    mnist_steps: int
    channels: int
    image_size: int


@dataclass(frozen=True)
class Course:
    """How an ensemble is trained."""

    batch_size: int
    n_steps: int
    n_runs: int
    n_recorded: int

    @property
    def record(self) -> list[int]:
        """Step 0, and geometric steps up to the last."""
        spaced = np.geomspace(1, self.n_steps, self.n_recorded)
        return [0, *np.unique(np.rint(spaced).astype(int)).tolist()]


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(16, 48, 256, 40, mnist=32, mnist_width=256, mnist_steps=15, channels=32, image_size=7),
        laptop=Sizes(64, 512, 1024, 400, mnist=256, mnist_width=2048, mnist_steps=250, channels=192, image_size=14),
        paper=Sizes(1000, 512, 4096, 4000, mnist=256, mnist_width=4096, mnist_steps=4000, channels=512, image_size=28),
    )
    digits = sgdsde.linearize(digits_mlp(sizes.digits, 256, sizes.digits_width), progress=progress("kernel, digits"))
    arrays = {"dynamics": np.array(list(predictors())), "panels": np.array(["digits_8", "digits_2"])}
    for name, batch_size in (("digits_8", 8), ("digits_2", 2)):
        arrays |= panel(name, digits, Course(batch_size, sizes.digits_steps, sizes.n_runs, n_recorded=50), progress)
    if not mnist_is_there():
        return arrays
    makers: dict[str, Callable[[], sgdsde.Problem]] = {
        "mnist_cnn": lambda: mnist_cnn(sizes.mnist, 128, sizes.channels, image_size=sizes.image_size, depth=1),
        "mnist_mlp": lambda: mnist_mlp(sizes.mnist, 128, sizes.mnist_width, image_size=sizes.image_size),
    }
    for name, make in makers.items():
        linearization = sgdsde.linearize(make(), progress=progress(f"kernel, {name}"))
        arrays |= panel(name, linearization, Course(4, sizes.mnist_steps, sizes.n_runs, n_recorded=32), progress)
    return arrays | {"panels": np.array(["digits_8", "digits_2", *makers])}


def panel(name: str, linearization: sgdsde.Linearization, course: Course, progress: Progress) -> dict[str, np.ndarray]:
    """Everything that is drawn for one problem and batch size, by names that start with ``name``."""
    limit = sgdsde.stability.max_lr(linearization, course.batch_size)
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * limit, course.batch_size)
    measured, linearized = (
        sgdsde.run_ensemble(
            start,
            sgd,
            course.n_steps,
            n_runs,
            seed=SEED,  # so the first linearized runs see the very batches of the real ones
            record=course.record,
            progress=progress(f"{name}, {kind} runs"),
        )
        for kind, start, n_runs in (
            ("real", linearization.problem, course.n_runs),
            ("linearized", linearization, max(N_LINEARIZED, course.n_runs)),
        )
    )
    predicted = [
        sgdsde.predict(
            linearization,
            sgd,
            course.n_steps,
            dynamics=dynamics,
            record=course.record,
            progress=progress(f"{name}, {key}"),
        )
        for key, dynamics in predictors().items()
    ]
    arrays: dict[str, np.ndarray] = {
        "steps": np.array(course.record),
        "batch_size": np.array(course.batch_size),
        "lr": np.array(sgd.lr),
        "limit": np.array(limit),
        "limit_full_batch": np.array(sgdsde.stability.max_lr_full_batch(linearization)),
        "first_step": first_step(linearization, sgd),
        "descent": descent(linearization, sgd, course.n_steps),
    }
    for side in ("train", "test"):
        arrays[f"{side}_measured"] = samples(measured, side)
        arrays[f"{side}_linearized"] = samples(linearized, side)
        arrays[f"{side}_predicted"] = np.stack([band(each, side).mean.numpy() for each in predicted])
    return {f"{name}_{key}": value for key, value in arrays.items()}


def first_step(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> np.ndarray:
    """Expected training loss after one step, from the n steps that single examples would make.

    A batch is B independent draws, so E|e_1|^2 = (1/B) mean_i |e_0 - lr g_i|^2 + (1 - 1/B) |e_0 - lr mean_i g_i|^2.
    """
    residual, batch_size = linearization.residual.flatten(), sgd.batch_size_at(0)
    single = residual[:, None] - sgd.lr_at(0) * 2 * linearization.dense_kernel * residual
    alone, together = single.square().sum(0).mean(), single.mean(1).square().sum()
    return np.array(float(alone / batch_size + (1 - 1 / batch_size) * together) / len(residual))


def descent(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int) -> np.ndarray:
    """Training loss of gradient descent after the last step, by a matrix power."""
    residual = linearization.residual.flatten()
    step = torch.eye(len(residual), dtype=residual.dtype, device=residual.device)
    step = step - sgd.lr_at(0) * 2 / len(residual) * linearization.dense_kernel
    return np.array(float((torch.linalg.matrix_power(step, n_steps) @ residual).square().mean()))


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
