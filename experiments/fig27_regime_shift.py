"""How far SGD moves a diagonal network's scale, predicted before training and measured; what it does to sparsity."""

from __future__ import annotations

import numpy as np
import torch

import sgdsde
from experiments.diagonal import diagonal_problem, gaussian_data, run_single_examples
from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.regimes import effective_scale, interpolant

SEED = 0
SCALES = (0.5, 0.3)


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    shares = by_scale(scale, smoke=(0.4,), laptop=(0.1, 0.2, 0.4, 0.55, 0.7), paper=(0.1, 0.2, 0.3, 0.4, 0.55, 0.7))
    n_runs = by_scale(scale, smoke=32, laptop=128, paper=1000)
    cells = [(a, share) for a in SCALES for share in shares]
    found = [shift(a, share, n_runs) for a, share in progress("shifts")(cells)]
    arrays: dict[str, np.ndarray] = {"scales": np.array(SCALES), "shares": np.array(shares)}
    for key in found[0]:
        arrays[key] = np.array([each[key] for each in found]).reshape(len(SCALES), len(shares))
    return arrays | sparsity(scale, progress)


def shift(a: float, share: float, n_runs: int) -> dict[str, float]:
    """Mean over coordinates of log(a_inf^2/a^2)."""
    problem = diagonal_problem(a, 2, n_test=0)
    linearization = sgdsde.linearize(problem)
    lr = share * sgdsde.stability.max_lr(linearization, 1)
    n_steps = round(600 / share)
    x, y = problem.x_train.numpy(), problem.y_train.numpy()[:, 0]
    plus, minus = run_single_examples(x, y, a, lr, n_steps, n_runs, seed=SEED)
    measured = (np.log(np.abs(plus * minus)) - 2 * np.log(a)).mean(1)
    predicted = {
        weighting: float(
            2 * (effective_scale(linearization, sgdsde.SGD(lr, 1), n_steps, weighting=weighting) / a).log().mean()
        )
        for weighting in ("examples", "mean_field")
    }
    z = float((torch.linalg.pinv(problem.x_train) @ problem.y_train).abs().max()) / a**2
    error = float(measured.std(ddof=1) / n_runs**0.5)
    return {"measured": float(measured.mean()), "standard_error": error, "z": z, **predicted}


def sparsity(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    """Recovery error of SGD and of gradient descent over the learning rate, beside that of the flow."""
    beta = np.array([1, -0.8, 0.6, 0.5, -0.4])
    data = gaussian_data(40, 100, beta, seed=3)
    x, y = data["x_train"].numpy(), data["y_train"].numpy()[:, 0]
    truth = np.zeros(100)
    truth[:5] = beta
    lrs = by_scale(
        scale, smoke=(0.006, 0.01), laptop=(0.001, 0.003, 0.006, 0.01), paper=(0.001, 0.002, 0.003, 0.006, 0.01)
    )
    runs = by_scale(scale, smoke=4, laptop=24, paper=200)
    errors, descent, own = [], [], []
    for lr in progress("recovery")(lrs):
        n_steps = round(by_scale(scale, smoke=12, laptop=40, paper=40) / lr)
        plus, minus = run_single_examples(x, y, 0.1, lr, n_steps, runs, seed=SEED)
        errors.append(((plus**2 - minus**2 - truth) ** 2).sum(1))
        ends = [
            interpolant(data["x_train"], data["y_train"], scale=torch.from_numpy(np.abs(p * m) ** 0.5))
            for p, m in zip(plus[:8], minus[:8])
        ]
        own.append(np.mean([float(((end.numpy() - truth) ** 2).sum()) for end in ends]))
        plus, minus = run_single_examples(x, y, 0.1, lr, 2 * n_steps, 1, seed=SEED, full_batch=True)
        descent.append(float(((plus**2 - minus**2 - truth) ** 2).sum()))
    flow = interpolant(data["x_train"], data["y_train"], scale=0.1).numpy()
    return {
        "lrs": np.array(lrs),
        "sgd_error": np.array(errors),
        "effective_error": np.array(own),
        "descent_error": np.array(descent),
        "flow_error": np.array(((flow - truth) ** 2).sum()),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
