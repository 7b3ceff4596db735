"""Errors of cleaned eigenvalues over the number of samples, inside and outside the autoencoder's prior."""

from __future__ import annotations

import numpy as np

from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.cleaning import OAS, RIE, AnalyticalNonlinear, EigenvalueAutoencoder, FactorPrior, LedoitWolf, MixedPrior
from sgdsde.cleaning.priors import LAWS, oracle_values, sample_correlation

SEED = 0
FIXED = {"LedoitWolf": LedoitWolf(), "OAS": OAS(), "AnalyticalNonlinear": AnalyticalNonlinear(), "RIE": RIE()}
METHODS = ("sample", *FIXED, "factor prior", "mixed prior", "oracle")
CHOSEN = ("factor", "power", "toeplitz", "inverse_wishart", "identity")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    p = by_scale(scale, smoke=16, laptop=30, paper=60)
    draws = by_scale(scale, smoke=60, laptop=300, paper=2000)
    sizes = [round(p * part) for part in (1 / 2, 2 / 3, 1, 3 / 2, 3)]
    pairs, steps = by_scale(scale, smoke=(4000, 500), laptop=(36_000, 5000), paper=(120_000, 20_000))
    trained = {
        name: EigenvalueAutoencoder.train(
            prior, p, seed=SEED, n_pairs=pairs, n_steps=steps, progress=progress(f"training, {name}")
        )
        for name, prior in (("factor prior", FactorPrior()), ("mixed prior", MixedPrior()))
    }
    shape = (len(CHOSEN), len(sizes), len(METHODS))
    errors, spread, frobenius, top = (np.zeros(shape) for _ in range(4))
    gap = np.zeros((len(CHOSEN), len(sizes), 2))
    for i, law in enumerate(CHOSEN):
        for j, m in enumerate(progress(law)(sizes)):
            rng = np.random.default_rng([SEED, i, m])
            true = LAWS[law](draws, p, rng)
            values, vectors = np.linalg.eigh(sample_correlation(true, m, rng))
            values, oracle = np.maximum(values, 0), oracle_values(true, vectors)
            wanted = np.linalg.eigvalsh(true)
            found = cleaned(values, m, p) | {name: each.estimate_many(values, m) for name, each in trained.items()}
            found |= {"sample": values, "oracle": oracle}
            each = {name: ((np.sort(found[name], 1) - wanted) ** 2).sum(1) / p for name in METHODS}
            rest = ((true**2).sum((1, 2)) - (oracle**2).sum(1)) / p
            for k, name in enumerate(METHODS):
                errors[i, j, k], spread[i, j, k] = each[name].mean(), each[name].std(ddof=1) / draws**0.5
                frobenius[i, j, k] = (((found[name] - oracle) ** 2).sum(1) / p + rest).mean()
                top[i, j, k] = (found[name].max(1) / wanted[:, -1] - 1).mean()
            difference = each["RIE"] - each["factor prior"]
            gap[i, j] = difference.mean(), difference.std(ddof=1) / draws**0.5
    return {
        "dimension": np.array(p),
        "sizes": np.array(sizes),
        "methods": np.array(METHODS),
        "laws": np.array(CHOSEN),
        "error": errors,
        "standard_error": spread,
        "frobenius": frobenius,
        "top": top,
        "rie_less_autoencoder": gap,
    }


def cleaned(values: np.ndarray, m: int, p: int) -> dict[str, np.ndarray]:
    """Of the estimators without a prior, rescaled to trace p as correlation matrices have it."""
    found = {}
    for name, method in FIXED.items():
        if m < method.fewest_samples:
            found[name] = np.full_like(values, np.nan)
            continue
        each = np.stack([method.estimate(row, m) for row in values])
        found[name] = each * (p / each.sum(1, keepdims=True))
    return found


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
