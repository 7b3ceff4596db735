"""Shuffled epochs by enumeration: every order in which an epoch's batches can come, without the library's theory.

The step of ``torch.optim.SGD`` on a model linear in its weights is an affine map of z = (theta, buffer, 1), so over an
epoch each order is one matrix T, and moments pass through any number of epochs exactly: E zz^T <- mean of T E zz^T T^T.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import sgdsde
from tests.oracles import features

Order = tuple[tuple[int, ...], ...]
"""The batches of one epoch."""


@dataclass(frozen=True)
class EpochLaw:
    """Moments of the stacked train and test outputs over all orders, before one step.

    Attributes:
        mean: [d + test]. covariance: [d + test, d + test]. usage: Cov(outputs, u) of the training outputs, [d, n], with
            u_j = R/n - rem_j. train_loss, test_loss: expected.
    """

    mean: np.ndarray
    covariance: np.ndarray
    usage: np.ndarray
    train_loss: float
    test_loss: float


def epoch_sizes(sgd: sgdsde.SGD, n: int, first_step: int) -> list[int]:
    """Batch sizes of the epoch that starts at a step."""
    sizes: list[int] = []
    while sum(sizes) < n:
        asked, left = sgd.batch_size_at(first_step + len(sizes)), n - sum(sizes)
        if asked > left and sgd.drop_last:
            break
        sizes.append(min(asked, left))
    return sizes


def every_order(n: int, sizes: list[int]) -> list[Order]:
    """Every sequence of disjoint batches of these sizes; all are equally likely."""
    orders: list[tuple[Order, frozenset[int]]] = [((), frozenset(range(n)))]
    for size in sizes:
        orders = [
            ((*order, batch), left - set(batch))
            for order, left in orders
            for batch in itertools.combinations(sorted(left), size)
        ]
    return [order for order, _ in orders]


def step_map(problem: sgdsde.Problem, sgd: sgdsde.SGD, step: int, batch: tuple[int, ...]) -> np.ndarray:
    """One update as a matrix on (theta, buffer, 1)."""
    x, y = problem.x_train[list(batch)].numpy(), problem.y_train[list(batch)].numpy()
    p = x.shape[-1]
    rows = x.reshape(-1, p)
    lr, beta = sgd.lr_at(step), sgd.momentum
    gradient = np.zeros((p, 2 * p + 1))
    gradient[:, :p] = 2 / len(rows) * rows.T @ rows + sgd.weight_decay * np.eye(p)
    gradient[:, -1] = -2 / len(rows) * rows.T @ y.ravel()
    buffer = (1.0 if step == 0 else 1 - sgd.dampening) * gradient
    buffer[:, p:-1] += beta * np.eye(p)
    move = gradient + beta * buffer if sgd.nesterov else buffer if beta else gradient
    matrix = np.eye(2 * p + 1)
    matrix[:p] -= lr * move
    matrix[p:-1] = buffer if beta else 0
    return matrix


def enumerate_epochs(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int) -> list[EpochLaw]:
    """The laws before steps 0 ... n_steps, over every order of every epoch."""
    theta = problem.params["theta"].numpy()
    start = np.concatenate([theta, np.zeros_like(theta), [1.0]])
    return list(itertools.islice(_laws(problem, sgd, np.outer(start, start)), n_steps + 1))


def _laws(problem: sgdsde.Problem, sgd: sgdsde.SGD, moment: np.ndarray) -> Iterator[EpochLaw]:
    n, step = problem.n_train, 0
    while True:
        orders = every_order(n, epoch_sizes(sgd, n, step))
        maps = np.broadcast_to(np.eye(len(moment)), (len(orders), *moment.shape))
        remaining = np.ones((len(orders), n))
        for place in range(len(orders[0])):
            yield _law(problem, maps, remaining, moment)
            batches = {order[place] for order in orders}
            steps = {batch: step_map(problem, sgd, step, batch) for batch in batches}
            maps = np.stack([steps[order[place]] for order in orders]) @ maps
            for row, order in zip(remaining, orders):
                row[list(order[place])] = 0
            step += 1
        moment = (maps @ moment @ maps.swapaxes(1, 2)).mean(0)


def _law(problem: sgdsde.Problem, maps: np.ndarray, remaining: np.ndarray, moment: np.ndarray) -> EpochLaw:
    train, test = features(problem)
    rows, p = np.concatenate([train, test]), train.shape[1]
    now = (maps @ moment @ maps.swapaxes(1, 2)).mean(0)
    theta, mean_square = now[:p, -1], now[:p, :p]
    weights = (maps @ moment[:, -1])[:, :p]
    deviation = remaining.mean(1, keepdims=True) - remaining
    covariance = rows @ (mean_square - np.outer(theta, theta)) @ rows.T
    mean = rows @ theta
    targets = [problem.y_train.numpy().ravel()] + ([] if problem.y_test is None else [problem.y_test.numpy().ravel()])
    squares = (mean - np.concatenate(targets)) ** 2 + covariance.diagonal()
    d = len(train)
    test_loss = float(squares[d:].mean()) if len(test) else float("nan")
    usage = train @ (weights.T @ deviation / len(maps))
    return EpochLaw(mean, covariance, usage, float(squares[:d].mean()), test_loss)
