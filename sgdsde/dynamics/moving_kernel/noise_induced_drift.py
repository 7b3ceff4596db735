"""How the noise acts back on the mean: expectations over the fluctuation of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from sgdsde._checks import whole_number
from sgdsde._functional import value_and_gradient, vectorize
from sgdsde._streams import torch_stream
from sgdsde._types import Params
from sgdsde.dynamics.moments.feature_state import Features
from sgdsde.dynamics.moving_kernel.diagonal_tail import DrawnTail
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace
from sgdsde.problem import Problem

NETWORKS_AT_ONCE = 16
"""Sets of weights of one pass."""

KERNEL_DIRECTIONS = 32
"""Directions, those of the largest variance, along which the features are averaged."""


@dataclass(frozen=True)
class NoiseFeedback:
    """The effect of the noise on the mean, from pairs of networks at both sides of the mean weights.

    With delta ~ N(0, Cov) the fluctuation of the weights, E h = (1/2P) sum_p [h(mean + delta_p) + h(mean - delta_p)]
    replaces h(mean), with P draws whose second moments are exact in the P leading directions.

    Args:
        n_draws: P.
        gradient: the mean path follows E of the gradient (third derivatives of the loss, the Ito term among them).
        outputs: the mean outputs are E f (the Ito term of the outputs themselves).
        n_kernel_draws: the features Phi, and with them the kernel and the gradient noise, are E over this many of the
            draws, along the 32 directions that fluctuate most; 0 takes those of the mean path.
    Exactness: up to the error of sampling; the distribution of the weights is taken as Gaussian.
    Cost: at each refresh of the kernel 2 n_draws full-batch gradients, and 64 n_kernel_draws products with J.
    """

    n_draws: int = 8
    gradient: bool = True
    outputs: bool = True
    n_kernel_draws: int = 0

    def __post_init__(self) -> None:
        whole_number("n_draws", self.n_draws, minimum=1)
        whole_number("n_kernel_draws", self.n_kernel_draws)


@dataclass(frozen=True, eq=False)
class NoiseCorrection:
    """The contribution of the noise at one refresh, scaled in between with the variance ``size`` of the outputs.

    Attributes:
        gradient: of the weights, by name, or None. outputs: [n + m, c], or None. features: change of Phi, or None.
    """

    size: float = 0.0
    gradient: Params | None = None
    outputs: Tensor | None = None
    features: Features | None = None

    def share(self, size: float) -> float:
        return size / self.size if self.size > 0 else 0.0

    def weighted(self, share: float) -> Params | None:
        """That share of the change of the gradient."""
        return None if self.gradient is None else {name: share * value for name, value in self.gradient.items()}


def draws(covariance: Tensor, count: int) -> Tensor:
    """a_p [count, r], of which +-a_p have this covariance in its ``count`` leading directions, and about it beyond.

    Blocks of random orthogonal matrices; the same at every call.
    """
    values, vectors = torch.linalg.eigh(covariance)
    stream = torch_stream(0, "noise feedback", 0, torch.device("cpu"))
    blocks = [
        torch.linalg.qr(torch.randn(count, count, generator=stream, dtype=torch.float64))[0] * math.sqrt(count)
        for _ in range(-(-len(values) // count))
    ]
    normal = torch.cat(blocks, dim=1)[:, : len(values)].to(covariance)
    reference = torch.randn(len(values), generator=stream, dtype=torch.float64).to(covariance)
    vectors = vectors * (reference @ vectors).sign()  # eigenvectors come with any sign
    return (normal * values.flip(0).clamp_min(0).sqrt()) @ vectors.flip(1).mT


@dataclass(frozen=True, eq=False)
class Surroundings:
    """A path and the weights around it.

    Attributes:
        features: of the directions. covariance: of the coordinates along them, [r, r]. beyond: as many draws
            of the deviation outside of them, or None.
    """

    path: MeanPath
    directions: WeightSubspace
    features: Features
    covariance: Tensor
    beyond: DrawnTail | None = None

    def draws(self, count: int) -> tuple[Params, Tensor]:
        """Deviations of the weights, [P, *shape] by parameter, and the linear moves of the training outputs."""
        coordinates = draws(self.covariance, count)
        rows, moves = self.directions.rows_of(coordinates), coordinates @ self.features.train.mT
        if self.beyond is not None:
            rows, moves = rows + self.beyond.rows, moves + self.beyond.moves
        return self.directions.by_parameter(rows), moves


def noise_correction(feedback: NoiseFeedback, around: Surroundings, *, size: float, step: int) -> NoiseCorrection:
    """The effect of a fluctuation around the path at ``step``."""
    path = around.path
    deltas, moves = around.draws(feedback.n_draws)
    outputs_of, gradient_of = _evaluations(path.problem)
    samples = SymmetricSamples(path.params, deltas, feedback.n_draws)
    gradient, outputs, change, mean_outputs = None, None, None, path.outputs(step)
    if feedback.outputs:
        outputs = samples.mean(outputs_of)[OUTPUTS] - mean_outputs
    if feedback.gradient:
        expected = samples.mean(gradient_of)
        linear = _linear_part(path, moves, mean_outputs + (0 if outputs is None else outputs))
        gradient = {name: value - linear[name] for name, value in expected.items()}
    if feedback.n_kernel_draws:
        change = _features_change(feedback.n_kernel_draws, around, deltas)
    return NoiseCorrection(size, gradient, outputs, change)


@dataclass(frozen=True, eq=False)
class SymmetricSamples:
    """Averages over the networks at both sides of the mean weights."""

    params: Params
    deltas: Params
    count: int

    def mean(self, evaluate: Callable[[Params], Params]) -> Params:
        """Mean of a function of many weights [k, ...]."""
        total: Params = {}
        for start in range(0, self.count, NETWORKS_AT_ONCE):
            some = slice(start, start + NETWORKS_AT_ONCE)
            for sign in (1, -1):
                moved = {name: value + sign * self.deltas[name][some] for name, value in self.params.items()}
                for name, value in evaluate(moved).items():
                    total[name] = total.get(name, 0) + value.sum(0) / (2 * self.count)
        return total


OUTPUTS = "outputs"


def _evaluations(problem: Problem) -> tuple[Callable[[Params], Params], Callable[[Params], Params]]:
    """Outputs [k, n + m, c], under their name, and full-batch gradients [k, ...] of many weights."""
    x = problem.x_train if problem.x_test is None else torch.cat([problem.x_train, problem.x_test])

    def one_loss(params: Params) -> Tensor:
        return problem.criterion.mean(problem.forward(params, problem.x_train), problem.y_train)

    def one_output(params: Params) -> Params:
        with torch.no_grad():
            return {OUTPUTS: problem.forward(params, x)}

    if problem.functional.vectorizes:
        return vectorize(one_output), vectorize(grad(one_loss))
    return _looped(one_output), _looped(lambda params: value_and_gradient(one_loss, params)[1])


def _looped(function: Callable[[Params], Params]) -> Callable[[Params], Params]:
    def call(params: Params) -> Params:
        count = len(next(iter(params.values())))
        results = [function({name: value[i] for name, value in params.items()}) for i in range(count)]
        return {name: torch.stack([result[name] for result in results]) for name in results[0]}

    return call


def _linear_part(path: MeanPath, moves: Tensor, outputs: Tensor) -> Params:
    """The same mean of gradients for a model linear in its weights, with the Jacobian of the path and these outputs."""
    problem, criterion = path.problem, path.problem.criterion
    outputs = outputs[: problem.n_train]
    moves = moves.view(-1, problem.n_train, problem.n_outputs).to(outputs)
    above, below = (criterion.gradient(outputs + sign * moves, problem.y_train) for sign in (1, -1))
    return path.gradient((above.mean(0) + below.mean(0)) / 2)


def _features_change(count: int, around: Surroundings, deltas: Params) -> Features:
    """Mean of Phi over some of the networks less Phi, along the directions that fluctuate most."""
    path, directions, features = around.path, around.directions, around.features
    leading = torch.linalg.eigh(around.covariance).eigenvectors[:, -KERNEL_DIRECTIONS:]
    rows = leading.mT.to(directions.rows) @ directions.rows
    count = min(count, len(next(iter(deltas.values()))))
    train = -features.train @ leading
    at_mean = directions.test_features(path.params)
    test = None if at_mean is None else -at_mean @ leading
    for i in range(count):
        for sign in (1, -1):
            moved = {name: value + sign * deltas[name][i] for name, value in path.params.items()}
            found = directions.features_along(moved, rows)
            train += found.train / (2 * count)
            if test is not None:
                assert found.test is not None
                test += found.test / (2 * count)
    return Features(train @ leading.mT, None if test is None else test @ leading.mT)
