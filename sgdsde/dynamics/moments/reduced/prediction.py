"""One reduced prediction: exact first steps, a model that is refined until it is good enough, the outputs' laws."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.moment_recursion import MomentRecursion
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.covariance import RECORDS, reduced_states, replaced, scattered
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.dynamics.moments.reduced.schedule import representative, segments_between
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, mean_at
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

EXACT_STEPS = 16
"""First steps, of the plain recursion: they hold what decays or alternates too fast for resolvents at t <= 1/2."""

STILL = 1e-10
"""Modes that move by less than this share of themselves over the whole horizon are taken as immovable."""

RELATIVE_DOWN_TO = 1e-4
"""The tolerance holds while the loss is above this share of its start."""

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
            [T]; None where the plain recursion was used.
    """

    def __init__(self, laws: Iterator[OutputLaw], used: str, estimated_error: Tensor | None = None) -> None:
        self._laws, self.used, self.estimated_error = laws, used, estimated_error

    def __next__(self) -> OutputLaw:
        return next(self._laws)


class TooInaccurateError(Exception):
    """The estimate stays above the tolerance, and the plain recursion costs no more than was spent."""


class ReducedPrediction:
    """One prediction: exact first steps, the reduced model, its error."""

    def __init__(self, linearization: Linearization, sgd: SGD, record: Sequence[int], tolerance: float) -> None:
        self._modes, self._sgd, self._record, self._tolerance = Modes(linearization), sgd, record, tolerance
        early = [k for k in record if k < EXACT_STEPS]
        plain = MomentRecursion().evolve(linearization, sgd, [*early, EXACT_STEPS])
        *self._early, self._start = list(plain)
        self._segments = segments_between(sgd, self._modes.n_train, EXACT_STEPS, record[-1])
        self._sources, self._moving, self._still = self._split()
        self._late = [k for k in record if k >= EXACT_STEPS]

    def laws(self, progress: Progress) -> ReducedLaws:
        if self._is_certain():
            used = f"ReducedMoments(tolerance={self._tolerance:g}): no noise, the mean exactly"
            return ReducedLaws(self._certain_laws(), used, torch.zeros(len(self._record), dtype=torch.float64))
        settings = representative(self._segments)
        if not settings:
            raise TooInaccurateError("the learning rate is 0")
        model = ReducedModel(self._sources, settings, self._record[-1])
        ticks = ticker(progress, 1, "reduced moments")
        system, states, means, errors = self._refined(model)
        ticks.update(1)
        ticks.close()
        used = f"ReducedMoments(tolerance={self._tolerance:g}): {len(system.start)} directions"
        early = torch.zeros(len(self._early), dtype=torch.float64)
        return ReducedLaws(self._all_laws(system, states, means), used, torch.cat([early, errors.cpu().double()]))

    def _is_certain(self) -> bool:
        """No batch is smaller than the training set, no label noisy."""
        assert self._start.covariance is not None
        quiet = all(segment.coefficients.noise == 0 for segment in self._segments)
        return quiet and self._sgd.label_noise_std == 0 and not bool(self._start.covariance.core.any())

    def _certain_laws(self) -> Iterator[OutputLaw]:
        yield from self._early
        late, (sources, moving) = self._late, (self._sources, self._moving)
        drift = sources.space.drift
        means = mean_at(
            self._segments, [k - EXACT_STEPS for k in late], drift=drift, mean=sources.mean, offset=sources.offset
        )
        times, factors = self._times_and_factors()
        for k, step in enumerate(late):
            mean = scattered(moving, means[k], self._still).flatten()
            law = self._modes.law(step, times[k], mean, None, weight_factor=factors[k])
            yield replace(law, covariance=self._start.covariance, test_covariance=self._start.test_covariance)

    def _split(self) -> tuple[Sources, Tensor, Tensor]:
        """Start and sources after the exact steps, of the modes that move."""
        modes, law, sgd = self._modes, self._start, self._sgd
        shift = (law.mean - modes.linearization.outputs).flatten()
        mean = modes.start + modes.vectors.mT @ shift
        assert law.covariance is not None
        time = sum(s.length * s.coefficients.lr for s in self._segments)
        moving = torch.ones_like(mean, dtype=torch.bool)
        if not sgd.weight_decay:
            moving = 2 * time * modes.drift > STILL
        if not bool(moving.any()):
            raise TooInaccurateError("nothing moves over these steps")
        fixed = modes.residual(torch.where(moving, 0.0, mean))
        space = PairSpace(modes.drift[moving], modes.vectors[:, moving].contiguous(), modes.n_outputs)
        _check_memory(space)
        m = mean[moving][:, None]
        root = space.drift.rsqrt()
        moment = (law.covariance.core[moving][:, moving] + m @ m.mT) * root[:, None] * root
        size = float(modes.residual(mean).norm())
        sources = Sources(
            space,
            moment=space.pack(moment),
            mean=m,
            fixed=fixed[:, None] if float(fixed.norm()) > 1e-12 * size else None,
            offset=sgd.weight_decay * modes.decay_offset()[moving][:, None] if sgd.weight_decay else None,
            label_variance=modes.n_labels * sgd.label_noise_std**2,
        )
        return sources, moving, mean[~moving][:, None]

    def _refined(self, model: ReducedModel) -> tuple[ReducedSystem, Tensor, Tensor, Tensor]:
        """Poles are added until the estimate is below the tolerance."""
        late = [k - EXACT_STEPS for k in self._late]
        sparser = min(1.0, (np.log10(self._tolerance) / -4))
        for density in DENSITIES:
            solved = min(1e-2, self._tolerance * DENSITIES[0] / density)
            system = model.build(max(2.0, density * sparser), solved)
            states, means = system.run(self._segments, late)
            errors, relevant = self._errors(model, states, late)
            errors = errors + LEFT_BY_SOLVES * solved
            worst = float(errors[relevant].max()) if bool(relevant.any()) else 0.0
            if worst <= self._tolerance:
                return system, states, means, errors
        if self._record[-1] <= model.applications:
            raise TooInaccurateError(f"an estimated error of {worst:.1g}")
        warnings.warn(
            f"the reduced model's estimated error is {worst:.1g}, above tolerance={self._tolerance:g}; raise the "
            "tolerance, or use MomentRecursion()",
            ReducedModelWarning,
            stacklevel=5,
        )
        return system, states, means, errors

    def _errors(self, model: ReducedModel, states: Tensor, late: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Relative errors that grow with the step, [T], and where the loss is still large enough to matter."""
        fixed = self._sources.fixed
        floor = 0.0 if fixed is None else float(fixed.square().sum())
        loss = states @ model.system.loss + floor
        errors = torch.zeros_like(loss)
        for system in model.coarser():
            other = system.run(self._segments, late)[0] @ system.loss + floor
            errors = torch.maximum(errors, (other - loss).abs() / loss.abs())
        slowest = min(s.coefficients.lr for s in self._segments if s.coefficients.lr > 0) * self._sources.space.drift[0]
        lasting = 40 / float(slowest)  # what rounding does to a power of a rate is gone when the power is
        rounding = torch.finfo(loss.dtype).eps * torch.tensor(late).clamp_max(int(lasting)).to(loss)
        first = self._early[0] if self._early else self._start
        begin = (first.mean - self._modes.linearization.targets).square().sum()
        return errors.cummax(0).values + rounding, loss > RELATIVE_DOWN_TO * begin

    def _all_laws(self, system: ReducedSystem, states: Tensor, means: Tensor) -> Iterator[OutputLaw]:
        yield from self._early
        late, (times, factors) = self._late, self._times_and_factors()
        likes = [self._start.covariance, self._start.test_covariance]
        for a in range(0, len(late), RECORDS):
            found = reduced_states(
                self._sources.space,
                system.projection,
                states[a : a + RECORDS],
                means[a : a + RECORDS],
                moving=self._moving,
                still=self._still,
            )
            for k, state in enumerate(found, a):
                mean = state.whole_mean().flatten()
                law = self._modes.law(late[k], times[k], mean, None, weight_factor=factors[k])
                train, test = replaced(likes, state)
                yield replace(law, covariance=train, test_covariance=test)

    def _times_and_factors(self) -> tuple[list[float], list[float]]:
        """t_k and g_k of theta = g theta_0 + J^T w."""
        head = self._sgd.plan(self._modes.n_train, EXACT_STEPS)
        edges, times, logs = [EXACT_STEPS], [float(head.times[-1])], [0.0]
        decay = self._sgd.weight_decay
        kept = float(np.prod(1 - head.lr * decay))
        for segment in self._segments:
            lr = segment.coefficients.lr
            edges.append(edges[-1] + segment.length)
            times.append(times[-1] + segment.length * lr)
            logs.append(logs[-1] + segment.length * float(np.log1p(-lr * decay)))
        factors = kept * np.exp(np.interp(self._late, edges, logs))
        return np.interp(self._late, edges, times).tolist(), factors.tolist()


def _check_memory(space: PairSpace) -> None:
    """Sixty packed matrices, twice."""
    needed = 120 * space.size * space.rows.element_size()
    allowed = _memory.budget(None, space.rows.device)
    if needed > allowed:
        raise MemoryError(complaint("memory", f"at least {needed:,} bytes", f"{allowed:,}"))
