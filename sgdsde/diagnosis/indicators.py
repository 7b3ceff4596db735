"""Two more numbers of a diagnosis, each with its formula."""

from __future__ import annotations

import math

from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.noise.ito import second_derivative, weight_direction
from sgdsde.sgd import SGD
from sgdsde.stability.local import local_map


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


def sde_error(linearization: Linearization, sgd: SGD, n_steps: int) -> float:
    """lr h / 2 with h the largest curvature at the initial outputs: how far SGD is from its SDE.

    The relative error of the rate of the fastest mode, lr h + (lr h)^2 / 2 for -log(1 - lr h). NaN for shuffled epochs,
    which have no SDE, and where the loss has no positive curvature.
    """
    if sgd.sampling == "shuffled":
        return math.nan
    try:
        fastest = float(local_map(linearization).drift.max())
    except ValueError:  # no positive curvature
        return math.nan
    return float(sgd.plan(linearization.problem.n_train, n_steps).lr.max()) * fastest / 2
