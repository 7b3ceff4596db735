"""Test error of a ReLU network over its output scale, and nuclear norm of a factorization over scale and width."""

from __future__ import annotations

import numpy as np
import torch

from experiments.frame import Progress, Scale, by_scale, main
from sgdsde.networks import MatrixFactorization

SEED = 0
WAY = 1.3
"""Least curvature for which a step is chosen: rich networks grow on the way."""


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    return relu(scale, progress) | factorization(scale, progress)


def relu(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    scales = by_scale(
        scale,
        smoke=(0.3, 10.0),
        laptop=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0),
        paper=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    )
    seeds, most = by_scale(scale, smoke=(1, 2000), laptop=(3, 20_000), paper=(10, 20_000))
    found = np.zeros((2, len(scales), seeds))
    for i, a in enumerate(progress("output scales")(scales)):
        for seed in range(seeds):
            found[:, i, seed] = student(a, seed, most)
    return {"scales": np.array(scales), "test_error": found[0], "train_loss": found[1]}


def student(a: float, seed: int, most: int, *, d: int = 10, n: int = 80, width: int = 100) -> tuple[float, float]:
    """Test error over variance and training loss of a (f - f_0), f a ReLU network, after full-batch descent.

    The teacher is the difference of two ReLU units; steps are 0.25 / l_max(K_t / n), the kernel made anew every 25.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    teacher = normal(2, d)
    teacher /= teacher.norm(dim=1, keepdim=True)
    x, x_test = normal(n, d), normal(1000, d)
    y, y_test = ((torch.relu(each @ teacher.mT) @ torch.tensor([1.0, -1.0]).double()) for each in (x, x_test))
    w, v = normal(width // 2, d) / d**0.5, normal(width // 2) / width**0.5
    w, v = torch.cat([w, w]), torch.cat([v, -v])
    lr = loss = 0.0
    for step in range(most):
        z = x @ w.mT
        hidden = torch.relu(z)
        slopes = (z > 0) * v
        residual = a * hidden @ v - y
        loss = float(residual.square().mean())
        if loss < 1e-4:
            break
        if step % 25 == 0:
            kernel = a**2 * (hidden @ hidden.mT + (slopes @ slopes.mT) * (x @ x.mT))
            lr = 0.25 / max(float(torch.linalg.eigvalsh(kernel)[-1]) / n, 0.3 * a if a < 1 else 0.0)
        signal = 2 * a / n * residual
        w, v = w - lr * (signal[:, None] * slopes).mT @ x, v - lr * hidden.mT @ signal
    predicted = a * torch.relu(x_test @ w.mT) @ v
    return float((predicted - y_test).square().mean() / y_test.square().mean()), loss


def factorization(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    """Nuclear norm of U V^T fitted to 60 of the 100 entries of a matrix of rank 1 and norm 1."""
    sizes = by_scale(
        scale,
        smoke=(0.1, 10.0),
        laptop=(0.03, 0.1, 0.3, 1.0, 3.0, 100.0),
        paper=(0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0),
    )
    widths = by_scale(scale, smoke=(40,), laptop=(20, 40, 160), paper=(20, 40, 160, 640))
    seeds = by_scale(scale, smoke=1, laptop=2, paper=8)
    norms = np.zeros((len(widths), len(sizes), seeds))
    for i, width in enumerate(progress("widths")(widths)):
        for j, size in enumerate(sizes):
            for seed in range(seeds):
                norms[i, j, seed] = nuclear_norm(width, (size / width) ** 0.5, seed)
    return {"sizes": np.array(sizes), "widths": np.array(widths), "nuclear_norm": norms}


def nuclear_norm(width: int, a: float, seed: int) -> float:
    rng = np.random.default_rng(SEED)
    left, right = rng.standard_normal((2, 10))
    target = np.outer(left, right) / np.linalg.norm(left) / np.linalg.norm(right)
    mask = np.zeros(100)
    mask[rng.permutation(100)[:60]] = 1
    model = MatrixFactorization(
        10, 10, width, scale=a, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    u, v, lr = model.left.detach().numpy(), model.right.detach().numpy(), 0.0
    for step in range(200_000):
        residual = mask.reshape(10, 10) * (u @ v.T - target)
        if step % 50 == 0:
            if (residual**2).sum() < 1e-9:
                break
            lr = 0.25 / max(float(np.linalg.norm(u, 2)) ** 2, float(np.linalg.norm(v, 2)) ** 2, WAY)
        u, v = u - lr * residual @ v, v - lr * residual.T @ u
    return float(np.linalg.norm(u @ v.T, "nuc"))


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
