"""Does SGD do what its SDE says? Runs that tend to the equation, and runs whose noise knows no batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import sgdsde
from experiments.curves import samples
from experiments.frame import Progress, Scale, by_scale, main
from experiments.problems import digits_mlp
from sgdsde.dynamics import MomentEquations
from sgdsde.stability import max_lr

SEED = 0
BATCH_SIZE = 8
AMPLIFIED = (1, 2, 4, 8)
"""l of SVAG; each divides the batch size, so that SGD with batches of B/l has its noise."""

FRACTION_OF_LIMIT = 0.5


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    width: int
    n_steps: int
    n_runs: int
    n_control: int
    n_linearized: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(n_train=32, width=256, n_steps=8, n_runs=16, n_control=32, n_linearized=300),
        laptop=Sizes(n_train=48, width=2048, n_steps=16, n_runs=128, n_control=320, n_linearized=4000),
        paper=Sizes(n_train=256, width=8192, n_steps=128, n_runs=1024, n_control=4096, n_linearized=16000),
    )
    problem = digits_mlp(sizes.n_train, 16, sizes.width)
    linearization = sgdsde.linearize(problem, progress=progress("kernel"))
    sgd = sgdsde.SGD(FRACTION_OF_LIMIT * max_lr(linearization, BATCH_SIZE), BATCH_SIZE)
    record = [0, *np.unique(np.rint(np.geomspace(1, sizes.n_steps, 16))).astype(int).tolist()]
    arrays: dict[str, np.ndarray] = {
        "steps": np.array(record),
        "amplified": np.array(AMPLIFIED),
        "lr": np.array(sgd.lr_at(0)),
    }
    sde = sgdsde.predict(linearization, sgd, sizes.n_steps, dynamics=MomentEquations(order=1), record=record)
    arrays["sde"] = sde.train_loss.mean.numpy()
    arrays |= amplified(linearization, sgd, record, sizes, progress)
    return arrays | controls(linearization, sgd, record, sizes, progress)


def amplified(
    linearization: sgdsde.Linearization, sgd: sgdsde.SGD, record: list[int], sizes: Sizes, progress: Progress
) -> dict[str, np.ndarray]:
    """Losses of SVAG for each l: real runs, linearized runs, and the exact expectation of the latter.

    On the linearized model SVAG has the second moments of SGD with batches of B/l and a learning rate of lr/l: the
    expectation comes from the recursion of another SGD, which knows nothing of SVAG.
    """
    arrays = {}
    for factor in AMPLIFIED:
        for name, source, runs in (
            ("real", linearization.problem, sizes.n_runs),
            ("linearized", linearization, sizes.n_linearized),
        ):
            measured = sgdsde.run_ensemble(
                source,
                sgd,
                sizes.n_steps,
                runs,
                variant=sgdsde.SVAG(factor),
                seed=SEED,
                record=record,
                progress=progress(f"SVAG({factor}), {name}"),
            )
            arrays[f"{name}_{factor}"] = samples(measured, "train")
        finer = sgdsde.SGD(sgd.lr_at(0) / factor, BATCH_SIZE // factor)
        exact = sgdsde.predict(linearization, finer, factor * sizes.n_steps, record=[factor * step for step in record])
        arrays[f"exact_{factor}"] = exact.train_loss.mean.numpy()
    return arrays


def controls(
    linearization: sgdsde.Linearization, sgd: sgdsde.SGD, record: list[int], sizes: Sizes, progress: Progress
) -> dict[str, np.ndarray]:
    """Outputs of real runs at two steps, [runs, 2, n]: SGD, noise of its covariance, and of twice the batch."""
    at = [1, sizes.n_steps]
    ensembles: dict[str, tuple[sgdsde.SGD, dict]] = {
        "sgd": (sgd, {}),
        "noisy": (sgd, {"variant": sgdsde.NoisyGradient()}),
        "noisy_double_batch": (sgdsde.SGD(sgd.lr, 2 * BATCH_SIZE), {"variant": sgdsde.NoisyGradient()}),
    }
    arrays = {"control_steps": np.array(at)}
    for seed, (name, (how, words)) in enumerate(ensembles.items()):
        measured = sgdsde.run_ensemble(
            linearization.problem,
            how,
            sizes.n_steps,
            sizes.n_control,
            # Independent of each other: the scores of the claims need it.
            seed=SEED + 1 + seed,
            record=sorted({*record, *at}),
            observe=("loss", "outputs"),
            progress=progress(name),
            **words,
        )
        assert measured.train_outputs is not None
        assert measured.train_outputs.samples is not None
        rows = [measured.steps.tolist().index(step) for step in at]
        arrays[f"outputs_{name}"] = measured.train_outputs.samples[:, rows, :, 0].numpy()
        arrays[f"losses_{name}"] = samples(measured, "train")
    return arrays


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
