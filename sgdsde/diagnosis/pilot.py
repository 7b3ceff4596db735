"""A few runs of the network and of its linearization on the same batches: the thermometer of a diagnosis."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sgdsde._progress import SharedBar
from sgdsde._types import Params
from sgdsde.diagnosis.linear_twin import twin_of
from sgdsde.diagnosis.sample import Sample
from sgdsde.ensemble import run_ensemble
from sgdsde.ensemble.batched_products import BatchedProducts
from sgdsde.ensemble.real import RealLearner
from sgdsde.linearization import Linearization, problem_of
from sgdsde.measurement import clock, plain_seconds
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability.sampled_path import sampled_path
from sgdsde.trajectory import Trajectory

SEED = 0x0D1A6
"""Added to the caller's seed: runs of ``run_ensemble`` with small seeds share no batches with the pilot's."""

PARTS = (0.25, 0.5, 1.0)
"""Of the training: where the kernel of a run is looked at."""

MANY, SOME, FEW = 16, 6, 3
"""Pairs of runs: of layers that are stepped in one product, small and large ones, and of networks that are not."""

SMALL_STEP = 4e-4
"""Seconds of a plain step below which its cost is mostly overhead."""


@dataclass(frozen=True, eq=False)
class Pilot:
    """What the pilot runs showed.

    Attributes:
        steps: recorded steps [T], the first of them 0. real, linear: training losses [R, T] of runs of the network and
            of the linearized model on the same batches; +inf from where a run has diverged.
        drifts: kernel drift of the sampled examples along one run of the network, by step.
        limit_ratios: lr over the mean-square limit there and at step 0, by step; NaN without a limit.
        run_seconds: of one plain run. batch_seconds: of the R runs of the network, stepped together.
    """

    steps: list[int]
    real: Tensor
    linear: Tensor
    drifts: dict[int, float]
    limit_ratios: dict[int, float]
    run_seconds: float
    batch_seconds: float

    @property
    def is_batched(self) -> bool:
        """Whether the runs of the network share products."""
        return len(self.real) != FEW

    @property
    def drift(self) -> float:
        """The largest."""
        return max(self.drifts.values())

    @property
    def limit_ratio(self) -> float:
        """The largest that is known; NaN where none is."""
        return max((ratio for ratio in self.limit_ratios.values() if not math.isnan(ratio)), default=math.nan)

    @property
    def n_diverged(self) -> int:
        """Runs of the network whose loss is not finite at the end."""
        return int((~torch.isfinite(self.real[:, -1])).sum())

    @cached_property
    def spread(self) -> float:
        """Standard deviation over runs relative to the mean, at the worst recorded step."""
        if self.n_diverged:
            return math.inf
        return float((self.real.std(0, correction=1) / self.real.mean(0).abs()).nan_to_num(nan=0.0).max())


def fly(
    problem_or_linearization: Problem | Linearization,
    sample: Sample,
    sgd: SGD,
    steps: list[int],
    *,
    seed: int,
    bar: SharedBar,
) -> Pilot:
    """The pilot runs, for about eight plain runs in all."""
    problem, n_steps = _without_test(problem_of(problem_or_linearization)), steps[-1]
    looked = sorted({max(1, round(part * n_steps)) for part in PARTS})
    run_seconds = plain_seconds(problem, sgd, n_steps)
    reached = dict(zip(looked, sampled_path(problem, sgd, looked, seed=seed, run=0)))
    drifts, ratios = _along(sample, sgd, n_steps, reached)
    twin = twin_of(_without_test_set(problem_or_linearization, problem))
    is_batched = isinstance(RealLearner(problem).stepper, BatchedProducts) and not isinstance(twin, Problem)
    pairs = FEW if not is_batched else MANY if run_seconds / n_steps <= SMALL_STEP else SOME
    begun = clock(problem.device)
    words: dict[str, Any] = {"seed": seed + SEED, "record": steps}
    real = run_ensemble(problem, sgd, n_steps, pairs, progress=bar.part("network"), **words)
    batch_seconds = clock(problem.device) - begun
    linear = run_ensemble(twin, sgd, n_steps, pairs, progress=bar.part("linearized model"), **words)
    return Pilot(steps, _samples(real), _samples(linear), drifts, ratios, run_seconds, batch_seconds)


def _along(
    sample: Sample, sgd: SGD, n_steps: int, reached: dict[int, Params]
) -> tuple[dict[int, float], dict[int, float]]:
    """Drift and share of the limit at the weights that a run took; nothing more is asked once it has diverged."""
    drifts, ratios = {}, {0: sample.limit_ratio(sgd, n_steps)}
    for step, params in reached.items():
        if not all(bool(value.isfinite().all()) for value in params.values()):
            drifts[step] = ratios[step] = math.inf
            break
        kernel = sample.kernel_at(params)
        drifts[step] = sample.drift(kernel)
        if step == n_steps:
            ratios[step] = sample.limit_ratio(sgd, n_steps, params, kernel)
    return drifts, ratios


def _samples(trajectory: Trajectory) -> Tensor:
    samples = trajectory.train_loss.samples
    assert samples is not None
    return samples


def _without_test(problem: Problem) -> Problem:
    return problem if problem.x_test is None else dataclasses.replace(problem, x_test=None, y_test=None)


def _without_test_set(given: Problem | Linearization, problem: Problem) -> Problem | Linearization:
    if isinstance(given, Problem):
        return problem
    return dataclasses.replace(given, problem=problem, cross_kernel=None, test_outputs=None, test_weight_outputs=None)
