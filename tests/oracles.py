"""Slow, obvious twins of the library's fast paths.

Nothing here uses the library's kernels, spectra or updates: features, NumPy, SciPy and ``torch.optim.SGD`` itself.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import integrate, linalg
from torch import Tensor, nn

import sgdsde

Weighted = list[tuple[tuple[int, ...], float]]
"""Batches with their probabilities."""


def every_batch(n: int, batch_size: int, sampling: str, probabilities: Sequence[float] | None = None) -> Weighted:
    """Every batch that can be drawn (as a multiset, where an example may be drawn twice), with its probability."""
    if sampling == "without_replacement":
        assert probabilities is None
        return [(batch, 1 / math.comb(n, batch_size)) for batch in itertools.combinations(range(n), batch_size)]
    chance = [1 / n] * n if probabilities is None else probabilities
    batches = []
    for batch in itertools.combinations_with_replacement(range(n), batch_size):
        orders = math.factorial(batch_size)
        for example in set(batch):
            orders //= math.factorial(batch.count(example))
        batches.append((batch, orders * math.prod(chance[i] for i in batch)))
    return batches


@dataclass(frozen=True)
class Moments:
    """Exact moments over all runs: outputs of train and test examples stacked [n + m, c], their covariance, losses."""

    mean: Tensor
    covariance: Tensor
    train_loss: float
    test_loss: float


def enumerate_runs(
    problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, *, probabilities: Sequence[float] | None = None
) -> list[Moments]:
    """Moments after 0 ... n_steps steps over EVERY sequence of batches, all stepped by one ``torch.optim.SGD``.

    torch's SGD is elementwise, so a parameter [sequences, p] is every sequence at once. Label noise is +-std on every
    drawn target, all signs enumerated: its first two moments are all that enters. For problems of
    ``tests.problems.linear_problem``.
    """
    n, c = problem.n_train, problem.n_outputs
    draws = []
    for k in range(n_steps):
        size = sgd.batch_size_at(k)
        signs = [()] if not sgd.label_noise_std else list(itertools.product((-1.0, 1.0), repeat=size * c))
        batches = every_batch(n, size, sgd.sampling, probabilities)
        draws.append([(batch, sign, chance / len(signs)) for batch, chance in batches for sign in signs])
    places = np.indices([len(step) for step in draws]).reshape(n_steps, -1)
    chances = torch.ones(places.shape[1], dtype=torch.float64)
    for step, place in zip(draws, places):
        chances *= torch.tensor([chance for _, _, chance in step], dtype=torch.float64)[place]
    theta = problem.params["theta"].expand(len(chances), -1).clone().requires_grad_()
    optimizer = torch_optimizer([theta], sgd)
    moments = [_moments(problem, theta.detach(), chances)]
    for k, (step, place) in enumerate(zip(draws, places)):
        batches = torch.tensor([batch for batch, _, _ in step])[place]
        y = problem.y_train[batches]
        if sgd.label_noise_std:
            signs = torch.tensor([sign for _, sign, _ in step], dtype=torch.float64)[place]
            y = y + sgd.label_noise_std * signs.view_as(y)
        outputs = torch.einsum("rbcp,rp->rbc", problem.x_train[batches], theta) + constant_part(problem)[batches]
        optimizer.param_groups[0]["lr"] = sgd.lr_at(k)
        optimizer.zero_grad()
        (len(chances) * problem.loss(outputs, y)).backward()
        optimizer.step()
        moments.append(_moments(problem, theta.detach(), chances))
    return moments


def _moments(problem: sgdsde.Problem, theta: Tensor, chances: Tensor) -> Moments:
    stacked = problem.x_train if problem.x_test is None else torch.cat([problem.x_train, problem.x_test])
    targets = problem.y_train if problem.y_test is None else torch.cat([problem.y_train, problem.y_test])
    outputs = torch.einsum("icp,rp->ric", stacked, theta) + constant_part(problem)
    mean = torch.einsum("r,ric->ic", chances, outputs)
    deviation = (outputs - mean).flatten(1)
    losses = chances @ (outputs - targets).square().mean(2)
    n = problem.n_train
    test = float(losses[n:].mean()) if len(losses) > n else math.nan
    return Moments(mean, deviation.mT @ (deviation * chances[:, None]), float(losses[:n].mean()), test)


def constant_part(problem: sgdsde.Problem) -> Tensor:
    """What no weight moves, [n + m, c]: the outputs at theta = 0. Zero for ``tests.problems.LINEAR``."""
    origin = {"theta": torch.zeros_like(problem.params["theta"])}
    parts = [problem.forward(origin, x) for x in (problem.x_train, problem.x_test) if x is not None]
    return torch.cat(parts)


def torch_optimizer(parameters: list[Tensor], sgd: sgdsde.SGD) -> torch.optim.SGD:
    """The optimizer that an ``SGD`` describes, at the learning rate of step 0."""
    return torch.optim.SGD(
        parameters,
        lr=sgd.lr_at(0),
        momentum=sgd.momentum,
        dampening=sgd.dampening,
        nesterov=sgd.nesterov,
        weight_decay=sgd.weight_decay,
    )


def torch_run(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int, *, seed: int, run: int) -> tuple[Tensor, Tensor]:
    """Train and test outputs [n_steps + 1, n, c] of one plain training loop, its schedule through ``LambdaLR``."""
    model: nn.Module = copy.deepcopy(problem.model)
    optimizer = torch_optimizer(list(model.parameters()), sgd)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: sgd.lr_at(step) / sgd.lr_at(0))
    batches = sgdsde.sampling.batch_indices(sgd, problem.n_train, n_steps, seed=seed, run=run)
    train, test = [], []
    for k in range(n_steps + 1):
        with torch.no_grad():
            train.append(model(problem.x_train))
            test.append(model(problem.x_test))
        if k == n_steps:
            break
        batch = batches[k][batches[k] != sgdsde.sampling.PADDING]
        optimizer.zero_grad()
        problem.loss(model(problem.x_train[batch]), problem.y_train[batch]).backward()
        optimizer.step()
        scheduler.step()
    return torch.stack(train), torch.stack(test)


def features(problem: sgdsde.Problem) -> tuple[np.ndarray, np.ndarray]:
    """J of a linear problem, [n*c, p], and of its test set, [m*c, p]."""
    p = problem.x_train.shape[-1]
    test = problem.x_train[:0] if problem.x_test is None else problem.x_test
    return problem.x_train.reshape(-1, p).numpy(), test.reshape(-1, p).numpy()


def weight_drift(problem: sgdsde.Problem, weight_decay: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(D, b) of the gradient D theta - b of the loss of a linear problem, decay included."""
    jacobian, _ = features(problem)
    scale = 2 / len(jacobian)
    drift = scale * jacobian.T @ jacobian + weight_decay * np.eye(jacobian.shape[1])
    targets = problem.y_train - constant_part(problem)[: problem.n_train]
    return drift, scale * jacobian.T @ targets.numpy().ravel()


def flow_weights(problem: sgdsde.Problem, time: float, weight_decay: float = 0.0) -> np.ndarray:
    """theta(t) of gradient flow on a linear problem, by SciPy's matrix exponential of the affine system."""
    drift, offset = weight_drift(problem, weight_decay)
    p = len(drift)
    generator = np.zeros((p + 1, p + 1))
    generator[:p, :p], generator[:p, p] = -drift, offset
    start = np.append(problem.params["theta"].numpy(), 1.0)
    return (linalg.expm(generator * time) @ start)[:p]


def gradient_covariance(problem: sgdsde.Problem, theta: np.ndarray) -> np.ndarray:
    """Sigma: the covariance of the per-example gradients (divisor n), one example after the other."""
    gradients = []
    targets = (problem.y_train - constant_part(problem)[: problem.n_train]).numpy()
    for x, y in zip(problem.x_train.numpy(), targets):
        gradients.append(2 / len(y) * x.T @ (x @ theta - y))
    deviation = np.array(gradients) - np.mean(gradients, axis=0)
    return deviation.T @ deviation / len(deviation)


def frozen_noise_covariance(drift: np.ndarray, noise: np.ndarray, time: float) -> np.ndarray:
    """Int_0^t exp(-D s) noise exp(-D s) ds by quadrature: the covariance of a process whose noise is frozen."""

    def integrand(s: float) -> np.ndarray:
        decay = linalg.expm(-drift * s)
        return decay @ noise @ decay.T

    return integrate.quad_vec(integrand, 0.0, time, epsabs=1e-13, epsrel=1e-12)[0]


def second_moment_matrix(kernel: np.ndarray, n: int, sgd: sgdsde.SGD) -> np.ndarray:
    """Dense matrix of the map of second moments of one step (past the first) under ``nn.MSELoss``, on the range of K.

    Of M = E[e e^T] for plain SGD, of E[z z^T] with z = (e, u) under momentum; written down from torch's update
    u' = beta u + (1 - dampening) g, e' = e - lr (u' or g + beta u'), g = (H + wd) e + noise; a column a basis matrix.
    """
    d, c = len(kernel), len(kernel) // n
    s, size, lr, beta = 2 / c, sgd.batch_size_at(0), sgd.lr_at(0), sgd.momentum
    phi = 1.0 if sgd.sampling == "with_replacement" else (n - size) / (n - 1)
    values, vectors = np.linalg.eigh(kernel)
    basis = vectors[:, values > 1e-10 * values[-1]]
    r = basis.shape[1]
    one, zero = np.eye(r), np.zeros((r, r))
    curvature = basis.T @ kernel @ basis * s / n + sgd.weight_decay * one
    if beta == 0:
        step, response = one - lr * curvature, -lr * one
    else:
        kappa = 1 - sgd.dampening
        buffer, buffer_response = np.hstack([kappa * curvature, beta * one]), kappa * one
        move, move_response = buffer, buffer_response
        if sgd.nesterov:
            move, move_response = np.hstack([curvature, zero]) + beta * buffer, one + beta * buffer_response
        step = np.vstack([np.hstack([one, zero]) - lr * move, buffer])
        response = np.vstack([-lr * move_response, buffer_response])
    same, rows = np.kron(np.eye(n), np.ones((c, c))), len(step)
    columns = []
    for place in range(rows**2):
        moment = np.zeros(rows**2)
        moment[place] = 1.0
        moment = moment.reshape(rows, rows)
        outputs = basis @ moment[:r, :r] @ basis.T
        spread = s**2 / n * same * outputs - s**2 / n**2 * outputs
        noise = phi / size * basis.T @ kernel @ spread @ kernel @ basis
        columns.append((step @ moment @ step.T + response @ noise @ response.T).ravel())
    assert d == basis.shape[0]
    return np.array(columns).T


def dense_radius(kernel: np.ndarray, n: int, sgd: sgdsde.SGD) -> float:
    """Spectral radius of ``second_moment_matrix``."""
    return float(np.abs(np.linalg.eigvals(second_moment_matrix(kernel, n, sgd))).max())


def growing_energy(kernel: np.ndarray, n: int, sgd: sgdsde.SGD) -> tuple[float, np.ndarray]:
    """(rho, Phi) with E[e'^T Phi e' | e] = rho e^T Phi e for every e in the range of K: plain SGD, ``nn.MSELoss``.

    Phi [n*c, n*c] is the top eigenmatrix of the adjoint of the second-moment map, by plain power iteration. Along
    training e^T Phi e / rho^k is a martingale, whatever the law of e.
    """
    c, size, lr = len(kernel) // n, sgd.batch_size_at(0), sgd.lr_at(0)
    s = 2 / c
    phi = 1.0 if sgd.sampling == "with_replacement" else (n - size) / (n - 1)
    step, same = np.eye(len(kernel)) - lr * s / n * kernel, np.kron(np.eye(n), np.ones((c, c)))
    energy, rho = kernel / np.trace(kernel), 0.0
    for _ in range(20_000):
        pushed = kernel @ energy @ kernel
        new = step @ energy @ step + phi * lr**2 / size * (s**2 / n * same * pushed - s**2 / n**2 * pushed)
        before, rho = rho, float(np.trace(new))
        energy = new / rho
        if abs(rho - before) < 1e-14:
            break
    return rho, energy


class AllSigns:
    """+-1 for each normal number: with all 2^bits patterns as paths, the mean over paths is the expectation, and the
    first two moments of every step are those under normal numbers."""

    def __init__(self, n_bits: int) -> None:
        self.n_paths, self._n_bits, self._used = 2**n_bits, n_bits, 0

    def normal(self, purpose: str, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        first, self._used = self._used, self._used + count
        assert self._used <= self._n_bits
        patterns = torch.arange(self.n_paths)[:, None] >> torch.arange(first, self._used)
        return (1 - 2 * (patterns % 2)).double().view(self.n_paths, *shape)

    @property
    def exhausted(self) -> bool:
        return self._used == self._n_bits


class Given:
    """One prepared tensor [P, n] a call."""

    def __init__(self, numbers: list[Tensor]) -> None:
        self._numbers = list(numbers)

    def normal(self, purpose: str, *shape: int) -> Tensor:
        return self._numbers.pop(0).clone()  # the caller may write to it
