"""Gradient confusion over width and depth, along training, and beside the published theorem."""

from __future__ import annotations

import math

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde import meanfield
from sgdsde.networks import MLP, ResNet
from sgdsde.regimes import ConfusionTheorem, confusion_path, gradient_confusion

SEED = 0
N, D = 60, 64


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    widths = by_scale(scale, smoke=(16, 64), laptop=(16, 32, 64, 128, 256), paper=(16, 32, 64, 128, 256, 512))
    depths = by_scale(scale, smoke=(1, 16), laptop=(1, 4, 16, 64), paper=(1, 2, 4, 8, 16, 32, 64))
    seeds = by_scale(scale, smoke=2, laptop=4, paper=16)
    x, y = sphere()
    arrays: dict[str, np.ndarray] = {"widths": np.array(widths), "depths": np.array(depths)}
    for kind in ("mlp", "stable"):
        found = np.zeros((2, len(depths), len(widths), seeds))
        for i, depth in enumerate(progress(f"{kind}, depths")(depths)):
            for j, width in enumerate(widths):
                for seed in range(seeds):
                    problem = sgdsde.Problem(network(kind, width, depth, seed), x, y, loss=torch.nn.MSELoss())
                    confusion = gradient_confusion(problem, output_gradient=-y)
                    found[:, i, j, seed] = confusion.cosine_min, confusion.cosine_std
        arrays |= {f"{kind}_min": found[0], f"{kind}_std": found[1]}
        arrays |= {f"{kind}_infinite": np.array([infinite(network(kind, 8, depth, 0), x, y) for depth in depths]).T}
    return arrays | along_training(scale) | theorem(scale, progress)


def sphere() -> tuple[torch.Tensor, torch.Tensor]:
    """60 points on the sphere of radius sqrt(64), balanced labels."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((N, D))
    x *= math.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
    y = rng.permutation(np.repeat([1.0, -1.0], N // 2))[:, None]
    return torch.from_numpy(x), torch.from_numpy(y)


def network(kind: str, width: int, depth: int, seed: int) -> sgdsde.networks.Network:
    generator = torch.Generator().manual_seed(seed)
    if kind == "mlp":
        return MLP(D, width, 1, depth=depth, dtype=torch.float64, generator=generator)
    return ResNet(D, width, 1, depth=depth, scaling="stable", dtype=torch.float64, generator=generator)


def infinite(model: sgdsde.networks.Network, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Lowest cosine and standard deviation of cosines under the kernel of infinite width."""
    gram = y * meanfield.analytic_ntk(x, None, model) * y.mT
    root = gram.diagonal().sqrt()
    cosines = (gram / root.outer(root)).numpy()[np.tril_indices(N, -1)]
    return float(cosines.min()), float(cosines.std())


def along_training(scale: Scale) -> dict[str, np.ndarray]:
    """Confusion and its floor along full-batch descent on digits, relative to their values at the start."""
    data = sgdsde.datasets.digits(n_train=by_scale(scale, smoke=32, laptop=128, paper=512))
    model = MLP(
        data.in_features,
        by_scale(scale, smoke=32, laptop=256, paper=1024),
        1,
        generator=torch.Generator().manual_seed(0),
    )
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    n_steps = by_scale(scale, smoke=50, laptop=2000, paper=5000)
    sgd = sgdsde.SGD(0.5 * sgdsde.stability.max_lr(problem, 8), 8)
    found = confusion_path(
        problem, sgd, n_steps, record=sorted({0, *np.geomspace(1, n_steps, 12).astype(int).tolist()})
    )
    return {
        "path_steps": found.steps.numpy(),
        "path_loss": found.losses.numpy(),
        "path_bound": found.bounds.numpy(),
        "path_square": np.array([each.mean_square for each in found.confusions]),
        "path_floor": np.array([each.floor for each in found.confusions]),
    }


def theorem(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    """Expected excess by the exact recursion, and theorem 3.1 with the largest confusion of 200 sampled paths."""
    rng = np.random.default_rng(2)
    n, d = 20, 5
    x = rng.standard_normal((n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = x @ rng.standard_normal(d) + 0.3 * rng.standard_normal(n)
    least = float(((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2).mean())
    model = torch.nn.Linear(d, 1, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    problem = sgdsde.Problem(model, torch.from_numpy(x), torch.from_numpy(y)[:, None], loss=torch.nn.MSELoss())
    linearization = sgdsde.linearize(problem)
    bound = ConfusionTheorem(n, smoothness=2.0, pl_constant=2.0)
    shares = by_scale(scale, smoke=(0.5, 0.1), laptop=(0.5, 0.1, 0.02), paper=(0.5, 0.1, 0.02))
    rows: dict[str, list] = {"steps": [], "excess": [], "bound": [], "floor": []}
    for share in progress("learning rates")(shares):
        lr = share * bound.max_lr
        record = sorted(
            {
                0,
                *np.geomspace(1, by_scale(scale, smoke=500, laptop=600 / share, paper=2000 / share), 30)
                .astype(int)
                .tolist(),
            }
        )
        predicted = sgdsde.predict(linearization, sgdsde.SGD(lr, 1), record[-1], record=record)
        excess = predicted.train_loss.mean - least
        eta = largest_confusion(x, y, lr, min(record[-1], 2000))
        limit = bound.bound(lr, predicted.steps, excess=float(excess[0]), confusion=eta)
        steps = np.interp(np.linspace(0, 1, 30), np.linspace(0, 1, len(record)), record)
        rows["steps"].append(steps)
        rows["excess"].append(np.interp(steps, record, excess.numpy()))
        rows["bound"].append(np.interp(steps, record, limit.numpy()))
        rows["floor"].append(bound.floor(lr, eta))
    ratio = sgdsde.stability.max_lr(linearization, 1) / bound.max_lr
    return {"shares": np.array(shares), "limit_ratio": np.array(ratio)} | {
        f"theorem_{k}": np.array(v) for k, v in rows.items()
    }


def largest_confusion(x: np.ndarray, y: np.ndarray, lr: float, n_steps: int, runs: int = 50) -> float:
    """The largest over the steps of runs of SGD with single examples."""
    rng, w, worst = np.random.default_rng(5), np.zeros((runs, x.shape[1])), 0.0
    kernel = x @ x.T
    np.fill_diagonal(kernel, 0)
    for _ in range(n_steps):
        r = 2 * (w @ x.T - y)
        worst = max(worst, -float((r[:, :, None] * r[:, None] * kernel).min()))
        i = rng.integers(len(x), size=runs)
        w -= lr * r[np.arange(runs), i][:, None] * x[i]
    return worst


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
