"""The numbers of a diagnosis, each with its formula."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from sgdsde._progress import covered
from sgdsde._types import Progress
from sgdsde.dynamics import GradientDescent, MomentEquations
from sgdsde.dynamics.dynamics import Dynamics
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.noise.ito import second_derivative, weight_direction
from sgdsde.prediction import evolve
from sgdsde.sgd import SGD
from sgdsde.stability import gradient_noise_scale
from sgdsde.stability.limits import limit_at_noise
from sgdsde.stability.local import local_map

SDE_RTOL = 1e-4
"""Of the SDE's moments: far below any threshold."""


def limit_ratio(linearization: Linearization, sgd: SGD, n_steps: int) -> float:
    """lr over the mean-square limit: the largest learning rate of a schedule, the limit of its smallest batch.

    Shuffled epochs are held against fresh batches without replacement, losses other than squared error by their
    quadratic at the linearization's outputs. NaN where that is no minimum.
    """
    iid = sgd
    if sgd.sampling == "shuffled":
        iid = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
    plan = iid.plan(linearization.problem.n_train, n_steps)
    noise = plan.noise_factor(int(plan.batch_size.argmin()))
    words: dict[str, Any] = {name: getattr(sgd, name) for name in ("momentum", "dampening", "nesterov", "weight_decay")}
    try:
        limit = limit_at_noise(linearization, noise, **words)
    except ValueError:  # no positive curvature
        return math.nan
    return float(plan.lr.max()) / limit if limit > 0 else math.inf  # dampening above 1 has a limit of zero


def laziness(linearization: Linearization) -> float:
    """|r| |D^2 f[v, v]| / |J v|^2 with v = J^T r / |J^T r|, the direction of the first step, r = f - y.

    The criterion of lazy training along the one direction that training takes first: the change of J over the way that
    closes the residual, relative to J. For other losses than squared error r is the loss's gradient.
    """
    problem, functional = linearization.problem, linearization.problem.functional
    outputs = linearization.outputs.to(functional.dtype)
    residual = problem.criterion.gradient(outputs, problem.y_train)
    if isinstance(problem.criterion, SquaredError):
        residual = residual / problem.criterion.curvature
    direction = weight_direction(functional, problem.x_train, residual)
    length = math.sqrt(sum(float(part.double().square().sum()) for part in direction.values()))
    if length == 0:
        return 0.0
    unit = {name: part / length for name, part in direction.items()}
    bend = second_derivative(functional, problem.x_train, unit)
    slope = linearization.kernel @ residual.flatten().to(linearization.outputs) / length
    return float(residual.double().norm() * bend.double().norm() / slope.double().norm() ** 2)


def noise_ratio(linearization: Linearization, sgd: SGD) -> float:
    """phi tr Sigma / (B |g|^2): the variance of the first minibatch gradient over its squared mean."""
    problem = linearization.problem
    factor = sgd.plan(problem.n_train, 1).noise_factor(0)
    return factor * gradient_noise_scale(linearization) if factor else 0.0


def expected_losses(
    dynamics: Dynamics, linearization: Linearization, sgd: SGD, record: list[int], *, progress: Progress = covered
) -> Tensor:
    """Mean training losses [T], without the warning of ``predict``."""
    return evolve(dynamics, linearization, sgd, record, progress=progress).train_loss.mean


def noise_share(losses: Tensor, linearization: Linearization, sgd: SGD, record: list[int]) -> float:
    """The largest share of the expected loss that gradient descent would not have; 1 where both are infinite."""
    descent = expected_losses(GradientDescent(), linearization, sgd, record)
    return float((1 - descent / losses).nan_to_num(nan=1.0).clamp(0, 1).max())


def sde_error(losses: Tensor, linearization: Linearization, sgd: SGD, record: list[int]) -> float:
    """Largest relative difference of the expected loss between SGD and its SDE, both on the linearized model.

    NaN for shuffled epochs, which have none. Losses other than squared error: lr h / 2 with h the largest curvature at
    the initial outputs, the relative error of the rate of the fastest mode.
    """
    if sgd.sampling == "shuffled":
        return math.nan
    if isinstance(linearization.problem.criterion, SquaredError):
        flow = expected_losses(MomentEquations(order=1, rtol=SDE_RTOL), linearization, sgd, record)
        return float((flow / losses - 1).abs().max())
    try:
        fastest = float(local_map(linearization).drift.max())
    except ValueError:  # no positive curvature
        return math.nan
    return float(sgd.plan(linearization.problem.n_train, record[-1]).lr.max()) * fastest / 2
