"""Fastest learning rate, critical batch size and gradient noise scale, from the map of second moments."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq, minimize_scalar

from sgdsde._checks import complaint
from sgdsde._types import Sampling
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability.limits import limit_at_noise, max_lr, mean_square_radius


def fastest_lr(
    problem_or_linearization: Problem | Linearization,
    batch_size: int,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    sampling: Sampling = "with_replacement",
) -> float:
    """The learning rate whose slowest second moment decays fastest: argmin of ``mean_square_radius``.

    It minimizes the asymptotic rate, which the smallest eigenvalue of the kernel decides; a finite run may prefer less.
    Exactness: to 1e-3, a minimum of a flat function. Cost: about 25 radii.
    """
    linearization = as_linearization(problem_or_linearization)
    limit = max_lr(linearization, batch_size, momentum=momentum, nesterov=nesterov, sampling=sampling)
    _refuse_zero(limit == math.inf)

    def log_radius(lr: float) -> float:
        sgd = SGD(lr, batch_size, momentum=momentum, nesterov=nesterov, sampling=sampling)
        return math.log(mean_square_radius(linearization, sgd))

    found = minimize_scalar(log_radius, bounds=(limit * 1e-3, limit), method="bounded", options={"xatol": 1e-3 * limit})
    return float(found.x)


def critical_batch_size(problem_or_linearization: Problem | Linearization) -> float:
    """The batch size at which the mean-square limit on lr is half of the full-batch limit, batches with replacement.

    Far below it the largest stable learning rate grows in proportion to the batch: twice the examples a step allow
    twice the step. Far above it curvature and not noise limits the step, and more examples a step buy nothing.

    Returns:
        A real number; at least 0, and below 1 where even single examples are not limited by noise.
    Exactness: to 1e-6. Cost: about 15 times ``max_lr``.
    """
    linearization = as_linearization(problem_or_linearization)
    half = limit_at_noise(linearization, 0.0) / 2
    _refuse_zero(half == math.inf)

    def excess(log_noise: float) -> float:
        return math.log(limit_at_noise(linearization, math.exp(log_noise)) / half)

    low, high = -1.0, 0.0
    while excess(high) > 0:
        low, high = high, high + 2.0
    while excess(low) < 0:
        low -= 2.0
    return math.exp(-brentq(excess, low, high, xtol=1e-6))


def gradient_noise_scale(problem_or_linearization: Problem | Linearization) -> float:
    """tr Sigma / |g|^2 at initialization: the batch size at which noise and gradient are equally large.

    From the kernel alone: |g_i|^2 = r_i^T K_ii r_i and |g|^2 = r^T K r / n^2, r the output gradients; any loss.
    Cost: one product d^2.
    Source: McCandlish et al., arXiv:1812.06162 (there B_simple).
    """
    linearization = as_linearization(problem_or_linearization)
    problem = linearization.problem
    n, c = problem.n_train, problem.n_outputs
    gradient = problem.criterion.gradient(linearization.outputs, linearization.targets)
    blocks = linearization.operator.diagonal_blocks(c)
    _refuse_zero(not blocks.any())
    each = torch.einsum("ia,iab,ib->", gradient, blocks, gradient) / n
    mean = gradient.flatten() @ (linearization.kernel @ gradient.flatten()) / n**2
    return float((each - mean) / mean)


def _refuse_zero(is_zero: bool) -> None:
    if is_zero:
        received = "zero: the outputs do not depend on the weights at initialization (dead units?)"
        raise ValueError(complaint("the kernel", "different from zero where scales are asked for", received))
