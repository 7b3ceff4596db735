"""Limits on the learning rate from a few examples: digits, and linear models of a flat and of a decaying spectrum."""

from __future__ import annotations

import warnings

import numpy as np
import torch

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.cleaning import AnalyticalNonlinear, Lawley, LedoitWolf, UncleanedWarning, clean, sharpness_from_subsample

SEED = 0
METHODS = ("raw", "Lawley", "LedoitWolf", "AnalyticalNonlinear")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(scale, smoke=(10, 20), laptop=(10, 20, 50, 100, 200), paper=(10, 20, 50, 100, 200))
    draws = by_scale(scale, smoke=30, laptop=300, paper=2000)
    kernel, problem = digits(scale)
    n, full = len(kernel), float(np.linalg.eigvalsh(kernel)[-1]) / len(kernel)
    limits = np.zeros((2, len(sizes), len(METHODS)))
    for j, m in enumerate(progress("digits")(sizes)):
        found = []
        for seed in range(draws):
            chosen = np.random.default_rng([SEED, seed]).permutation(n)[:m]
            found.append(
                tops(np.linalg.eigvalsh(kernel[np.ix_(chosen, chosen)] / m), m, 4096, kernel.diagonal()[chosen])
            )
        limits[:, j] = errors(full / np.array(found))
    arrays = {"sizes": np.array(sizes), "methods": np.array(METHODS), "digits": limits}
    dims = (32, 64, 128, 256)
    arrays["model_sizes"] = np.array(dims)
    for name, power in (("flat", 0.0), ("decaying", 0.7)):
        spectrum = np.arange(1, 65) ** -power
        spectrum *= 64 / spectrum.sum()
        values = np.zeros((2, len(dims), len(METHODS)))
        for j, m in enumerate(dims):
            found = []
            for seed in range(by_scale(scale, smoke=20, laptop=200, paper=1000)):
                x = np.random.default_rng([SEED, seed, m]).standard_normal((m, 64)) * np.sqrt(spectrum)
                found.append(tops(np.maximum(np.linalg.eigvalsh(x.T @ x / m), 1e-12), m, 64, (x**2).sum(1)))
            values[:, j] = errors(spectrum.max() / np.array(found))
        arrays[name] = values
    return arrays | package(scale, problem, 2 * full)


def digits(scale: Scale) -> tuple[np.ndarray, sgdsde.Problem]:
    """Digits centered by one number, ReLU 64-64-1; centered by pixel no eigenvalue is separated at m = 10."""
    data = sgdsde.datasets.digits(
        by_scale(scale, smoke=200, laptop=400, paper=1500), center="global", dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(SEED)
    model = sgdsde.networks.MLP(64, 64, 1, dtype=torch.float64, generator=generator)
    problem = sgdsde.Problem(model, data.x_train, data.y_train, loss=torch.nn.MSELoss())
    return sgdsde.empirical_ntk(model, problem.x_train).numpy(), problem


def tops(values: np.ndarray, m: int, p: int, norms: np.ndarray) -> list[float]:
    """Largest eigenvalue: raw, and cleaned as a spectrum of p."""
    whole = np.concatenate([np.zeros(max(0, p - len(values))), np.maximum(values, 0)])[-p:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncleanedWarning)
        found = [float(values[-1]), float(clean(values.clip(0), m, Lawley()).eigenvalues.max())]
        found.append(float(clean(whole, m, LedoitWolf(torch.from_numpy(norms))).eigenvalues.max()))
    found.append(float(clean(whole, m, AnalyticalNonlinear()).eigenvalues.max()) if m >= 12 else np.nan)
    return found


def errors(ratio: np.ndarray) -> np.ndarray:
    """Mean relative error of the limit and its standard error, [2, methods]."""
    return np.stack([ratio.mean(0) - 1, ratio.std(0, ddof=1) / len(ratio) ** 0.5])


def package(scale: Scale, problem: sgdsde.Problem, full: float) -> dict[str, np.ndarray]:
    """sharpness_from_subsample over 20 draws: estimate over truth, and standard error over truth."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncleanedWarning)
        for seed in range(20):
            each = sharpness_from_subsample(problem, 50, seed=seed)
            found.append([each.value / full, each.standard_error / full, each.raw / full])
    return {"package": np.array(found)}


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
