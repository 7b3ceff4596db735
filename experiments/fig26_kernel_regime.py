"""Errors of the frozen and of the moving kernel over the scale of a network; how the linearization's share falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import sgdsde
from experiments.diagonal import diagonal_problem
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.regimes import scale_sweep

SEED = 0
ACTIVATIONS = ("tanh", "relu")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    n_runs = by_scale(scale, smoke=16, laptop=256, paper=2000)
    few = by_scale(scale, smoke=4, laptop=32, paper=256)
    n_steps = by_scale(scale, smoke=120, laptop=400, paper=400)
    arrays: dict[str, np.ndarray] = {}
    sweeps: dict[int, tuple[float, ...]] = by_scale(
        scale,
        smoke={2: (0.2, 1.0)},
        laptop={2: (0.15, 0.2, 0.3, 0.5, 1.0, 2.0), 3: (0.5, 0.65, 0.9, 1.3)},
        paper={2: (0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0), 3: (0.45, 0.5, 0.65, 0.9, 1.3)},
    )
    for depth, scales in sweeps.items():
        options: dict[str, Any] = {"n_steps": n_steps, "n_runs": n_runs, "batch_size": 2, "seed": SEED}
        found = scale_sweep(
            diagonal_problem(1.0, depth),
            scales,
            record=[0, n_steps // 40, n_steps // 10, n_steps // 2, n_steps],
            progress=progress(f"predictions, depth {depth}"),
            **options,
        )
        arrays |= {f"diagonal{depth}_{key}": value for key, value in errors(found).items()}
    for depth in by_scale(scale, smoke=(2,), laptop=(2, 3, 4), paper=(2, 3, 4)):
        powers = by_scale(scale, smoke=(1.0, 2.0, 4.0), laptop=(0.5, 1, 2, 4, 8), paper=(0.5, 1, 2, 4, 8, 16))
        starts = [power ** (1 / depth) for power in powers]
        shares(arrays, f"slope_diagonal{depth}", diagonal_problem(1.0, depth, n_test=0), starts, few, 2, depth)
    for activation in ACTIVATIONS:
        scales = by_scale(scale, smoke=(16.0, 64.0, 256.0), laptop=(1, 4, 16, 64, 256), paper=(1, 4, 16, 64, 256, 1024))
        shares(arrays, f"slope_{activation}", network(activation), [float(a) for a in scales], few, 4, 1)
    return arrays


def network(activation: str) -> sgdsde.Problem:
    """32 examples of sin(x_0) x_1 in 10 dimensions, two hidden layers of 64."""
    x = np.random.default_rng(1).standard_normal((32, 10))
    generator = torch.Generator().manual_seed(0)
    model = sgdsde.networks.MLP(10, 64, 1, depth=2, activation=activation, dtype=torch.float64, generator=generator)
    y = torch.from_numpy(np.sin(x[:, 0]) * x[:, 1])[:, None]
    return sgdsde.Problem(model, torch.from_numpy(x), y, loss=torch.nn.MSELoss())


def errors(found: sgdsde.regimes.ScaleSweep) -> dict[str, np.ndarray]:
    return {
        "z": found.z.numpy(),
        "frozen": found.frozen_error.numpy(),
        "moving": found.moving_error.numpy(),
        "frozen_test": (found.test_frozen / found.test_measured - 1).numpy(),
        "moving_test": (found.test_moving / found.test_measured - 1).numpy(),
        "standard_error": (found.standard_errors / found.measured).numpy(),
    }


def shares(
    arrays: dict[str, np.ndarray],
    name: str,
    problem: sgdsde.Problem,
    scales: list[float],
    n_runs: int,
    batch_size: int,
    power: int,
) -> None:
    """|linearization| over the loss after 60 steps, same batches, and its slope in scale^power."""
    found = scale_sweep(
        problem, scales, n_steps=60, n_runs=n_runs, batch_size=batch_size, record=[0, 60], moving=False, seed=SEED
    )
    arrays |= {
        f"{name}_scale": np.array(scales) ** power,
        f"{name}_share": found.linearization[:, -1].abs().numpy(),
        f"{name}_slopes": found.slopes(power)[:, -1].numpy(),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
