"""How far the kernel moves, and how far real SGD leaves the linearized one, at growing width."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.func import functional_call

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.plain_sgd import plain_sgd
from experiments.problems import digits_mlp

SEED = 0
BATCH_SIZE = 8
FRACTION_OF_LIMIT = 0.5
N_INITIALIZATIONS = 8
ACTIVATIONS = ("relu", "tanh")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    laptop = (64, 128, 256, 512, 1024)
    widths = by_scale(scale, smoke=(32, 128), laptop=laptop, paper=(*laptop, 2048, 4096))
    n_train = by_scale(scale, smoke=24, laptop=96, paper=256)
    n_steps = by_scale(scale, smoke=12, laptop=150, paper=1000)
    n_runs = by_scale(scale, smoke=2, laptop=4, paper=64)
    spaced = np.geomspace(1, n_steps, by_scale(scale, smoke=2, laptop=7, paper=12))
    record = [0, *np.unique(np.rint(spaced).astype(int)).tolist()]
    arrays = {"widths": np.array(widths), "steps": np.array(record), "activations": np.array(ACTIVATIONS)}
    for activation in ACTIVATIONS:
        # One learning rate for all, so that time and batches are the same at every width.
        limit = sgdsde.stability.max_lr(digits_mlp(n_train, 1, widths[-1], activation=activation), BATCH_SIZE)
        sgd = sgdsde.SGD(FRACTION_OF_LIMIT * limit, BATCH_SIZE)
        cells = [(width, seed) for width in widths for seed in range(N_INITIALIZATIONS)]
        found = [
            cell(digits_mlp(n_train, 1, width, seed=seed, activation=activation), sgd, record, n_runs)
            for width, seed in progress(f"{activation} networks")(cells)
        ]
        for key in found[0]:
            values = np.stack([each[key] for each in found])
            arrays[f"{activation}_{key}"] = values.reshape(len(widths), N_INITIALIZATIONS, *values.shape[1:])
        arrays[f"{activation}_lr"] = np.array(sgd.lr)
        for key in ("drift", "gap"):
            fitted = exponent(arrays[f"{activation}_{key}"][..., -1], widths)
            arrays |= {f"{activation}_{key}_{name}": value for name, value in fitted.items()}
    return arrays


def cell(problem: sgdsde.Problem, sgd: sgdsde.SGD, record: list[int], n_runs: int) -> dict[str, np.ndarray]:
    """One network: kernel drift of one run, gaps between real and linearized runs on the same batches."""
    linearization = sgdsde.linearize(problem)
    ensembles = [
        sgdsde.run_ensemble(start, sgd, record[-1], n_runs, seed=SEED, record=record, observe=("outputs",))
        for start in (problem, linearization)
    ]
    real, linear = (outputs(each) for each in ensembles)
    weights = plain_sgd(problem, sgd, record, seed=SEED)
    by_hand = functional_call(problem.model, weights[-1], (problem.x_train,)).detach().double().cpu()
    kernels = [sgdsde.empirical_ntk(problem.model, problem.x_train, params=each) for each in weights]
    moved = norm(linear - linearization.outputs.double().cpu())
    return {
        "drift": np.array([float((kernel - kernels[0]).norm() / kernels[0].norm()) for kernel in kernels]),
        "gap": torch.where(moved > 0, norm(real - linear) / moved, 0.0).numpy(),
        "loss": ensembles[0].train_loss.mean.numpy(),
        "by_hand": np.array(float((by_hand - real[0, -1]).norm() / by_hand.norm())),
    }


def outputs(trajectory: sgdsde.Trajectory) -> Tensor:
    """[n_runs, T, n, 1]."""
    assert trajectory.train_outputs is not None
    assert trajectory.train_outputs.samples is not None
    return trajectory.train_outputs.samples


def norm(difference: Tensor) -> Tensor:
    """Root of the sum of squares over runs and examples, [T]."""
    return difference.square().sum((0, 2, 3)).sqrt()


def exponent(values: np.ndarray, widths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Slope of log value in log width, one fit for each initialization, values [widths, initializations].

    The interval is Student's for the mean of the slopes, 95 %: initializations are independent, widths of one are not
    assumed to be anything.
    """
    slopes = np.polyfit(np.log(widths), np.log(values), 1)[0]
    half = stats.t.isf(0.025, len(slopes) - 1) * slopes.std(ddof=1) / np.sqrt(len(slopes))
    return {
        "slopes": slopes,
        "slope": slopes.mean(),
        "slope_low": slopes.mean() - half,
        "slope_high": slopes.mean() + half,
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
