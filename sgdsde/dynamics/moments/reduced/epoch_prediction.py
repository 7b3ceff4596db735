"""One prediction over shuffled epochs: sampled first epochs, then powers of a projected epoch map."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.moments.modes import modes_of
from sgdsde.dynamics.moments.reduced.covariance import RECORDS, ReducedState, reduced_covariance, spread_states
from sgdsde.dynamics.moments.reduced.epoch_map import EpochMap, EpochShape, projected
from sgdsde.dynamics.moments.reduced.epoch_runs import BATCH, FIRST_EPOCHS, EpochRuns
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.prediction import (
    LEFT_BY_SOLVES,
    RELATIVE_DOWN_TO,
    SAFETY,
    SMALLEST,
    ReducedLaws,
    ReducedModelWarning,
    TooInaccurateError,
)
from sgdsde.dynamics.moments.reduced.repeated_map import after
from sgdsde.dynamics.moments.reduced.resolvent import PastLimitError
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, Segment
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, sampling_factor

GROUPS = 8
"""Of orders and of runs; leaving out one after the other tells the sampling error."""

ROUNDS = (1, 2, 4, 8, 16)
"""Batches of orders in every group, until the error is below the tolerance: 64, 128, ... 1024 orders."""

SPENT = 2e11
"""Operations after which there are no more than 256 orders: half a minute of one core."""

FINEST = 0.01
"""Relative error below which no more orders are drawn."""

SNAPSHOTS = (1, 2, 3, 4, 6, 8, 11, 16)
"""Epochs whose second moments, and those of the mean alone, join the basis: from few orders, which costs little."""

AFFORDED = 1000
"""Steps of the plain recursion that are made where the estimate stays too large."""

DENSITY, SOLVED = 4.0, 1e-2
"""Poles a decade, and the relative residual of their solves: projection errors below those of sampling."""


@dataclass(frozen=True)
class EpochPlace:
    """A step as whole epochs after the first ones, and steps of the epoch that has begun."""

    step: int
    epochs: int
    steps: int


class ShuffledPrediction:
    """Sampled first epochs, the projected map of an epoch, sampled parts of epochs; the error of all of it."""

    def __init__(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, tolerance: float, seed: int
    ) -> None:
        modes = modes_of(linearization)
        shape = EpochShape.of(sgd, modes.n_train)
        first = FIRST_EPOCHS * len(shape)
        if record[-1] <= first:
            raise TooInaccurateError(f"{FIRST_EPOCHS} epochs or fewer")
        if shape.lr * shape.decay >= 1:
            raise TooInaccurateError("lr * weight_decay of 1 or more")
        self._modes, self._shape, self._tolerance = modes, shape, max(tolerance, FINEST)
        self._early = [k for k in record if k < first]
        self._late = [EpochPlace(k, *divmod(k - first, len(shape))) for k in record if k >= first]
        self._epochs = sorted({place.epochs + more for place in self._late for more in (0, int(place.steps > 0))})
        self._start = ReducedStart.of(modes, sgd, modes.start, None, time=record[-1] * shape.lr)
        if self._start.nothing_moves:
            raise TooInaccurateError("nothing moves over these steps")
        self._runs = EpochRuns(modes, self._start, shape, seed)
        self._n_batches = 0

    def laws(self, progress: Progress) -> ReducedLaws:
        ticks = ticker(progress, 2, "reduced moments, shuffled")
        sources, starts, sampled = self._runs.first_epochs(self._early, GROUPS)
        early, last = SAFETY * sampled[:-1], SAFETY * float(sampled[-1])
        self._start = replace(self._start, sources=sources)
        ticks.update(1)
        system, epoch, errors = self._sampled_maps(starts)
        ticks.update(1)
        ticks.close()
        size = f"{len(system.start)} directions, {self._n_batches * BATCH} sampled epochs"
        used = f"ReducedMoments(tolerance={self._tolerance:g}): {size}"
        errors = torch.cat([early, errors.clamp_min(last)])
        return ReducedLaws(self._all_laws(system, epoch, errors[len(early) :]), used, errors)

    def _sampled_maps(self, starts: Sequence[Tensor]) -> tuple[ReducedSystem, EpochMap, Tensor]:
        """The projected map of an epoch, from as many orders as the tolerance asks for, and the relative errors."""
        space, shape = self._start.sources.space, self._shape
        size = shape.sizes[0]
        fresh = sampling_factor(space.n_train, size, "without_replacement") / size
        settings = [Segment(1, StepCoefficients(shape.lr, q, shape.decay), float(size)) for q in (fresh, 0.0)]
        companions = self._runs.followed(self._start.sources, SNAPSHOTS)
        model = ReducedModel(self._start.sources, settings, self._late[-1].step, companions=companions)
        system = model.build(DENSITY, SOLVED)
        begins = system.projection.coordinates(torch.stack(list(starts)))
        basis = self._unpacked(system)
        groups: list[EpochMap] = []
        for rounds in ROUNDS:
            if rounds > 4 and rounds * GROUPS * BATCH * 4 * len(basis) * space.rank**3 > SPENT:
                break
            for i in range(self._n_batches // GROUPS, rounds):
                new = [self._batch_map(basis, i * GROUPS + g) for g in range(GROUPS)]
                shares = [i / (i + 1), 1 / (i + 1)]
                groups = [EpochMap.mixed(pair, shares) for pair in zip(groups, new)] if i else new
            self._n_batches = rounds * GROUPS
            epoch, errors, worst = self._judged(model, groups, begins)
            if worst <= self._tolerance:
                return system, epoch, errors
        if self._late[-1].step <= AFFORDED:
            raise TooInaccurateError(f"an estimated error of {worst:.1g}")
        warnings.warn(
            f"the reduced model's estimated error is {worst:.1g}, above tolerance={self._tolerance:g}; raise the "
            "tolerance, or use MomentRecursion()",
            ReducedModelWarning,
            stacklevel=6,
        )
        return system, epoch, errors

    def _batch_map(self, basis: Tensor, batch: int) -> EpochMap:
        """The map of the orders of one batch."""
        driven = self._start.sources.follow_the_mean
        reversible = self._shape.is_reversible and not driven  # the reverse has another shift
        parts, shares = [], []
        for _, passage in self._runs.passages(batch, [len(self._shape)]):
            parts.append(projected(basis, passage, reversible=reversible, driven=driven))
            shares.append(len(passage.loss) / BATCH)
        return EpochMap.mixed(parts, shares)

    def _judged(
        self, model: ReducedModel, groups: Sequence[EpochMap], begins: Tensor
    ) -> tuple[EpochMap, Tensor, float]:
        """The map of all groups, errors that grow with the step, and the worst while the loss is large.

        Sampling: the jackknife over groups of orders and runs. Projection: the space without every fifth pole.
        """
        epoch = EpochMap.mixed(groups, [1 / GROUPS] * GROUPS)
        if float(torch.linalg.eigvals(epoch.loss).real.min()) < 0:
            raise PastLimitError("an epoch lets a second moment grow")
        begin, loss = begins.mean(0), model.system.loss
        whole, left_out = self._curve(epoch, begin, loss), []
        for g in range(GROUPS):
            shares = [0.0 if i == g else 1 / (GROUPS - 1) for i in range(GROUPS)]
            others = (GROUPS * begin - begins[g]) / (GROUPS - 1)
            left_out.append(self._curve(EpochMap.mixed(groups, shares), others, loss))
        spread = torch.stack(left_out)
        sampled = ((GROUPS - 1) / GROUPS * (spread - spread.mean(0)).square().sum(0)).sqrt()
        coarser = torch.zeros_like(whole)
        for z in model.coarser_spans():
            other = self._curve(epoch.restricted(z), z.mT @ begin, z.mT @ loss)
            coarser = torch.maximum(coarser, (other - whole).abs())
        first = self._modes.residual(self._modes.start).square().sum()
        errors = SAFETY * (sampled + coarser) / whole.abs().clamp_min(SMALLEST * first) + LEFT_BY_SOLVES * SOLVED
        row = {n: i for i, n in enumerate(self._epochs)}
        errors = errors.cummax(0).values[[row[place.epochs + int(place.steps > 0)] for place in self._late]]
        relevant = whole[[row[place.epochs] for place in self._late]] > RELATIVE_DOWN_TO * first
        return epoch, errors.double().cpu(), float(errors[relevant].max()) if bool(relevant.any()) else 0.0

    def _curve(self, epoch: EpochMap, y: Tensor, loss: Tensor) -> Tensor:
        """Expected squared residual after each of ``_epochs``."""
        fixed, mean = self._start.sources.fixed, self._start.sources.mean / self._runs.root
        if epoch.force is None:
            epoch, mean = epoch.without_mean(), mean[:0]
        moving = torch.stack([loss @ y for y, _ in after(epoch, y, mean, self._epochs)])
        return moving if fixed is None else moving + fixed.square().sum()

    def _all_laws(self, system: ReducedSystem, epoch: EpochMap, errors: Tensor) -> Iterator[OutputLaw]:
        """The spread is the difference of two projections, of the second moment and of that of the mean alone."""
        yield from self._runs.first_laws(self._early)
        space, root, epochs = self._start.sources.space, self._runs.root, [place.epochs for place in self._late]
        mean, basis = self._start.sources.mean / root, self._unpacked(system)
        certain = projected(basis, epoch.of_mean, reversible=False, driven=epoch.force is not None)
        del basis
        squared = system.projection.coordinates(space.products(mean, mean))
        states, others = after(epoch, system.start, mean, epochs), after(certain, squared, mean, epochs)
        for a in range(0, len(self._late), RECORDS):
            places = self._late[a : a + RECORDS]
            found = [(y, y - next(others)[0], m) for y, m in (next(states) for _ in places)]
            y, spread, m = (torch.stack(parts) for parts in zip(*found))
            boundaries = spread_states(self._start, system, y, spread, root * m)
            within = self._partial_laws(system, places, spread, m, errors[a : a + RECORDS])
            for place, state in zip(places, boundaries):
                yield next(within) if place.steps else self._law(place.step, state)

    def _partial_laws(
        self, system: ReducedSystem, places: Sequence[EpochPlace], spread: Tensor, m: Tensor, errors: Tensor
    ) -> Iterator[OutputLaw]:
        """Of the steps within an epoch, from the same orders as its map; their sampling adds to the errors."""
        inside = [i for i, place in enumerate(places) if place.steps]
        if not inside:
            return
        space, basis = self._start.sources.space, system.projection.basis
        begins = [(places[i].steps, m[i], space.unpack(spread[i] @ basis) + m[i] @ m[i].mT) for i in inside]
        fixed = self._start.sources.fixed
        floor = 0.0 if fixed is None else float(fixed.square().sum())
        for i, found in zip(inside, self._runs.moved(begins, self._n_batches)):
            mean, moment = found.averages()
            errors[i] += SAFETY * found.standard_error(floor)
            yield self._runs.law(places[i].step, mean, moment - mean @ mean.mT)

    def _unpacked(self, system: ReducedSystem) -> Tensor:
        """V, [N, r, r]."""
        return torch.stack([self._start.sources.space.unpack(vector) for vector in system.projection.basis])

    def _law(self, step: int, state: ReducedState) -> OutputLaw:
        """At the end of an epoch."""
        time, factor = self._runs.time_and_factor(step)
        none = self._modes.drift.new_zeros(len(self._modes.drift), len(self._modes.drift))
        law = self._modes.law(step, time, state.whole_mean(), none, weight_factor=factor)
        return replace(
            law,
            covariance=reduced_covariance(law.covariance, state, of_training=True),
            test_covariance=reduced_covariance(law.test_covariance, state, of_training=False),
        )
