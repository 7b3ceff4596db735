"""Outputs of the network along minibatch SGD: mean and spread, predicted and measured."""

from __future__ import annotations

from typing import Any

import numpy as np

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.predictors import predictors
from experiments.problems import digits_mlp

SEED = 0
BATCH_SIZE = 8
FRACTION_OF_LIMIT = 0.5
KEPT = {"train": 4, "test": 2}
"""Outputs that are drawn: those of the first examples of each set, not chosen."""


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    n_train = by_scale(scale, smoke=64, laptop=512, paper=512)
    width = by_scale(scale, smoke=256, laptop=1024, paper=4096)
    n_steps = by_scale(scale, smoke=50, laptop=400, paper=4000)
    n_runs = by_scale(scale, smoke=32, laptop=64, paper=1000)
    problem = digits_mlp(n_train, 128, width)
    linearization = sgdsde.linearize(problem, progress=progress("kernel"))
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * sgdsde.stability.max_lr(linearization, BATCH_SIZE), BATCH_SIZE)
    record = [0, *np.unique(np.rint(np.geomspace(1, n_steps, 24))).astype(int).tolist()]
    asked: dict[str, Any] = {"record": record, "observe": ("outputs",)}
    measured = sgdsde.run_ensemble(problem, sgd, n_steps, n_runs, seed=SEED, progress=progress("real runs"), **asked)
    linearized = sgdsde.run_ensemble(
        linearization, sgd, n_steps, 1000, seed=SEED, progress=progress("linearized runs"), **asked
    )
    laws = {
        name: sgdsde.predict(linearization, sgd, n_steps, dynamics=dynamics, progress=progress(name), **asked)
        for name, dynamics in predictors().items()
    }
    descent = laws.pop("GradientDescent")
    del laws["GradientFlow"]
    arrays = {"steps": np.array(record), "lr": np.array(sgd.lr), "dynamics": np.array(list(laws))}
    for side in KEPT:
        targets = problem.y_train if side == "train" else problem.y_test
        assert targets is not None
        arrays[f"{side}_targets"] = targets[: KEPT[side], 0].cpu().numpy()
        arrays |= summary(side, samples(measured, side), laws)
        # The exact mean of a linearized run is known, so its squared distances are unbiased for the variance.
        exact = band(descent, side).mean[..., 0].numpy()
        arrays[f"{side}_linearized_squares"] = ((samples(linearized, side) - exact) ** 2).mean(-1)
    return arrays


def summary(side: str, measured: np.ndarray, laws: dict[str, sgdsde.Trajectory]) -> dict[str, np.ndarray]:
    """A few outputs in full, of all outputs [n_runs, T, examples] the mean variance and the coverage of each law."""
    means = np.stack([band(law, side).mean[..., 0].numpy() for law in laws.values()])
    stds = np.stack([band(law, side).std[..., 0].numpy() for law in laws.values()])
    covered = [(np.abs(measured - mean) <= 2 * std).mean((0, 2)) for mean, std in zip(means, stds)]
    kept = slice(0, KEPT[side])
    return {
        f"{side}_measured": measured[..., kept],
        f"{side}_means": means[..., kept],
        f"{side}_stds": stds[..., kept],
        f"{side}_variance": (stds**2).mean(-1),
        f"{side}_coverage": np.stack(covered),
        f"{side}_measured_squares": ((measured - measured.mean(0)) ** 2).mean(-1),
    }


def samples(trajectory: sgdsde.Trajectory, side: str) -> np.ndarray:
    """[n_runs, T, examples]."""
    outputs = band(trajectory, side).samples
    assert outputs is not None
    return np.asarray(outputs[..., 0].numpy())


def band(trajectory: sgdsde.Trajectory, side: str) -> sgdsde.OutputBand:
    outputs = trajectory.train_outputs if side == "train" else trajectory.test_outputs
    assert outputs is not None
    return outputs


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
