"""A prediction under way: mean path, directions of the noise and its covariance, from refresh to refresh."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sgdsde.dynamics.moments.epochs import EpochFluctuation
from sgdsde.dynamics.moments.feature_state import Expectations, Features, Fluctuation, IndependentFluctuation
from sgdsde.dynamics.moments.state import MomentState
from sgdsde.dynamics.moving_kernel.diagonal_tail import DiagonalTail, TailBlocks
from sgdsde.dynamics.moving_kernel.initial_directions import InitialDirections
from sgdsde.dynamics.moving_kernel.kernel_refresh import Margin, Refresh
from sgdsde.dynamics.moving_kernel.mean_path import ForwardPass, MeanPath
from sgdsde.dynamics.moving_kernel.noise_induced_drift import (
    NoiseCorrection,
    NoiseFeedback,
    Surroundings,
    noise_correction,
)
from sgdsde.dynamics.moving_kernel.weight_subspace import WeightSubspace, kernel_distance
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step

GROWTH = 2.0
"""Growth of the interval between refreshes, at most."""

SHARE_OF_RUN = 1 / 2
"""Share of the steps so far that an interval may take: the effect of the noise changes with the loss even where the
kernel stays."""

FLICKER = 0.7
"""Share of the drift over an interval: a shorter one that keeps more than this is not worth its refresh."""


STRIDE = 0.25
"""Length of a step of the look ahead, in units of the inverse of the sharpness."""


@dataclass(frozen=True)
class Options:
    """The options of a prediction, see ``MovingKernel``."""

    tolerance: float
    first_interval: int
    feedback: NoiseFeedback | None
    rank: int
    epoch_starts: int


@dataclass(frozen=True, eq=False)
class Expected:
    """Features of the training outputs and their means [n, c] at one step, the noise's effect on them included.

    Attributes:
        forward: the pass that gave them. share: of the effect of the noise at the last refresh.
    """

    features: Features
    outputs: Tensor
    forward: ForwardPass
    share: float


@dataclass(frozen=True, eq=False)
class Interval:
    """From one refresh of the kernel to the next: features go from ``first`` to ``last`` on a straight line.

    Attributes:
        test_ends: makes those of the test outputs at both ends; asked for where a law is.
    """

    start: int
    length: int
    first: Features
    last: Features
    drift: float
    make_test_ends: Callable[[], tuple[Tensor, Tensor] | None] | None = None

    @cached_property
    def test_ends(self) -> tuple[Tensor, Tensor] | None:
        return None if self.make_test_ends is None else self.make_test_ends()

    def at(self, step: int, *, with_test: bool = True) -> Features:
        share = (step - self.start) / self.length
        ends = self.test_ends if with_test else None
        test = None if ends is None else torch.lerp(*ends, share)
        return Features(torch.lerp(self.first.train, self.last.train, share), test)

    @property
    def stop(self) -> int:
        return self.start + self.length


class PredictionRun(MomentState):
    """The state at one step; where the last interval has ended, looking at it or going on refreshes the kernel."""

    def __init__(
        self,
        options: Options,
        linearization: Linearization,
        sgd: SGD,
        plan: StepPlan,
        on_refresh: Callable[[Refresh], None],
    ) -> None:
        problem = linearization.problem
        self._options, self._n_steps, self._on_refresh = options, len(plan), on_refresh
        self._sgd, self._plan, self._stride = sgd, plan, 1
        self._path = MeanPath.start(problem, sgd, plan)
        found = InitialDirections.of(linearization, options.rank)
        self._subspace = WeightSubspace.leading(linearization, found, rank=options.rank)
        self._tail = _tail(linearization, found, sgd, leading=len(self._subspace))
        self._features = self._initial = self._subspace.features(problem.params, with_test=False)
        self._fluctuation = _fluctuation(options, linearization, sgd, plan, size=len(self._subspace))
        self._correction, self._wish = NoiseCorrection(), options.first_interval
        self._interval: Interval | None = None
        self._variance_features = self._features  # of the last refresh: what the outputs' variance is measured with
        self._margin = Margin(sgd, plan)
        self._now: tuple[int, Expected] | None = None  # what the law and the step of one k share

    def law(self, step: int, time: float) -> OutputLaw:
        expected, effect = self._expected(step), self._correction
        features = self._features
        if self._interval is not None and not self._fluctuation.is_certain:
            features = self._interval.at(step)
        if effect.features is not None:
            features = features.plus(effect.features, expected.share)
        train, test = self._fluctuation.covariances(features)
        if self._tail is not None and train is not None:
            train, test = self._tail.joined(train, test)
        n, dtype = self._path.problem.n_train, features.train.dtype
        mean, test_mean = expected.outputs.to(dtype), self._path.test_outputs(step)
        if test_mean is None:
            return OutputLaw(step, time, mean, train)
        if effect.outputs is not None:
            test_mean = test_mean + expected.share * effect.outputs[n:]
        return OutputLaw(step, time, mean, train, test_mean=test_mean.to(dtype), test_covariance=test)

    def advance(self, k: int) -> None:
        expected = self._expected(k)
        seen = self._seen(expected)
        gradient = expected.forward.pull(self._fluctuation.output_gradient(k, seen))
        self._path = self._path.advanced(k, gradient, self._correction.weighted(expected.share))
        if self._tail is not None:
            step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
            self._tail.advance(step, seen, self._plan.noise_factor(k), self._fluctuation.label_variance(k))
        self._fluctuation.advance(k, seen)

    def _seen(self, expected: Expected) -> Expectations:
        extra = None if self._tail is None or self._fluctuation.is_certain else self._tail.blocks
        return self._fluctuation.expectations(expected.features, expected.outputs, extra)

    def _expected(self, step: int) -> Expected:
        if self._now is None or self._now[0] != step:
            self._now = step, self._expected_anew(step)
        return self._now[1]

    def _expected_anew(self, step: int) -> Expected:
        if step < self._n_steps and (self._interval is None or step == self._interval.stop):
            self._refresh(step)
        features = self._features if self._interval is None else self._interval.at(step, with_test=False)
        return self._with_noise(step, features)

    def _with_noise(self, step: int, features: Features) -> Expected:
        effect, forward = self._correction, self._path.forward_pass(step)
        outputs = forward.outputs
        share = effect.share(self._fluctuation.output_variance(self._variance_features)) if effect.size else 0.0
        if effect.features is not None:
            features = features.plus(effect.features, share)
        if effect.outputs is not None:
            outputs = outputs + share * effect.outputs[: len(outputs)]
        return Expected(features, outputs, forward, share)

    def _refresh(self, step: int) -> None:
        started = time.perf_counter()
        self._refuse_overflow(step)
        if self._interval is not None:
            self._settle(self._interval)
            self._turn()
        self._update_noise_correction(step)
        seen = self._seen(self._with_noise(step, self._features))
        self._stride = self._largest_stride(seen)
        interval = self._interval = self._reach(step)
        refresh = Refresh(
            step=step,
            interval=interval.length,
            drift=interval.drift,
            drift_from_start=kernel_distance(self._features, self._initial),
            margin=self._margin.at(step, seen),
            n_directions=len(self._subspace),
            seconds=time.perf_counter() - started,
        )
        self._on_refresh(refresh)

    def _refuse_overflow(self, step: int) -> None:
        if not self._fluctuation.is_finite():
            raise ValueError(
                f"the fluctuation around the mean path must stay finite, got NaN or infinity at step {step}; the "
                "learning rate is beyond the mean-square limit of the kernel there, use a smaller lr"
            )

    def _settle(self, ended: Interval) -> None:
        """Chooses the length of the next interval from the drift over the last."""
        self._features = ended.last
        settled = 0.9 * self._options.tolerance / max(ended.drift, 1e-12)
        longer = max(ended.length + 1, int(ended.length * min(GROWTH, settled)))
        self._wish = max(1, min(longer, int(ended.stop * SHARE_OF_RUN)))

    def _turn(self) -> None:
        """Goes over to the leading directions of the Jacobian here."""
        params = self._path.params
        turned = self._subspace.turned(params, self._features)
        self._fluctuation.turn(turned.overlap(self._subspace))
        self._subspace, self._features = turned, turned.features(params, with_test=False)
        trace = turned.trace(params)
        if self._tail is not None and trace is not None:
            self._tail.turn(trace - float(self._features.gram.trace()), turned, params)

    def _update_noise_correction(self, step: int) -> None:
        self._variance_features = self._features
        size = self._fluctuation.output_variance(self._features)
        feedback = self._options.feedback
        if feedback is not None and size > 0:
            beyond = None
            if self._tail is not None:
                beyond = self._tail.draws(feedback.n_draws, self._subspace, self._path.params)
            around = Surroundings(self._path, self._subspace, self._features, self._fluctuation.weights, beyond)
            self._correction = noise_correction(feedback, around, size=size, step=step)

    def _reach(self, step: int) -> Interval:
        """The longest interval, at most the one wished for, over which the kernel stays within the tolerance.

        A kernel that flickers (ReLUs that switch) is as far away after a short interval as after a long one: where
        shrinking gains little, the longer interval stands.
        """
        tolerance = self._options.tolerance
        found = self._ahead(step, min(self._wish, self._n_steps - step))
        while found.drift > tolerance and found.length > 1:
            shorter = self._ahead(step, max(1, int(found.length * max(0.25, 0.8 * tolerance / found.drift))))
            if shorter.drift > FLICKER * found.drift and found.drift <= 2 * tolerance:
                break
            found = shorter
        return found

    def _largest_stride(self, seen: Expectations) -> int:
        """Steps that the look ahead takes at once: full-batch descent by them is still far from its limit."""
        slope = seen.features.train.mT @ seen.weighted(seen.features.train)
        sharpness = float(torch.linalg.eigvalsh((slope + slope.mT) / 2)[-1]) / self._path.problem.n_train
        lr = float(self._plan.lr.max()) / (1 - self._sgd.momentum)
        return max(1, int(min(STRIDE / max(lr * sharpness, 1e-12), 1e6)))

    def _ahead(self, step: int, length: int) -> Interval:
        path, here = self._path, self._path
        n_strides = -(-length // self._stride)
        for i in range(n_strides):
            start, stop = (step + length * j // n_strides for j in (i, i + 1))
            path = path.advanced(start, correction=self._correction.gradient, count=stop - start)
        path.train_outputs(step + length)
        subspace, last = self._subspace, self._subspace.features(path.params, with_test=False)

        def test_ends() -> tuple[Tensor, Tensor] | None:
            first, last = (subspace.test_features(params) for params in (here.params, path.params))
            if first is None:
                return None
            assert last is not None
            return first, last

        return Interval(step, length, self._features, last, kernel_distance(last, self._features), test_ends)


def _fluctuation(options: Options, linearization: Linearization, sgd: SGD, plan: StepPlan, *, size: int) -> Fluctuation:
    problem, dtype = linearization.problem, linearization.kernel.dtype
    if sgd.sampling == "shuffled":
        return EpochFluctuation(problem, sgd, plan, size=size, dtype=dtype, most_starts=options.epoch_starts)
    return IndependentFluctuation(problem, sgd, plan, size=size, dtype=dtype)


def _tail(linearization: Linearization, found: InitialDirections, sgd: SGD, *, leading: int) -> DiagonalTail | None:
    """Of fresh batches; the anticorrelated noise of shuffled epochs hardly moves slow directions."""
    if sgd.sampling == "shuffled":
        return None
    blocks = TailBlocks.of(linearization, found, leading)
    return None if blocks is None else DiagonalTail(blocks, parts=2 if sgd.momentum else 1)
