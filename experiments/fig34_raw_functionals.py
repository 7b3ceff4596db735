"""Trace and floor of the gradient noise from few examples: unbiased raw, beside the eigenvalues, which are not."""

from __future__ import annotations

import numpy as np
import torch

import sgdsde
from experiments.fig33_subsampled_limits import digits
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.cleaning import LedoitWolf, clean

SEED = 0
KEYS = ("trace", "floor", "floor_shrunk", "largest", "second")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    kernel, problem = digits(scale)
    n, linearization = len(kernel), sgdsde.linearize(problem)
    noise = kernel * linearization.residual[:, 0].numpy()  # columns: what example i's gradient does to the outputs
    values, vectors = np.linalg.eigh(kernel)
    kept = values > 1e-6 * values[-1]
    # Coordinates in which the kernel is diagonal: the floor of the loss at given H weighs them by 1/h.
    noise = vectors[:, kept].T @ noise
    weights = 1 / values[kept]
    full = moments(noise, weights)
    sizes = by_scale(scale, smoke=(10, 50), laptop=(10, 20, 50, 100), paper=(10, 20, 50, 100, 200))
    draws = by_scale(scale, smoke=40, laptop=300, paper=2000)
    found = np.zeros((2, len(sizes), len(KEYS)))
    for j, m in enumerate(progress("subsamples")(sizes)):
        ratios = np.zeros((draws, len(KEYS)))
        for seed in range(draws):
            chosen = np.random.default_rng([SEED, seed]).permutation(n)[:m]
            ratios[seed] = moments(noise[:, chosen], weights) / np.r_[full[:2], full[1], full[3:]]
        found[:, j] = ratios.mean(0) - 1, ratios.std(0, ddof=1) / draws**0.5
    return {"sizes": np.array(sizes), "keys": np.array(KEYS), "error": found[0], "standard_error": found[1]}


def moments(noise: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """tr Sigma, tr(H^+ Sigma) raw and after linear shrinkage, two largest eigenvalues; divisor m - 1."""
    centered = noise - noise.mean(1, keepdims=True)
    m = centered.shape[1] - 1
    squares = (centered**2).sum(1) / m
    values, right = np.linalg.eigh(centered.T @ centered / m)
    values, right = values[1:].clip(1e-300), right[:, 1:]
    spectrum = np.concatenate([np.zeros(max(0, len(noise) - m)), values])
    norms = torch.from_numpy((centered**2).sum(0))
    shrunk = clean(spectrum[-len(noise) :], m, LedoitWolf(norms)).eigenvalues.numpy()
    # The zeros all become one value z: Sigma = z I + U (shrunk - z) U^T.
    least = shrunk[0] if len(noise) > m else 0.0
    left = centered @ right / np.sqrt(values * m)
    own = (weights[:, None] * left**2).sum(0)
    floor = least * weights.sum() + ((shrunk[-len(values) :] - least) * own).sum()
    return np.array([squares.sum(), (weights * squares).sum(), floor, values[-1], values[-2]])


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
