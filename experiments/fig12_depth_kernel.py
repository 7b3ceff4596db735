"""Tangent kernels of infinite width against depth: their limits, and how fast they are reached."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from experiments.frame import Progress, Scale, by_scale, main
from sgdsde import meanfield

SEED = 0
CORRELATION = 0.3


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    deep, smooth = by_scale(scale, smoke=(20_000, 2_000), laptop=(1_000_000, 100_000), paper=(1_000_000, 1_000_000))
    arrays: dict[str, np.ndarray] = {"correlation": np.array(CORRELATION)}
    tanh = meanfield.edge_of_chaos("tanh", 0.2)
    makers: dict[str, dict[str, Any]] = {
        "relu": {"activation": "relu", "sigma_w": math.sqrt(2), "sigma_b": 0.0, "depth": deep},
        "tanh": {"activation": "tanh", "sigma_w": tanh.sigma_w, "sigma_b": 0.2, "depth": smooth, "q": tanh.q},
        "ordered": {"activation": "relu", "sigma_w": 1.0, "sigma_b": 1.0, "depth": 200},
        "chaotic": {"activation": "tanh", "sigma_w": 2.5, "sigma_b": 0.2, "depth": 200},
        "residual": {"activation": "relu", "sigma_w": math.sqrt(2), "sigma_b": 0.0, "depth": deep, "scaling": "none"},
        "decreasing": {
            "activation": "relu",
            "sigma_w": math.sqrt(2),
            "sigma_b": 0.0,
            "depth": deep,
            "scaling": "decreasing",
        },
    }
    for name in progress("sequences")(list(makers)):
        sequence = meanfield.depth_sequence(**makers[name], correlation=CORRELATION)
        kept = np.unique(np.geomspace(1, len(sequence.layer), 200).astype(int)) - 1
        arrays[f"{name}_layer"] = sequence.layer[kept]
        for key in ("gap", "diagonal", "off_diagonal"):
            arrays[f"{name}_{key}"] = getattr(sequence, key)[kept]
        if name in ("relu", "tanh", "residual"):
            arrays[f"{name}_slope"] = np.array(meanfield.log_slope(sequence, 1 / 3 if name == "tanh" else 1 / 4))
            arrays[f"{name}_gap_exponent"] = np.array(meanfield.power_law(sequence.layer, sequence.gap))
    depths = [4, 8, 16, 32, 64, 128, 256]
    stable = [
        meanfield.depth_sequence("relu", math.sqrt(2), 0.0, depth=depth, correlation=CORRELATION, scaling="stable")
        for depth in depths
    ]
    arrays |= {"stable_layer": np.array(depths), "stable_ratio": np.array([each.ratio[-1] for each in stable])}
    arrays["tanh_curvature"] = np.array(meanfield.second_derivative_at_one("tanh", tanh.sigma_w, tanh.q))
    return arrays


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
