"""Edge-of-chaos curves of several activations, the phase diagram of tanh, and correlation maps."""

from __future__ import annotations

import numpy as np
import torch

from experiments.frame import Progress, Scale, by_scale, main
from sgdsde import meanfield

SEED = 0
CURVES = ("tanh", "elu", "erf", "silu", "gelu", "sigmoid")
NUMBERS = ("tanh", "elu", "erf", "sigmoid")
SIGMA_B = 0.2
MAPS = {"relu": 0.0, "tanh": SIGMA_B, "elu": SIGMA_B}


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    n_curve, n_grid, n_map = by_scale(scale, smoke=(40, 5, 9), laptop=(160, 25, 41), paper=(400, 81, 201))
    arrays: dict[str, np.ndarray] = {"curves": np.array(CURVES), "maps": np.array(list(MAPS))}
    phi = {name: meanfield.Activation(name) for name in {*CURVES, *MAPS}}  # each remembers where its panels lie
    for name in progress("curves")(CURVES):
        q = torch.logspace(-4, 2.6, n_curve, dtype=torch.float64)
        if name == "sigmoid":  # below this variance it has none, and near it sigma_b changes fast
            q = meanfield.edge_of_chaos(phi[name], 0.0).q * (1 + torch.logspace(-5, 0.5, n_curve, dtype=torch.float64))
        curve = meanfield.edge_of_chaos_curve(phi[name], q)
        for key in ("q", "sigma_b", "sigma_w", "is_stable"):
            arrays[f"{name}_{key}"] = getattr(curve, key).numpy()
    for name in NUMBERS:
        arrays[f"{name}_point"] = np.array(meanfield.edge_of_chaos(phi[name], SIGMA_B)[:2])
    sigma_w = torch.linspace(0.5, 3.0, n_grid, dtype=torch.float64)
    sigma_b = torch.linspace(0.02, 1.5, n_grid, dtype=torch.float64)
    chi, _ = meanfield.phase_diagram(phi["tanh"], sigma_w, sigma_b)
    arrays |= {"sigma_w": sigma_w.numpy(), "sigma_b": sigma_b.numpy(), "chi": chi.numpy()}
    c = torch.linspace(0, 1, n_map, dtype=torch.float64)
    arrays["c"] = c.numpy()
    for name, bias in MAPS.items():
        edge = meanfield.edge_of_chaos(phi[name], bias)
        arrays[f"{name}_map"] = meanfield.correlation_map(phi[name], edge.sigma_w, bias, c, q=edge.q).numpy()
    for phase, weight in (("ordered", 0.9), ("chaotic", 2.5)):
        variance = meanfield.limit_variance(phi["tanh"], weight, SIGMA_B)
        arrays[f"{phase}_map"] = meanfield.correlation_map(phi["tanh"], weight, SIGMA_B, c, q=variance).numpy()
        fixed = meanfield.limit_correlation(phi["tanh"], weight, SIGMA_B, q=variance)
        arrays[f"{phase}_fixed_point"] = np.array(fixed[:2])
    return arrays


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
