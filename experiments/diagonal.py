"""The sparse regression that several figures train diagonal networks on."""

from __future__ import annotations

import numpy as np
import torch

import sgdsde
from sgdsde.networks import DiagonalLinear


def gaussian_data(n: int, d: int, beta: np.ndarray, *, seed: int, n_test: int = 0) -> dict[str, torch.Tensor]:
    """Gaussian features and the targets of coefficients ``beta``, padded with zeros to d."""
    rng = np.random.default_rng(seed)
    full = np.zeros(d)
    full[: len(beta)] = beta
    x = rng.standard_normal((n, d))
    data = {"x_train": x, "y_train": (x @ full)[:, None]}
    if n_test:
        x_test = rng.standard_normal((n_test, d))
        data |= {"x_test": x_test, "y_test": (x_test @ full)[:, None]}
    return {name: torch.from_numpy(value) for name, value in data.items()}


def diagonal_problem(scale: float, depth: int, *, n_test: int = 200) -> sgdsde.Problem:
    """20 examples, 40 coefficients of which 3 are not zero."""
    data = gaussian_data(20, 40, np.array([1.0, -0.7, 0.5]), seed=1, n_test=n_test)
    model = DiagonalLinear(40, depth=depth, scale=scale, dtype=torch.float64)
    return sgdsde.Problem(model, **data, loss=torch.nn.MSELoss())


def run_single_examples(
    x: np.ndarray,
    y: np.ndarray,
    scale: float,
    lr: float,
    n_steps: int,
    runs: int,
    *,
    seed: int,
    full_batch: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """w_+ and w_- of a network of depth 2 after SGD with single examples (or full batches), [runs, d] each.

    Written out by hand: the weights of every run are needed, which an ensemble does not keep.
    """
    rng = np.random.default_rng(seed)
    plus = np.full((runs, x.shape[1]), scale)
    minus = plus.copy()
    for step in range(n_steps):
        if full_batch:
            residual = (plus**2 - minus**2) @ x.T - y
            gradient = 2 / len(x) * residual @ x
        else:
            i = rng.integers(len(x), size=runs)
            residual = ((plus**2 - minus**2) * x[i]).sum(1) - y[i]
            gradient = 2 * residual[:, None] * x[i]
        plus, minus = plus * (1 - 2 * lr * gradient), minus * (1 + 2 * lr * gradient)
        if step % 500 == 0 and np.abs((plus**2 - minus**2) @ x.T - y).max() < 1e-10:
            break
    return plus, minus
