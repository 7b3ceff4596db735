"""One reduced prediction: exact first steps, a model that is refined until it is good enough, the outputs' laws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.moments.modes import modes_of
from sgdsde.dynamics.moments.reduced.covariance import RECORDS, reduced_covariance, reduced_states
from sgdsde.dynamics.moments.reduced.first_steps import FirstSteps
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.momentum_model import MomentumModel
from sgdsde.dynamics.moments.reduced.momentum_pairs import MomentumSpace, MomentumStep
from sgdsde.dynamics.moments.reduced.momentum_system import MomentumStart, MomentumSystem, mean_with_buffer
from sgdsde.dynamics.moments.reduced.resolvent import FINEST_SOLVE
from sgdsde.dynamics.moments.reduced.schedule import representative, segments_between, times_and_factors
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, Segment, mean_at
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

SAFETY = 2.0
"""Without it the estimate was below the true error in 2 of 300 random problems, by 1.5 times at most."""

SAFETY_OF_BULK = 3.0
"""Further factor where a bulk drives the modes, which resolvents do not see: without it 0.6 times the true error."""

SMALLEST = 1e-30
"""Loss, in units of the first, below which errors are in units of this."""

AFFORDED = 10
"""Steps of the plain recursion, in units of the products spent, that are made where the estimate stays too large."""

RELATIVE_DOWN_TO = 1e-4
"""The tolerance holds while the loss is above this share of its start."""

SOLVES = 3.0
"""Relative tolerance of every solve, in units of that of the loss: what solves leave enters squared."""

TIGHTER_WITH_MOMENTUM = 0.1
"""Factor of the tolerance of solves at every refinement: oblique projections amplify what solves leave."""

LEFT_BY_SOLVES = 0.02
"""Relative error of a loss in units of the tolerance of every solve: five times the largest seen."""

DENSITIES = (5.0, 7.0, 10.0)
"""Poles a decade at tolerance 1e-4, refined until the estimate is below it; fewer for looser ones."""


class ReducedModelWarning(UserWarning):
    """The reduced model's estimated error exceeds the tolerance; the message holds the estimate."""


class ReducedLaws(Iterator[OutputLaw]):
    """The laws of a prediction, and how they were obtained.

    Attributes:
        used: in words, the dynamics that was used in the end. estimated_error: relative, of the expected training loss,
            [T]; None where the plain recursion was used. Over shuffled epochs complete once all laws have been read.
    """

    def __init__(self, laws: Iterator[OutputLaw], used: str, estimated_error: Tensor | None = None) -> None:
        self._laws, self.used, self.estimated_error = laws, used, estimated_error

    def __next__(self) -> OutputLaw:
        return next(self._laws)


class TooInaccurateError(Exception):
    """The estimate stays above the tolerance, and the plain recursion can be afforded."""


class ReducedPrediction:
    """One prediction: exact first steps, the reduced model, its error."""

    def __init__(self, linearization: Linearization, sgd: SGD, record: Sequence[int], tolerance: float) -> None:
        self._modes, self._sgd, self._record, self._tolerance = modes_of(linearization), sgd, record, tolerance
        self._exact = FirstSteps.of(self._modes, sgd, record, tolerance)
        self._late = [k for k in record if k >= self._exact.first]
        self._segments = segments_between(sgd, self._modes.n_train, self._exact.begin, record[-1])
        if any(segment.coefficients.lr * sgd.weight_decay >= 1 for segment in self._segments):
            raise TooInaccurateError("lr * weight_decay of 1 or more")
        mean, core, bulk = self._exact.mean, self._exact.core, self._exact.bulk
        self._none = torch.zeros_like(core)
        time = sum(segment.length * segment.coefficients.lr for segment in self._segments) / (1 - sgd.momentum)
        self._start = ReducedStart.of(self._modes, sgd, mean, core, time=time, bulk=bulk)
        buffer, moving = self._exact.buffer, self._start.moving
        self._buffer = None if buffer is None else MomentumStart.of(*buffer, moving)
        self._is_certain = (
            all(segment.coefficients.noise == 0 for segment in self._segments)
            and sgd.label_noise_std == 0
            and self._exact.is_certain
        )

    def laws(self, progress: Progress) -> ReducedLaws:
        if self._is_certain:
            used = f"ReducedMoments(tolerance={self._tolerance:g}): no noise, the mean exactly"
            return ReducedLaws(self._certain_laws(), used, torch.zeros(len(self._record), dtype=torch.float64))
        settings = representative(self._segments)
        if not settings or self._start.nothing_moves:
            raise TooInaccurateError("nothing moves over these steps")
        model = self._model(settings)
        ticks = ticker(progress, 1, "reduced moments")
        system, states, means, errors = self._refined(model)
        ticks.update(1)
        ticks.close()
        used = f"ReducedMoments(tolerance={self._tolerance:g}): {len(system.start)} directions"
        early = torch.zeros(len(self._exact.laws), dtype=torch.float64)
        return ReducedLaws(self._all_laws(system, states, means), used, torch.cat([early, errors.cpu().double()]))

    def _model(self, settings: Sequence[Segment]) -> ReducedModel | MomentumModel:
        sources, n_steps = self._start.sources, self._record[-1]
        if self._buffer is None:
            return ReducedModel(sources, settings, n_steps)
        (setting,) = settings
        step = MomentumStep.of(self._sgd, setting.coefficients.lr, setting.coefficients.noise, sources.space.drift)
        space = MomentumSpace(sources.space, step)
        start, mean = self._buffer.scaled(sources, step.lr)
        return MomentumModel(space, sources, start, mean, setting.batch_size, n_steps)

    def _certain_laws(self) -> Iterator[OutputLaw]:
        yield from self._exact.laws
        sources = self._start.sources
        late = [k - self._exact.begin for k in self._late]
        drift = sources.space.drift
        if self._buffer is None:
            means = mean_at(self._segments, late, drift=drift, mean=sources.mean, offset=sources.offset)
        else:
            step = MomentumStep.of(self._sgd, self._segments[0].coefficients.lr, 0.0, drift)
            means = mean_with_buffer(step.matrices, self._buffer.scaled(sources, step.lr)[1], late)
        times, factors = self._times_and_factors()
        for k, at in enumerate(self._late):
            mean = self._start.all_modes(means[k])
            yield self._modes.law(at, times[k], mean, self._none, weight_factor=factors[k])

    def _refined(
        self, model: ReducedModel | MomentumModel
    ) -> tuple[ReducedSystem | MomentumSystem, Tensor, Tensor, Tensor]:
        """Poles are added until the estimate is below the tolerance."""
        late = [k - self._exact.begin for k in self._late]
        sparser = min(1.0, (math.log10(self._tolerance) / -4))
        for attempt, density in enumerate(DENSITIES):
            tighter = DENSITIES[0] / density if self._buffer is None else TIGHTER_WITH_MOMENTUM**attempt
            solved = min(1e-2, max(FINEST_SOLVE, SOLVES * self._tolerance * tighter))
            system = model.build(max(2.0, density * sparser), solved)
            states, means = system.run(self._segments, late)
            errors, relevant = self._errors(model, states, late)
            errors = errors + LEFT_BY_SOLVES * solved
            worst = float(errors[relevant].max()) if bool(relevant.any()) else 0.0
            if worst <= self._tolerance:
                return system, states, means, errors
        if self._record[-1] <= AFFORDED * model.applications:
            raise TooInaccurateError(f"an estimated error of {worst:.1g}")
        warnings.warn(
            f"the reduced model's estimated error is {worst:.1g}, above tolerance={self._tolerance:g}; raise the "
            "tolerance, or use MomentRecursion()",
            ReducedModelWarning,
            stacklevel=5,
        )
        return system, states, means, errors

    def _errors(
        self, model: ReducedModel | MomentumModel, states: Tensor, late: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Relative errors that grow with the step, [T], and where the loss is still large enough to matter."""
        fixed = self._start.sources.fixed
        floor = 0.0 if fixed is None else float(fixed.square().sum())
        loss = states @ model.system.loss + floor
        begin = self._modes.residual(self._modes.start).square().sum()
        errors = torch.zeros_like(loss)
        for system in model.coarser():
            other = system.run(self._segments, late)[0] @ system.loss + floor
            errors = torch.maximum(errors, (other - loss).abs() / loss.abs().clamp_min(SMALLEST * begin))
        errors = torch.maximum(errors, self._missed(model.system, floor))
        slowest = (
            min(s.coefficients.lr for s in self._segments if s.coefficients.lr > 0) * self._start.sources.space.drift[0]
        )
        lasting = 40 / float(slowest)  # what rounding does to a power of a rate is gone when the power is
        rounding = torch.finfo(loss.dtype).eps * torch.tensor(late).clamp_max(int(lasting)).to(loss)
        safety = SAFETY * (1.0 if self._start.sources.bulk is None else SAFETY_OF_BULK)
        return safety * errors.cummax(0).values + rounding, loss > RELATIVE_DOWN_TO * begin

    def _missed(self, system: ReducedSystem | MomentumSystem, floor: float) -> Tensor:
        """The largest relative error at steps that the recursion has made too."""
        steps, squares = self._exact.checked
        if not steps:
            return squares.new_zeros(())
        found = system.run(self._segments, steps)[0] @ system.loss + floor
        return ((found - squares).abs() / squares).max()

    def _all_laws(self, system: ReducedSystem | MomentumSystem, states: Tensor, means: Tensor) -> Iterator[OutputLaw]:
        yield from self._exact.laws
        times, factors = self._times_and_factors()
        for a in range(0, len(self._late), RECORDS):
            found = reduced_states(self._start, system, states[a : a + RECORDS], means[a : a + RECORDS])
            for k, state in enumerate(found, a):
                law = self._modes.law(self._late[k], times[k], state.whole_mean(), self._none, weight_factor=factors[k])
                yield replace(
                    law,
                    covariance=reduced_covariance(law.covariance, state, of_training=True),
                    test_covariance=reduced_covariance(law.test_covariance, state, of_training=False),
                )

    def _times_and_factors(self) -> tuple[list[float], list[float]]:
        """t_k and g_k of theta = g theta_0 + J^T w."""
        first = segments_between(self._sgd, self._modes.n_train, 0, self._exact.begin)
        return times_and_factors([*first, *self._segments], self._late, decay=self._sgd.weight_decay)
