"""The linearized run of the same batches as control variate of a real run."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._types import Progress
from sgdsde.dynamics import Dynamics, ReducedMoments
from sgdsde.ensemble import run_ensemble
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.measurement.estimate import MeanLoss, controlled_mean
from sgdsde.measurement.operations import SAMPLED_RUNS, has_exact_expectation
from sgdsde.measurement.runs import RealRuns, batch_seed, samples
from sgdsde.prediction import default_dynamics, evolve
from sgdsde.trajectory import Trajectory

EXPECTATION = 2**20
"""Number of the batch of runs whose seed the sampled expectation takes: no batch of real runs gets there."""


class LinearizedControl:
    """Linearized runs of the batches of real runs, and their expected losses.

    The expectation is that of the moment recursion under squared error and i.i.d. batches (its reduced form's own
    estimated error counts as a standard error), else the mean of independent linearized runs, with their error.
    """

    def __init__(self, runs: RealRuns, progress: Progress = None) -> None:
        self.runs = runs
        self.linearization: Linearization = as_linearization(runs.problem, sgd=runs.sgd, progress=progress)
        self._parts: list[Trajectory] = []
        self._known = self._expectation(progress)

    def mean(self, side: str) -> MeanLoss:
        """The controlled mean of all real runs so far."""
        self._parts += self.runs.linearized(self.linearization, len(self._parts))
        band = self._known.losses[side]
        return controlled_mean(
            samples(self.runs.parts, side),
            samples(self._parts, side),
            band.mean,
            self._error(band.standard_error, side),
        )

    def correlation(self, side: str) -> Tensor:
        """Correlation of real and linearized losses at every step, [T]; NaN without spread."""
        y, c = samples(self.runs.parts, side), samples(self._parts, side)
        y, c = y - y.mean(0), c - c.mean(0)
        return (y * c).sum(0) / (y.square().sum(0) * c.square().sum(0)).sqrt()

    def _error(self, sampled: Tensor, side: str) -> Tensor:
        estimated = self._known.estimated_error
        return sampled if estimated is None else torch.hypot(sampled, estimated * self._known.losses[side].mean)

    def _expectation(self, progress: Progress) -> Trajectory:
        runs = self.runs
        if not has_exact_expectation(runs.problem, runs.sgd):
            seed = batch_seed(runs.seed, EXPECTATION)
            return run_ensemble(
                self.linearization,
                runs.sgd,
                runs.n_steps,
                SAMPLED_RUNS,
                seed=seed,
                record=runs.record,
                memory=runs.memory,
                progress=progress,
            )
        theory: Dynamics = default_dynamics(runs.problem, runs.sgd)
        if ReducedMoments.is_cheaper(self.linearization, runs.sgd, runs.n_steps):
            theory = ReducedMoments()
        return evolve(theory, self.linearization, runs.sgd, runs.record, n_steps=runs.n_steps, progress=progress)
