"""A prediction under way: mean path, directions of the noise and its covariance, from refresh to refresh."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sgdsde._types import Params
from sgdsde.dynamics.mean_path import MeanPath
from sgdsde.dynamics.moments.feature_state import Fluctuation
from sgdsde.dynamics.moving_kernel.epochs import EpochFluctuation
from sgdsde.dynamics.moving_kernel.kernel_refresh import Margin, Refresh
from sgdsde.dynamics.moving_kernel.noise_induced_drift import NoiseCorrection, NoiseFeedback, effect_of_noise
from sgdsde.dynamics.moving_kernel.weight_subspace import Features, WeightSubspace, kernel_distance
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan

GROWTH = 2.0
"""Of the interval between refreshes, at most."""

SHARE_OF_RUN = 1 / 3
"""Of the steps so far that an interval may take: the effect of the noise changes with the loss even where the kernel
stays."""

FLICKER = 0.7
"""Of the drift over an interval: a shorter one that keeps more than this is not worth its refresh."""


@dataclass(frozen=True)
class Options:
    """What the caller decides: see ``MovingKernel``."""

    tolerance: float
    first_interval: int
    feedback: NoiseFeedback | None
    neglected: float
    epoch_starts: int


@dataclass(frozen=True, eq=False)
class Expected:
    """Features and mean outputs [n + m, c] at one step, the noise's effect on them included; correction of the mean."""

    features: Features
    outputs: Tensor
    correction: Params | None


class PredictionRun:
    """The state at one step; ``interval`` goes from one refresh of the kernel to the next."""

    def __init__(self, words: Options, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        problem = linearization.problem
        self.step, self._words, self._times = 0, words, plan.times
        self._path = MeanPath.start(problem, sgd, plan)
        self._directions = WeightSubspace.leading(linearization, neglected=words.neglected)
        self._features = self._initial = self._directions.features(problem.params)
        dtype = linearization.kernel.dtype
        size = len(self._directions)
        self._fluctuation = Fluctuation(problem, sgd, plan, size=size, dtype=dtype)
        if sgd.sampling == "shuffled":
            starts = words.epoch_starts
            self._fluctuation = EpochFluctuation(problem, sgd, plan, size=size, dtype=dtype, most_starts=starts)
        self._effect, self._wish = NoiseCorrection(), words.first_interval
        self._gram = self._features.train.mT @ self._features.train
        self._margin = Margin(sgd, plan)

    def interval(self, n_steps: int, wanted: set[int]) -> Iterator[OutputLaw | Refresh]:
        """A refresh, then the laws at the wanted steps up to the next refresh or ``n_steps``."""
        refresh, later = self._refresh(n_steps)
        yield refresh
        first = self._features
        for j in range(refresh.interval):
            self._features = first.toward(later, j / refresh.interval)
            expected = self._expected()
            if self.step in wanted:
                yield self._law(expected)
            self._advance(expected)
        self._features = later
        settled = 0.9 * self._words.tolerance / max(refresh.drift, 1e-12)
        longer = max(refresh.interval + 1, int(refresh.interval * min(GROWTH, settled)))
        self._wish = max(1, min(longer, int(self.step * SHARE_OF_RUN)))

    def law(self) -> OutputLaw:
        """The law of all outputs now."""
        return self._law(self._expected())

    def _law(self, expected: Expected) -> OutputLaw:
        time_ = float(self._times[self.step])
        return self._fluctuation.law(self.step, time_, expected.outputs, expected.features)

    def _refresh(self, n_steps: int) -> tuple[Refresh, Features]:
        started = time.perf_counter()
        self._fluctuation.check_finite(self.step)
        if self.step:
            turned = self._directions.turned(self._path.params, self._features, self._fluctuation.weights)
            self._fluctuation.turn(turned.overlap(self._directions))
            self._directions, self._features = turned, turned.features(self._path.params)
        self._update_noise_correction()
        interval, later, drift = self._reach(n_steps)
        expected = self._expected()
        moments = self._fluctuation.moments(expected.features, expected.outputs)
        refresh = Refresh(
            step=self.step,
            interval=interval,
            drift=drift,
            drift_from_start=kernel_distance(self._features, self._initial),
            margin=self._margin.at(self.step, expected.features, moments),
            n_directions=len(self._directions),
            seconds=time.perf_counter() - started,
        )
        return refresh, later

    def _update_noise_correction(self) -> None:
        feedback = self._words.feedback
        self._gram = self._features.train.mT @ self._features.train
        size = self._fluctuation.output_variance(self._gram)
        if feedback is None or not size > 0:
            return
        self._effect = effect_of_noise(
            feedback, self._path, self._directions, self._features, self._fluctuation.weights, size=size, step=self.step
        )

    def _reach(self, n_steps: int) -> tuple[int, Features, float]:
        """The longest interval, at most the one wished for, over which the kernel stays within the tolerance.

        A kernel that flickers (ReLUs that switch) is as far away after a short interval as after a long one: where
        shrinking gains little, the longer interval stands.
        """
        tolerance = self._words.tolerance
        length, later, drift = self._ahead(min(self._wish, n_steps - self.step))
        while drift > tolerance and length > 1:
            shorter = self._ahead(max(1, int(length * max(0.25, 0.8 * tolerance / drift))))
            if shorter[2] > FLICKER * drift and drift <= 2 * tolerance:
                break
            length, later, drift = shorter
        return length, later, drift

    def _ahead(self, length: int) -> tuple[int, Features, float]:
        """The interval, the features at its end and how far the kernel is then."""
        path = self._path
        for k in range(self.step, self.step + length):
            path = path.advanced(k, correction=self._effect.gradient)
        path.outputs(self.step + length)
        later = self._directions.features(path.params)
        return length, later, kernel_distance(later, self._features)

    def _expected(self) -> Expected:
        effect, outputs = self._effect, self._path.outputs(self.step)
        share = effect.share(self._fluctuation.output_variance(self._gram)) if effect.size else 0.0
        features = self._features if effect.features is None else self._features.plus(effect.features, share)
        if effect.outputs is not None:
            outputs = outputs + share * effect.outputs
        correction = None
        if effect.gradient is not None:
            correction = {name: share * value for name, value in effect.gradient.items()}
        return Expected(features, outputs, correction)

    def _advance(self, expected: Expected) -> None:
        moments = self._fluctuation.moments(expected.features, expected.outputs)
        gradient = self._fluctuation.output_gradient(self.step, moments, expected.features)
        self._path = self._path.advanced(self.step, gradient, expected.correction)
        self._fluctuation.advance(self.step, expected.features, moments)
        self.step += 1
