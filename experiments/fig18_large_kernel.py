"""From a kernel on disk to a predicted loss: ten outputs, one shared kernel, its leading eigenpairs only."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from sgdsde import SGD, dynamics, stability
from sgdsde.kernel import KroneckerKernel, TiledKernel, leading_eigenpairs

SEED = 0
SHARE_OF_LIMIT = 0.1


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    n_train: int
    n_test: int
    width: int
    batch_size: int
    n_steps: int
    n_runs: int
    ranks: tuple[int, ...]


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(128, 64, 256, 32, 60, 4, (16, 48)),
        laptop=Sizes(1024, 512, 2048, 128, 200, 16, (32, 128, 512)),
        paper=Sizes(1400, 397, 8192, 128, 1000, 64, (32, 128, 512)),
    )
    problem = ten_outputs(sizes)
    with tempfile.TemporaryDirectory() as folder:
        trace, arrays = kernel_on_disk(problem, Path(folder) / "kernel", progress)
        arrays |= spectrum(trace, max(sizes.ranks), progress)
        shared = KroneckerKernel(trace, problem.n_outputs, scale=1 / problem.n_outputs)
        return arrays | curves(problem, shared, sizes, progress)


def ten_outputs(sizes: Sizes) -> sgdsde.Problem:
    """Digits, pixels centered, one-hot targets; one hidden layer."""
    data = sgdsde.datasets.digits(sizes.n_train, sizes.n_test, target="onehot", flatten=True)
    generator = torch.Generator().manual_seed(SEED)
    model = sgdsde.networks.MLP(data.in_features, sizes.width, 10, generator=generator)
    return sgdsde.Problem(model.to(device()), **data.to(device=device()).tensors(), loss=torch.nn.MSELoss())


def kernel_on_disk(
    problem: sgdsde.Problem, folder: Path, progress: Progress
) -> tuple[TiledKernel, dict[str, np.ndarray]]:
    """The kernel summed over outputs in tiles: made, half deleted, resumed, and held against the dense one."""

    def made() -> TiledKernel:
        tile, ticks = max(16, problem.n_train // 8), progress("tiles")
        return TiledKernel.create(
            folder, problem.model, problem.x_train, outputs="trace", tile=tile, memory=2**30, progress=ticks
        )

    made()
    first = {path.name: path.read_bytes() for path in folder.glob("tile*")}
    for name in sorted(first)[1::2]:
        (folder / name).unlink()
    kernel = made()
    same = all((folder / name).read_bytes() == content for name, content in first.items())
    dense = sgdsde.empirical_ntk(problem.model, problem.x_train, outputs="trace")
    error = (kernel.to_dense() - dense).abs().max() / dense.abs().max()
    return kernel, {"tiles": np.array(len(first)), "same_bits": np.array(same), "kernel_error": error.cpu().numpy()}


def spectrum(kernel: TiledKernel, rank: int, progress: Progress) -> dict[str, np.ndarray]:
    pairs = leading_eigenpairs(kernel, rank, progress=progress("eigenpairs"))
    share = pairs.values.cumsum(0) / kernel.trace()
    return {
        "eigenvalues": pairs.values.cpu().numpy(),
        "share_of_trace": share.cpu().numpy(),
        "largest_residual": (pairs.residuals.max() / pairs.values[0]).cpu().numpy(),
    }


def curves(problem: sgdsde.Problem, shared: KroneckerKernel, sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Expected losses on all and on the leading eigenpairs, with the bound, and those of real training."""
    whole = sgdsde.linearize(problem, kernel=shared)
    limit = stability.max_lr(whole, sizes.batch_size)
    sgd = SGD(SHARE_OF_LIMIT * limit, sizes.batch_size)
    record = sorted({0, 1, *np.geomspace(2, sizes.n_steps, 14).round().astype(int).tolist()})

    def predicted(linearization: sgdsde.Linearization) -> sgdsde.Trajectory:
        one = dynamics.TracedRecursion()
        return sgdsde.predict(
            linearization, sgd, sizes.n_steps, dynamics=one, record=record, progress=progress("prediction")
        )

    measured = sgdsde.run_ensemble(
        problem, sgd, sizes.n_steps, sizes.n_runs, seed=SEED, record=record, progress=progress("real runs")
    )
    full = predicted(whole)
    truncated = [predicted(whole.truncate(rank, tail="frozen")) for rank in sizes.ranks]
    bounds = [one.truncation_error for one in truncated]
    assert measured.test_loss is not None
    assert full.test_loss is not None
    return {
        "steps": np.array(record),
        "ranks": np.array(sizes.ranks),
        "lr": np.array(sgd.lr_at(0)),
        "limit": np.array(limit),
        "train_measured": measured.train_loss.mean.numpy(),
        "train_standard_error": measured.train_loss.standard_error.numpy(),
        "test_measured": measured.test_loss.mean.numpy(),
        "train_predicted": full.train_loss.mean.numpy(),
        "test_predicted": full.test_loss.mean.numpy(),
        "train_truncated": np.stack([one.train_loss.mean.numpy() for one in truncated]),
        "truncation_error": np.stack([bound.numpy() for bound in bounds if bound is not None]),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
