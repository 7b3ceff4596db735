"""Residual networks at extreme sparsity: only the stable scaling keeps SNIP trainable at 99.9 %."""

from __future__ import annotations

import numpy as np

from experiments.frame import Progress, Scale, by_scale, main
from experiments.pruned_networks import accuracy_after, masks_of, network, problem_of
from sgdsde import datasets, pruning

SEED = 0
SCALINGS = ("none", "stable")
SPARSITIES = (0.9, 0.99, 0.999)
RATES = (1e-3, 1e-2, 1e-1)


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    depth, width = by_scale(scale, smoke=(6, 40), laptop=(20, 100), paper=(100, 200))
    n_seeds, n_steps = by_scale(scale, smoke=(1, 20), laptop=(4, 200), paper=(20, 2000))
    data = datasets.digits(1200, 597, target="class")
    shape = (n_seeds, len(SPARSITIES))
    arrays: dict[str, np.ndarray] = {"sparsities": np.array(SPARSITIES), "scalings": np.array(SCALINGS)}
    for scaling in SCALINGS:
        accuracy, first, live = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for seed in progress(scaling)(range(n_seeds)):
            model = network("relu", depth, width, seed, in_features=64, residual=scaling)
            problem = problem_of(model, data)
            for place, sparsity in enumerate(SPARSITIES):
                masks = masks_of(problem, pruning.SNIP(), sparsity, 256)
                pruned = masks.apply(problem)
                accuracy[seed, place] = max(accuracy_after(pruned, "sgd", lr, n_steps) for lr in RATES)
                first[seed, place] = masks.layer_densities["first.weight"]
                live[seed, place] = (masks.n_live or 0) / masks.n_kept
        arrays |= {f"{scaling}_accuracy": accuracy, f"{scaling}_first": first, f"{scaling}_live": live}
    return arrays


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
