"""Where minibatch SGD stops being stable: the predicted loss over learning rate and batch size, and who diverged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.problems import digits_mlp
from sgdsde.dynamics import MomentRecursion
from sgdsde.observables import loss_of_law
from sgdsde.stability import (
    critical_batch_size,
    fastest_lr,
    gradient_noise_scale,
    max_lr,
    max_lr_full_batch,
    sufficient_lr,
)

SEED = 0
FRACTIONS = (0.5, 0.8, 0.9, 1.1, 1.25, 1.6, 2.5)
"""Of the mean-square limit: where ensembles are run."""

LEARNING_RATES = (0.01, 3.0)
"""Range of the map, in units of the full-batch limit."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    width: int
    n_steps: int
    n_runs: int
    n_linearized: int
    n_learning_rates: int
    batch_sizes: tuple[int, ...]
    run_at: tuple[int, ...]


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    fine = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    sizes = by_scale(
        scale,
        smoke=Sizes(48, 128, 64, 8, 500, 12, (1, 2, 4, 8, 16, 32), (1, 8)),
        laptop=Sizes(128, 512, 128, 16, 1000, 28, fine, (1, 2, 4, 8, 16, 32, 64)),
        paper=Sizes(
            512, 4096, 512, 256, 4096, 60, (*fine, 96, 128, 192, 256, 384, 512), (1, 2, 4, 8, 16, 32, 64, 128, 256)
        ),
    )
    linearization = sgdsde.linearize(digits_mlp(sizes.n_train, 1, sizes.width), progress=progress("kernel"))
    arrays = {
        "n_steps": np.array(sizes.n_steps),
        "n_train": np.array(sizes.n_train),
        "start": np.array(float(linearization.residual.square().mean())),
        "full_batch": np.array(max_lr_full_batch(linearization)),
        "critical_batch": np.array(critical_batch_size(linearization)),
        "noise_scale": np.array(gradient_noise_scale(linearization)),
    }
    arrays |= limits(linearization, sizes, progress)
    arrays |= predicted_map(linearization, sizes, progress)
    return arrays | ensembles(linearization, sizes, progress)


def limits(linearization: sgdsde.Linearization, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """The lines of the map, one value a batch size, the costly one at fewer of them."""
    sizes_of_batches = progress("limits")(sizes.batch_sizes)
    rows = [(max_lr(linearization, b), sufficient_lr(linearization, b)) for b in sizes_of_batches]
    fastest = [fastest_lr(linearization, b) for b in progress("fastest learning rates")(sizes.run_at)]
    columns = dict(zip(("limit", "sufficient"), np.array(rows).T))
    return columns | {"batch_sizes": np.array(sizes.batch_sizes), "fastest": np.array(fastest)}


def predicted_map(linearization: sgdsde.Linearization, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Expected loss after the same number of steps, [batch sizes, learning rates]; +inf where it overflows."""
    full_batch = max_lr_full_batch(linearization)
    grid = np.geomspace(*LEARNING_RATES, sizes.n_learning_rates) * full_batch
    loss = np.empty((len(sizes.batch_sizes), len(grid)))
    for row, batch_size in enumerate(progress("map")(sizes.batch_sizes)):
        for column, lr in enumerate(grid):
            sgd = sgdsde.SGD(float(lr), batch_size)
            loss[row, column] = expected_losses(linearization, sgd, (sizes.n_steps,))[0]
    return {"learning_rates": grid, "map": np.nan_to_num(loss, nan=np.inf, posinf=np.inf)}


def expected_losses(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, record: tuple[int, ...]) -> list[float]:
    """Of the moment recursion, without the limits that ``predict`` computes to warn beyond them."""
    problem, losses = linearization.problem, []
    for law in MomentRecursion().evolve(linearization, sgd, record):
        reduced = loss_of_law(
            problem.criterion, law.mean, linearization.targets, covariance=law.covariance, samples=law.samples
        )
        losses.append(float(reduced.mean))
    return losses


def ensembles(linearization: sgdsde.Linearization, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Mean loss at start, middle and end, [batch sizes, fractions, 3]: real runs, linearized runs, exact."""
    record = (0, sizes.n_steps // 2, sizes.n_steps)
    shape = (len(sizes.run_at), len(FRACTIONS))
    found = {name: np.empty((*shape, 3)) for name in ("real", "linearized", "exact")}
    for row, batch_size in enumerate(progress("ensembles")(sizes.run_at)):
        limit = max_lr(linearization, batch_size)
        for column, fraction in enumerate(FRACTIONS):
            sgd = sgdsde.SGD(fraction * limit, batch_size)
            for name, source, runs in (
                ("real", linearization.problem, sizes.n_runs),
                ("linearized", linearization, sizes.n_linearized),
            ):
                measured = sgdsde.run_ensemble(source, sgd, sizes.n_steps, runs, seed=SEED, record=record)
                found[name][row, column] = measured.train_loss.mean.numpy()
            found["exact"][row, column] = expected_losses(linearization, sgd, record)
    return {
        "run_at": np.array(sizes.run_at),
        "fractions": np.array(FRACTIONS),
        "run_limits": np.array([max_lr(linearization, b) for b in sizes.run_at]),
        "n_runs": np.array(sizes.n_runs),
        **{name: np.nan_to_num(values, nan=np.inf, posinf=np.inf) for name, values in found.items()},
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
