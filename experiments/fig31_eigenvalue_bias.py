"""How far the extreme eigenvalues of a sample covariance lie outside the true ones."""

from __future__ import annotations

import numpy as np

from experiments.frame import Progress, Scale, by_scale, main

SEED = 0


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale, smoke=(5, 20, 50), laptop=(2, 5, 10, 20, 50, 100, 200), paper=(2, 5, 10, 20, 50, 100, 200, 400)
    )
    draws = by_scale(scale, smoke=100, laptop=1000, paper=4000)
    arrays: dict[str, np.ndarray] = {"sizes": np.array(sizes)}
    ratios = np.zeros((len(sizes), 2, 2))
    for i, p in enumerate(progress("dimensions, q = 1/2")(sizes)):
        values = extremes(np.linspace(1, 2, p), 2 * p, draws)
        ratios[i] = values.mean(0), values.std(0, ddof=1) / draws**0.5
    arrays["ratios"] = ratios
    cases = (
        (5, 500),
        (10, 1000),
        (20, 2000),
        (40, 80),
        (100, 200),
        (200, 400),
        *(((400, 800),) if scale != "smoke" else ()),
    )
    shares, means = [], []
    for p, m in progress("spikes")(cases):
        largest = extremes(np.r_[np.ones(p - 1), 5.0], m, draws // 4)[:, 1]
        shares.append(float((largest > 1).mean()))
        means.append([float(5 * largest.mean()), float(5 * largest.std(ddof=1) / len(largest) ** 0.5)])
    arrays |= {"spike_cases": np.array(cases), "spike_share": np.array(shares), "spike_mean": np.array(means)}
    one = np.random.default_rng(SEED).standard_normal((20 * draws, 10))
    arrays["divisor_m_at_one"] = np.array(one.var(1).mean())
    flat = extremes(np.ones(200), 400, max(4, draws // 50))
    return arrays | {"identity": flat.mean(0), "edges": (1 + np.array([-1, 1]) * 0.5**0.5) ** 2}


def extremes(spectrum: np.ndarray, m: int, draws: int) -> np.ndarray:
    """Smallest and largest sample eigenvalue over the true ones, [draws, 2]."""
    found = np.zeros((draws, 2))
    for seed in range(draws):
        x = np.random.default_rng([SEED, seed, m]).standard_normal((m, len(spectrum))) * np.sqrt(spectrum)
        values = np.linalg.eigvalsh(x.T @ x / m)
        found[seed] = values[0] / spectrum.min(), values[-1] / spectrum.max()
    return found


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
