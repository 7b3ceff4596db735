"""Which function a wide shallow network ends in, how fast in the width, and what it passes on the way."""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.networks import ShallowReLU
from sgdsde.regimes import Uniform, curvature_spline, feature_kernel, smoothing_strength, wide_limit

SEED = 0
X = torch.tensor([-1, -0.6, -0.1, 0.4, 1], dtype=torch.float64)
Y = torch.tensor([0.3, -0.5, 0.6, 0.1, -0.4], dtype=torch.float64)
GRID = torch.linspace(-1, 1, 201, dtype=torch.float64)
N_TIMES = np.array([1e3, 1e4, 1e5, 1e6])


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    natural = CubicSpline(X, Y, bc_type="natural")(GRID.numpy())
    arrays = {"x": X.numpy(), "y": Y.numpy(), "grid": GRID.numpy(), "natural": natural}
    arrays["limit"] = wide_limit(X, Y, GRID, Uniform(1.0, 1.0)).numpy()
    arrays |= trained(scale, progress) | rates(scale, progress, natural) | trajectory()
    return arrays


def trained(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    """All weights by gradient descent and by SGD with single examples, at two widths."""
    widths = by_scale(scale, smoke=(64,), laptop=(64, 1024), paper=(64, 256, 1024, 4096))
    n_steps = by_scale(scale, smoke=500, laptop=20_000, paper=60_000)
    law, functions = Uniform(1.0, 1.0), np.zeros((len(widths), 2, len(GRID)))
    kernel = feature_kernel(X, X, law)
    sharp = float(torch.linalg.eigvalsh(kernel)[-1]) / 5, float(kernel.diagonal().max())
    for i, width in enumerate(progress("trained networks")(widths)):
        for j, single in enumerate((False, True)):
            model = ShallowReLU(width, law, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.9 / sharp[j] / width)
            rng = np.random.default_rng(SEED)
            for _ in range(n_steps * (2 if single else 1)):
                batch = [int(rng.integers(5))] if single else slice(None)
                optimizer.zero_grad()
                torch.nn.functional.mse_loss(model(X[batch, None]), Y[batch, None]).backward()
                optimizer.step()
            with torch.no_grad():
                functions[i, j] = model(GRID[:, None])[:, 0].numpy()
    return {"trained_widths": np.array(widths), "trained": functions}


def rates(scale: Scale, progress: Progress, natural: np.ndarray) -> dict[str, np.ndarray]:
    """Sup distance of the read-out's interpolant to the limit and to the natural spline, R = 2."""
    widths = by_scale(
        scale, smoke=(400, 1600, 6400), laptop=(400, 1600, 6400, 25_600), paper=(400, 1600, 6400, 25_600, 102_400)
    )
    seeds = by_scale(scale, smoke=20, laptop=40, paper=200)
    law = Uniform(1.0, 2.0)
    limit, gaps = wide_limit(X, Y, GRID, law), np.zeros((2, len(widths), seeds))
    for i, width in enumerate(progress("widths")(widths)):
        for seed in range(seeds):
            w, b = law.draw(width, 1, torch.Generator().manual_seed(seed))
            at, on = (torch.relu(points[:, None] @ w.mT + b) for points in (GRID, X))
            found = at @ (on.mT @ torch.linalg.solve(on @ on.mT, Y))
            gaps[:, i, seed] = float((found - limit).abs().max()), np.abs(found.numpy() - natural).max()
    return {"widths": np.array(widths), "gap_to_limit": gaps[0], "gap_to_spline": gaps[1]}


def trajectory() -> dict[str, np.ndarray]:
    """Flow at infinite width against smoothing splines of strength lam(t), and of ten times that, R = 8."""
    law = Uniform(1.0, 8.0)
    flows: list[np.ndarray] = []
    splines: list[np.ndarray] = []
    tenfold: list[np.ndarray] = []
    for n_time in N_TIMES:
        flows.append(wide_limit(X, Y, GRID, law, time=float(n_time)).numpy())
        lam = smoothing_strength(float(n_time), 1, 5)
        for out, factor in ((splines, 1), (tenfold, 10)):
            out.append(curvature_spline(X, Y, 1 / 64, smoothing=factor * lam)(GRID).numpy())
    a = np.logspace(-4, 4, 4001)
    filters = np.abs(1 - np.exp(-a) - a / (a + 1)).max()
    return {
        "n_times": N_TIMES,
        "flow": np.array(flows),
        "spline": np.array(splines),
        "spline_tenfold": np.array(tenfold),
        "filter_gap": np.array(filters),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
