"""Learning rates up to which minibatch SGD on the linearized model is stable in mean square.

SGD is stable in mean square if the map T of second moments (``second_moments``) has spectral radius below 1 on the
range of K; on the full space the radius is 1 at every learning rate, because null modes never move. For plain SGD the
limit needs no root: at the limit lr R(X) = H X + X H for some X, a symmetric-definite eigenproblem, with

    R(X) = (1 - phi/B) H X H + (phi s^2 / (B n)) K D(X) K.

Other losses stand for their quadratic at the initial outputs (``local_map``).
"""

from __future__ import annotations

import dataclasses
import math
from typing import get_args

import torch
from scipy.optimize import brentq

from sgdsde._checks import complaint, fraction_below_one, whole_number, word
from sgdsde._streams import numpy_stream
from sgdsde._types import Sampling
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.example_blocks import times_blocks
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, sampling_factor
from sgdsde.stability.local import local_kernel, local_map
from sgdsde.stability.second_moments import SecondMomentMap, largest_eigenvalue


def mean_square_radius(problem_or_linearization: Problem | Linearization, sgd: SGD) -> float:
    """Spectral radius of the map of second moments of one step, on the range of K: below 1 is stable.

    Args:
        sgd: constant learning rate and batch size, i.i.d. sampling; momentum and decay as they are. Label noise adds a
            constant and changes nothing here.
    Returns:
        The factor by which the slowest second moment changes in one step.
    Exactness: to 1e-8, for the model linearized at initialization.
    Cost: about 15 small eigenproblems of 12 to 24 applications, each two products [d, r] x [r, r]; with momentum also
        15 times r^2 systems of four unknowns.
    Source: derived in docs/derivations.md.
    """
    linearization = as_linearization(problem_or_linearization, sgd=sgd)
    _refuse_unsupported(sgd)
    lr, noise = sgd.lr_at(0), sgd.plan(linearization.problem.n_train, 1).noise_factor(0)
    moments = local_map(linearization)
    if not moments.drift.any():
        return 0.0  # of an empty range
    floor = moments.mean_radius(sgd, lr) ** 2
    if noise == 0:
        return floor
    if sgd.momentum == 0:  # the elementwise part of T, centering of the noise included, may lie below G (x) G
        a = 1 - lr * (moments.drift + sgd.weight_decay)
        floor = float((a[:, None] * a - noise * lr**2 * moments.drift[:, None] * moments.drift).max())

    def excess(log_gap: float) -> float:
        return math.log(max(moments.amplification(sgd, lr, noise, floor + math.exp(log_gap)), 1e-300))

    low, high = math.log(1e-12 * floor), math.log(floor)
    if excess(low) < 0:
        return floor
    while excess(high) > 0:
        high += 1.0
    return floor + math.exp(brentq(excess, low, high, xtol=1e-9))


def max_lr(
    problem_or_linearization: Problem | Linearization,
    batch_size: int,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sampling: Sampling = "with_replacement",
) -> float:
    """The limit of the kernel at initialization: SGD on the linearized model is stable in mean square below it.

    The network itself, whose kernel moves, may fail below it (momentum, small batches) or train above it (layer norm):
    real training failed at 0.09 to 18 times this number in docs/stability.md. ``max_lr_along_path`` follows it.

    Args:
        batch_size: B. momentum, dampening, nesterov, weight_decay: as in torch. sampling: "with_replacement",
            "without_replacement", or "shuffled": epochs have no limit of their own here and are held against fresh
            batches without replacement.
    Returns:
        lr in the units of ``torch.optim.SGD``; at B = n without replacement the full-batch limit. With momentum,
        dampening d divides it by 1 - d: infinite at d = 1, and 0 beyond, where the buffer points uphill. Infinite where
        the kernel is zero.
    Exactness: to 1e-8, for the model linearized at initialization, under squared error. With momentum or decay the
        limit is the smallest learning rate at which the radius is 1; above it the radius has been above 1 in every case
        tried. Another loss stands for the quadratic with its Hessian at the initial outputs: the limit of small
        deviations there, which moves as training goes on (under cross-entropy it grows with confidence), and past which
        the loss need not diverge.
    Cost: plain SGD 20 to 40 applications of the map, each two products [d, r] x [r, r]; with momentum or decay about 15
        times that.
    Source: derived in docs/derivations.md.
    """
    linearization = as_linearization(problem_or_linearization)
    noise = noise_factor(linearization, batch_size, sampling)
    return limit_at_noise(
        linearization, noise, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=weight_decay
    )


def max_lr_of(problem_or_linearization: Problem | Linearization, sgd: SGD) -> float:
    """``max_lr`` for the constant batch size, momentum, decay and sampling of an ``SGD``; its lr is not used."""
    if callable(sgd.batch_size):
        remedy = "ask for the smallest batch of the schedule"
        raise ValueError(complaint("sgd", "of constant batch size", "a schedule", remedy))
    return max_lr(
        problem_or_linearization,
        sgd.batch_size_at(0),
        momentum=sgd.momentum,
        dampening=sgd.dampening,
        nesterov=sgd.nesterov,
        weight_decay=sgd.weight_decay,
        sampling=sgd.sampling,
    )


def limit_at_noise(
    linearization: Linearization,
    noise: float,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> float:
    """``max_lr`` for any value of phi/B, which need not belong to a whole batch size."""
    sgd = SGD(1.0, 1, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=weight_decay)
    return limit_of_map(local_map(linearization), noise, sgd=sgd)


def limit_of_map(moments: SecondMomentMap, noise: float, *, sgd: SGD, precision: float = 1e-9) -> float:
    """``limit_at_noise`` of one map of second moments, momentum and decay from ``sgd``; ``precision`` is relative."""
    if sgd.momentum == 0 and sgd.weight_decay == 0:
        return _plain_limit(moments, noise, precision)
    full_batch = _full_batch_limit(moments, sgd)
    if noise == 0 or not 0 < full_batch < math.inf or not moments.drift.any():
        return full_batch

    def excess(log_lr: float) -> float:
        return math.log(max(moments.amplification(sgd, math.exp(log_lr), noise), 1e-300))

    high = math.log(full_batch * (1 - 1e-9))
    low = math.log(full_batch) - 1.0
    while excess(low) > 0:
        high, low = low, low - 1.0
    return math.exp(brentq(excess, low, high, xtol=precision))


def is_below_limit(moments: SecondMomentMap, sgd: SGD, lr: float, noise: float) -> bool:
    """Whether ``lr`` is below ``limit_of_map``, at the cost of one evaluation in place of a root.

    The radius of the mean would not do: it is 1 to rounding where some eigenvalue of the kernel is tiny.
    """
    if not moments.drift.any():
        return True
    if sgd.momentum == 0 and sgd.weight_decay == 0:
        return lr <= _sufficient_of_map(moments, noise) or lr <= _plain_limit(moments, noise)
    if not lr < _full_batch_limit(moments, sgd):
        return False
    return noise == 0 or moments.amplification(sgd, lr, noise) < 1


def _sufficient_of_map(moments: SecondMomentMap, noise: float) -> float:
    """``sufficient_lr`` of the eigenpairs that a map holds: 2 / l_max[(1 - q) H + q n D(H)], H = W W^T / sqrt n."""
    rows, root = moments.examples.rows, moments.blocks_shape[0] ** 0.5
    blocks = moments.examples.of_product(rows)

    def product(vector: torch.Tensor) -> torch.Tensor:
        return (1 - noise) / root * (rows @ (rows.mT @ vector)) + noise * root * times_blocks(blocks, vector)

    start = numpy_stream(0, "start of a Lanczos iteration", 0).standard_normal(len(rows))
    return 2 / largest_eigenvalue(product, (len(rows), 1), rows, start=start)


def _plain_limit(moments: SecondMomentMap, noise: float, precision: float = 1e-9) -> float:
    h = moments.drift
    if not h.any():
        return math.inf
    if noise == 0:
        return 2 / float(h.max())
    weights = (h[:, None] + h).rsqrt()
    diagonal = (1 - noise) * h[:, None] * h / (h[:, None] + h)

    def ratio(y: torch.Tensor) -> torch.Tensor:
        return diagonal * y + noise * weights * moments.examples.spread(moments.examples.of(weights * y))

    return 1 / largest_eigenvalue(ratio, (len(h), len(h)), h, precision=precision)


def max_lr_full_batch(
    problem_or_linearization: Problem | Linearization,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> float:
    """The learning rate up to which full-batch gradient descent is stable.

    2 (1 + b) / ((1 - d) (l_max(H) + decay))        with momentum b and dampening d (d = 0 where b = 0)
    2 (1 + b) / ((1 + 2 b) (l_max(H) + decay))      with Nesterov momentum b
    """
    sgd = SGD(1.0, 1, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=weight_decay)
    return _full_batch_limit(local_map(as_linearization(problem_or_linearization)), sgd)


def _full_batch_limit(moments: SecondMomentMap, sgd: SGD) -> float:
    beta = fraction_below_one("momentum", sgd.momentum)
    sharpest = float(moments.drift.max()) + sgd.weight_decay
    damped = 1 - sgd.dampening if beta else 1.0  # torch dampens the buffer only, and has none without momentum
    if damped <= 0:
        return math.inf if damped == 0 else 0.0
    if sharpest == 0:
        return math.inf
    return 2 * (1 + beta) / (sharpest * damped * (1 + 2 * beta if sgd.nesterov else 1))


def sufficient_lr(linearization: Linearization, batch_size: int, *, sampling: Sampling = "with_replacement") -> float:
    """A learning rate that is certainly stable, at the cost of one top eigenvalue: 2 / (s l_max[(1 - q) K/n + q D(K)]).

    q = phi/B, plain SGD. Between 0.7 and 0.9 of ``max_lr`` on the problems tried; used to skip the exact limit where it
    is not needed.
    """
    noise = noise_factor(linearization, batch_size, sampling)
    kernel, curvature = local_kernel(linearization)
    c, n = linearization.problem.n_outputs, linearization.problem.n_train
    blocks = diagonal_blocks(kernel.contiguous(), c).contiguous()
    if not blocks.any():
        return math.inf

    def product(vector: torch.Tensor) -> torch.Tensor:
        return (1 - noise) / n * (kernel @ vector) + noise * times_blocks(blocks, vector)

    start = numpy_stream(0, "start of a Lanczos iteration", 0).standard_normal(n * c)  # no vector is orthogonal to it
    return 2 / (curvature * largest_eigenvalue(product, (n * c, 1), kernel, start=start))


def noise_factor(linearization: Linearization, batch_size: int, sampling: Sampling) -> float:
    """phi/B of i.i.d. batches; of shuffled epochs that of fresh batches without replacement."""
    return noise_among(linearization.problem.n_train, batch_size, sampling)


def noise_among(n: int, batch_size: int, sampling: Sampling) -> float:
    """The same for batches from n examples."""
    batch_size = whole_number("batch_size", batch_size, minimum=1)
    word("sampling", sampling, get_args(Sampling))
    if sampling == "shuffled":
        sampling, batch_size = "without_replacement", min(batch_size, n)
    if sampling == "without_replacement" and batch_size > n:
        received = f"batch_size={batch_size}, n_train={n}"
        expected = "at most n_train when drawn without replacement"
        raise ValueError(complaint("batch_size", expected, received, 'use sampling="with_replacement"'))
    return sampling_factor(n, batch_size, sampling) / batch_size


def _refuse_unsupported(sgd: SGD) -> None:
    if callable(sgd.lr) or callable(sgd.batch_size):
        received, remedy = "a schedule", "ask for the largest learning rate and smallest batch of the schedule"
        raise ValueError(complaint("sgd", "of constant learning rate and batch size", received, remedy))
    if sgd.sampling == "shuffled":
        remedy = f"ask for {dataclasses.replace(sgd, sampling='without_replacement', drop_last=False)}"
        raise ValueError(complaint("sgd.sampling", "i.i.d.", "'shuffled'", remedy))
