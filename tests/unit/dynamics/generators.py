"""Dense generators of the second moments in continuous time, for SciPy's expm: the slow twins of two dynamics."""

from __future__ import annotations

import numpy as np
from scipy import linalg

import sgdsde
from sgdsde.sgd import SGD
from tests.oracles import features


class ContinuousOracle:
    """Full residual e = f - y of a linear problem (null space included), constant learning rate and batch size."""

    def __init__(self, problem: sgdsde.Problem, sgd: SGD, order: int) -> None:
        jacobian, _ = features(problem)
        n, c = problem.n_train, problem.n_outputs
        d, s, lr = n * c, 2 / c, sgd.lr_at(0)
        plan = sgd.plan(n, 1)
        self.kernel, self.lr, self.d = jacobian @ jacobian.T, lr, d
        self.start = (jacobian @ problem.params["theta"].numpy()) - problem.y_train.numpy().ravel()
        gradient = s / n * self.kernel + sgd.weight_decay * np.eye(d)
        modified = np.eye(d) + (lr / 2 * gradient if order == 2 else 0)
        weights = jacobian @ problem.params["theta"].numpy()
        self.drift = modified @ gradient
        self.offset = sgd.weight_decay * modified @ (weights - self.start)
        factor, same = plan.noise_factor(0), np.kron(np.eye(n), np.ones((c, c)))
        centered = np.kron(self.kernel, self.kernel) @ np.diag((s**2 / n * same - s**2 / n**2).ravel())
        self.noise = lr * factor * centered
        constant = s**2 * sgd.label_noise_std**2 / (n * int(plan.batch_size[0])) * self.kernel @ self.kernel
        self.constant = lr * constant

    def _lyapunov(self) -> np.ndarray:
        eye = np.eye(self.d)
        return -np.kron(self.drift, eye) - np.kron(eye, self.drift)

    def _mean_rows(self, generator: np.ndarray, first: int) -> None:
        """dm/dt = -drift m - offset, on the last d + 1 entries (m, 1)."""
        generator[first : first + self.d, first : first + self.d] = -self.drift
        generator[first : first + self.d, -1] = -self.offset

    def _moment_rows(self, generator: np.ndarray, first: int, mean: int) -> None:
        """d(m m^T)/dt of an affine mean, or of E[e e^T]."""
        d, eye = self.d, np.eye(self.d)
        rows = slice(first, first + d * d)
        generator[rows, rows] += self._lyapunov()
        offset = self.offset[:, None]
        generator[rows, mean : mean + d] -= np.kron(offset, eye) + np.kron(eye, offset)

    def mean(self, time: float) -> np.ndarray:
        generator = np.zeros((self.d + 1, self.d + 1))
        self._mean_rows(generator, 0)
        return (linalg.expm(generator * time) @ np.append(self.start, 1.0))[:-1]

    def covariance(self, time: float) -> np.ndarray:
        """Noise of the state: from E[e e^T], less the square of the mean."""
        d = self.d
        generator = np.zeros((d * d + d + 1, d * d + d + 1))
        self._moment_rows(generator, 0, d * d)
        self._mean_rows(generator, d * d)
        generator[: d * d, : d * d] += self.noise
        generator[: d * d, -1] += self.constant.ravel()
        state = np.concatenate([np.outer(self.start, self.start).ravel(), self.start, [1.0]])
        moved = linalg.expm(generator * time) @ state
        return moved[: d * d].reshape(d, d) - np.outer(moved[d * d : -1], moved[d * d : -1])

    def covariance_on_mean_path(self, time: float) -> np.ndarray:
        """Noise of the mean alone: (S, m m^T, m, 1) is a linear system."""
        d = self.d
        size = 2 * d * d + d + 1
        generator = np.zeros((size, size))
        generator[: d * d, : d * d] = self._lyapunov()
        generator[: d * d, d * d : 2 * d * d] = self.noise
        generator[: d * d, -1] = self.constant.ravel()
        self._moment_rows(generator, d * d, 2 * d * d)
        self._mean_rows(generator, 2 * d * d)
        state = np.concatenate([np.zeros(d * d), np.outer(self.start, self.start).ravel(), self.start, [1.0]])
        return (linalg.expm(generator * time) @ state)[: d * d].reshape(d, d)

    def diffusion(self, residual: np.ndarray) -> np.ndarray:
        """Lr times the covariance of a step's gradient at a given residual, [d, d]."""
        return (self.noise @ np.outer(residual, residual).ravel()).reshape(self.d, self.d) + self.constant
