"""Where gradient flow of diagonal linear networks ends, over the scale of its start."""

from __future__ import annotations

import numpy as np
import torch

from experiments.diagonal import gaussian_data
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.regimes import interpolant, mirror_flow, penalty

SEED = 0
DEPTHS = (2, 3, 4)
GOOD = 0.025


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    beta = np.full(3, 3**-0.5)
    data = gaussian_data(20, 60, beta, seed=SEED)
    x, y = data["x_train"], data["y_train"][:, 0]
    truth = torch.zeros(60, dtype=torch.float64)
    truth[:3] = torch.from_numpy(beta)
    scales = np.geomspace(1e-3, 10, by_scale(scale, smoke=9, laptop=41, paper=81))
    arrays: dict[str, np.ndarray] = {"scales": scales, "depths": np.array(DEPTHS)}
    rows = {key: np.full((len(DEPTHS), len(scales)), np.nan) for key in ("error", "l1", "l2", "residual")}
    for i, depth in enumerate(DEPTHS):
        for j, a in enumerate(scales):
            if a ** (depth - 2) < 1e-4:
                continue
            found = interpolant(x, y, scale=float(a), depth=depth)
            rows["error"][i, j] = float((found - truth).square().sum())
            rows["l1"][i, j], rows["l2"][i, j] = float(found.abs().sum()), float(found.norm())
            rows["residual"][i, j] = float((x @ found - y).abs().max())
    arrays |= rows
    flows = by_scale(scale, smoke=(0.3, 1.0), laptop=(0.1, 0.3, 1.0, 3.0), paper=(0.03, 0.1, 0.3, 1.0, 3.0))
    arrays["flow_scales"] = np.array(flows)
    flow_error = np.zeros((2, len(flows)))
    flow_gap = np.zeros((2, len(flows)))
    for i, depth in enumerate((2, 3)):
        for j, a in enumerate(progress(f"flows, depth {depth}")(flows)):
            time = 4 / a ** (2 * depth - 2) + 4
            end = mirror_flow(x, y, [time], scale=a, depth=depth)[0]
            flow_error[i, j] = float((end - truth).square().sum())
            flow_gap[i, j] = float((end - interpolant(x, y, scale=a, depth=depth)).abs().max())
    arrays |= {"flow_error": flow_error, "flow_gap": flow_gap}
    least = torch.linalg.pinv(x) @ y
    arrays |= {"least_l2": np.array(float(least.norm())), "least_l1": np.array(float(truth.abs().sum()))}
    arrays["least_l2_error"] = np.array(float((least - truth).square().sum()))
    arrays["penalty_of_truth"] = np.array([float(penalty(truth, float(a)) / a**2) for a in scales])
    return arrays | largest_good(scale, progress)


def largest_good(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    """The largest scale at which five entries of d = 200 are recovered within ``GOOD``, by bisection."""
    sizes = by_scale(scale, smoke=(60, 120), laptop=(40, 60, 80, 120, 160), paper=(30, 40, 60, 80, 100, 120, 160))
    seeds = by_scale(scale, smoke=2, laptop=8, paper=32)
    beta = np.full(5, 5**-0.5)
    found = np.zeros((len(sizes), seeds))
    for i, n in enumerate(progress("examples")(sizes)):
        for seed in range(seeds):
            data = gaussian_data(n, 200, beta, seed=100 + seed)
            truth = torch.zeros(200, dtype=torch.float64)
            truth[:5] = torch.from_numpy(beta)
            low, high = -8.0, 1.0
            for _ in range(12):
                middle = (low + high) / 2
                end = interpolant(data["x_train"], data["y_train"], scale=10**middle)
                good = float((end - truth).square().sum()) < GOOD
                low, high = (middle, high) if good else (low, middle)
            found[i, seed] = low if low > -8.0 else np.nan  # nan: not recovered at any scale
    return {"sizes": np.array(sizes), "largest_good": found}


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
