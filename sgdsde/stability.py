"""Learning rates at which minibatch SGD on the linearized model stops being stable.

The second moment M of the residual evolves by a positive linear map,

    T(M) = A M A + (phi lr^2 / B) K N(M) K,   A = I - lr H,   N(M) = (s^2/n) D(M) - (s^2/n^2) M,

and SGD is stable in mean square if the spectral radius of T on the range of K is below 1. With M = K^{1/2} Y K^{1/2}
the map is self-adjoint, and positive, so its radius is as largest eigenvalue. In K's eigenbasis T = E + F, E elementwise
and F through the n diagonal blocks only, so radius x is where the largest eigenvalue of the map of blocks

    Psi_x(D) = blocks of K^{1/2} ((x - E)^{-1} o F(D)) K^{1/2}

falls through 1: a small, well separated eigenproblem however many slow modes crowd below 1. The limit on the learning
rate needs no root: at the limit lr R(X) = H X + X H for some X, a symmetric-definite eigenproblem, with

    R(X) = (1 - phi/B) H X H + (phi s^2 / (B n)) K D(X) K.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from sgdsde._checks import complaint, fraction_below_one, whole_number, word
from sgdsde._types import Sampling
from sgdsde.dynamics.base import Modes
from sgdsde.linearization import Linearization, linearize
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, sampling_factor


class UnstableWarning(UserWarning):
    """The learning rate lies beyond a limit of the linearized SGD; the message holds the limit."""


def mean_square_radius(problem_or_linearization: Problem | Linearization, sgd: SGD) -> float:
    """Spectral radius of the map of second moments of one step, on the range of K: below 1 is stable.

    Args:
        sgd: constant learning rate and batch size, no momentum or decay, i.i.d. sampling.
    Returns:
        The factor by which the expected loss of the slowest second moment changes in one step.
    Exactness: to 1e-10, for the model linearized at initialization.
    Cost: about 15 small eigenproblems of 12 to 24 applications, each two products [d, r] x [r, r].
    """
    linearization = _linearization(problem_or_linearization)
    _refuse_unsupported(sgd)
    n = linearization.problem.n_train
    lr = sgd.lr_at(0)
    noise = sgd.plan(n, 1).noise_factor(0)
    map_ = _SecondMomentMap(Modes(linearization))
    a = 1 - lr * map_.drift
    elementwise = a[:, None] * a - noise * lr**2 * map_.drift[:, None] * map_.drift
    top = float(elementwise.max())
    if noise == 0:
        return top

    def excess(log_gap: float) -> float:
        gains = noise * lr**2 / (top - elementwise + math.exp(log_gap))
        return math.log(_largest_eigenvalue(lambda blocks: map_.through_blocks(blocks, gains), map_.blocks_shape, a))

    low, high = math.log(1e-13 * top), math.log(top)
    if excess(low) < 0:
        return top
    while excess(high) > 0:
        high += 1.0
    return top + math.exp(brentq(excess, low, high, xtol=1e-7))


def max_lr(
    problem_or_linearization: Problem | Linearization,
    batch_size: int,
    *,
    momentum: float = 0.0,
    sampling: Sampling = "with_replacement",
) -> float:
    """The learning rate up to which SGD on the linearized model is stable in mean square (and below it always is).

    Args:
        batch_size: B. momentum: only 0 so far. sampling: "with_replacement" or "without_replacement".
    Returns:
        lr in the units of ``torch.optim.SGD``; 2 / l_max(H) at B = n without replacement.
    Exactness: to 1e-10, for the model linearized at initialization.
    Cost: 20 to 40 applications of the map, each two products [d, r] x [r, r].
    Source: derived in docs/derivations.md.
    """
    linearization = _linearization(problem_or_linearization)
    if fraction_below_one("momentum", momentum):
        raise ValueError(complaint("momentum", "0", momentum, "the limit with momentum is not implemented"))
    noise = _noise_factor(linearization, batch_size, sampling)
    map_ = _SecondMomentMap(Modes(linearization))
    h = map_.drift
    if noise == 0:
        return 2 / float(h.max())
    weights = (h[:, None] + h).rsqrt()
    diagonal = (1 - noise) * h[:, None] * h / (h[:, None] + h)

    def ratio(y: Tensor) -> Tensor:
        return diagonal * y + noise * weights * map_.from_blocks(map_.to_blocks(weights * y))

    return 1 / _largest_eigenvalue(ratio, (len(h), len(h)), h)


def max_lr_full_batch(problem_or_linearization: Problem | Linearization, *, momentum: float = 0.0) -> float:
    """The learning rate 2 (1 + momentum) / l_max(H) up to which full-batch gradient descent is stable."""
    momentum = fraction_below_one("momentum", momentum)
    modes = Modes(_linearization(problem_or_linearization))
    return 2 * (1 + momentum) / float(modes.drift.max())


def sufficient_lr(linearization: Linearization, batch_size: int, *, sampling: Sampling = "with_replacement") -> float:
    """A learning rate that is certainly stable, at the cost of one top eigenvalue: 2 / (s l_max[(1 - q) K/n + q D(K)]).

    q = phi/B. Between 0.7 and 0.9 of ``max_lr`` on the problems tried; used to skip the exact limit where it is not
    needed.
    """
    noise = _noise_factor(linearization, batch_size, sampling)
    modes = Modes(linearization)
    c, n = modes.n_outputs, modes.n_train
    matrix = (1 - noise) * linearization.kernel / n
    diagonal_blocks(matrix, c).add_(diagonal_blocks(linearization.kernel.contiguous(), c), alpha=noise)
    return 2 / (modes.loss_curvature * float(torch.linalg.eigvalsh(matrix)[-1]))


class _SecondMomentMap:
    """The noise part of the map, through the blocks of K^{1/2} Y K^{1/2}, in the eigenbasis: self-adjoint, positive."""

    def __init__(self, modes: Modes) -> None:
        self.drift = modes.drift
        self.blocks_shape = (modes.n_train, modes.n_outputs, modes.n_outputs)
        self._scaled = modes.vectors * (modes.values.sqrt() * (modes.loss_curvature / modes.n_train**0.5) ** 0.5)
        self._rows = self._scaled.view(modes.n_train, modes.n_outputs, -1)

    def to_blocks(self, matrix: Tensor) -> Tensor:
        """[r, r] to [n, c, c]."""
        rows = self._scaled @ matrix
        if self.blocks_shape[1] == 1:
            return (rows * self._scaled).sum(1).view(self.blocks_shape)
        return rows.view_as(self._rows) @ self._rows.mT

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """The adjoint, [n, c, c] to [r, r]."""
        return self._scaled.mT @ (blocks @ self._rows).view_as(self._scaled)

    def through_blocks(self, blocks: Tensor, gains: Tensor) -> Tensor:
        """Psi: [n, c, c] to [n, c, c] with elementwise gains [r, r] in between."""
        return self.to_blocks(gains * self.from_blocks(blocks))


def _largest_eigenvalue(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], like: Tensor) -> float:
    """Of a self-adjoint map of arrays of this shape, by Lanczos from the identity (inside the positive cone)."""
    size = math.prod(shape)

    def matvec(vector: np.ndarray) -> np.ndarray:
        matrix = torch.from_numpy(np.ascontiguousarray(vector).reshape(shape)).to(like)
        return apply(matrix).double().cpu().numpy().ravel()

    if size <= 8:
        columns = [matvec(column) for column in np.eye(size)]
        return float(np.linalg.eigvalsh(np.stack(columns)).max())
    start = np.broadcast_to(np.eye(shape[-1]), shape).ravel()
    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    tolerance = 1e-9 if like.dtype == torch.float64 else 1e-6
    return float(eigsh(operator, k=1, which="LA", v0=start, ncv=min(12, size), tol=tolerance)[0][0])


def _noise_factor(linearization: Linearization, batch_size: int, sampling: Sampling) -> float:
    batch_size = whole_number("batch_size", batch_size, minimum=1)
    word("sampling", sampling, ("with_replacement", "without_replacement"))
    n = linearization.problem.n_train
    if sampling == "without_replacement" and batch_size > n:
        received = f"batch_size={batch_size}, n_train={n}"
        expected = "at most n_train when drawn without replacement"
        raise ValueError(complaint("batch_size", expected, received, 'use sampling="with_replacement"'))
    return sampling_factor(n, batch_size, sampling) / batch_size


def _refuse_unsupported(sgd: SGD) -> None:
    if callable(sgd.lr) or callable(sgd.batch_size):
        received, remedy = "a schedule", "ask for the largest learning rate and smallest batch of the schedule"
        raise ValueError(complaint("sgd", "of constant learning rate and batch size", received, remedy))
    if sgd.momentum or sgd.weight_decay or sgd.sampling == "shuffled":
        received = f"momentum={sgd.momentum}, weight_decay={sgd.weight_decay}, sampling={sgd.sampling!r}"
        raise ValueError(complaint("sgd", "plain, with i.i.d. sampling", received, "use plain SGD"))


def _linearization(problem_or_linearization: Problem | Linearization) -> Linearization:
    if isinstance(problem_or_linearization, Problem):
        return linearize(problem_or_linearization)
    return problem_or_linearization
