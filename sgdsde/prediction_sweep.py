"""Predictions of many settings of SGD on one problem, from one basis."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._progress import StageCost, announced, covered, ticker
from sgdsde._types import Progress
from sgdsde.dynamics import ReducedMoments
from sgdsde.dynamics.moments.modes import Modes, modes_of
from sgdsde.dynamics.moments.reduced.forms import LossForms, OutputMap
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.prediction import RELATIVE_DOWN_TO
from sgdsde.dynamics.moments.reduced.resolvent import PastLimitError
from sgdsde.dynamics.moments.reduced.schedule import segments_between, times_and_factors
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem, Segment, mean_at
from sgdsde.dynamics.reduced_moments import cost_in_plain_steps
from sgdsde.evolution_cost import Course, Size, evolution_seconds
from sgdsde.kernel import KroneckerKernel
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import spectrum_cost
from sgdsde.prediction import default_dynamics, predict
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd
from sgdsde.trajectory import LossBand, Trajectory

BASIS_SETTINGS = 4
"""Settings whose resolvents span the basis of all."""

POLES_PER_DECADE = 3.5
SNAPSHOTS = (1, 2, 3, 4, 6, 8, 11, 16)
"""Steps of the basis settings themselves, which stand for the fast modes of the others."""

STABLE_SHARE = 0.98
"""Of the limit that the reduced matrices give, below which a learning rate is taken as stable."""


def predict_many(
    problem_or_linearization: Problem | Linearization,
    sgds: Sequence[SGD],
    n_steps: int,
    *,
    record: Sequence[int] | None = None,
    tolerance: float = 1e-3,
    progress: Progress = None,
) -> list[Trajectory]:
    """The predicted losses of many settings, in the order of ``sgds``: ``ReducedMoments`` with one basis for all.

    One step is a polynomial in lr and q = phi/B with the same three matrices for all settings. The basis holds the
    resolvents and first steps of four settings, chosen far apart; a setting then costs eigenproblems of about 130
    numbers. Settings of equal weight decay share a basis. What it cannot take (momentum, shuffled epochs, a learning
    rate at or beyond the mean-square limit, an estimated error above the tolerance) is predicted by ``predict``.

    Args:
        sgds: how it is trained, each. n_steps, record: as in ``predict``.
        tolerance: relative error of the expected training loss while that is above 1e-4 of its start.
    Returns:
        A ``Trajectory`` each, with ``estimated_error``.
    Raises:
        ValueError: a setting that nothing can represent.
    Exactness: estimated for each setting from the basis without every fifth pole; no step is exact, the first neither.
    Cost: about 250 applications of the second-moment map (half of a plain step each), then milliseconds a setting.
    """
    n_steps = whole_number("n_steps", n_steps)
    steps = recorded_steps(n_steps, record)
    if not isinstance(sgds, Sequence):
        raise TypeError(complaint("sgds", "a sequence of SGD", type(sgds).__name__, "use [SGD(...), SGD(...)]"))
    for sgd in sgds:
        check_sgd(sgd)
    linearization = as_linearization(problem_or_linearization, progress=progress)
    groups: dict[float, list[int]] = defaultdict(list)
    for i, sgd in enumerate(sgds):
        if _is_reducible(linearization, sgd) and n_steps:
            groups[sgd.weight_decay].append(i)
    found: dict[int, Trajectory] = {}
    ticks = ticker(announced(_cost(linearization, sgds, groups, steps), progress), len(sgds), "settings")
    for members in groups.values():
        sweep = _Sweep.of(linearization, [sgds[i] for i in members], steps, tolerance)
        for i in members:
            trajectory = None if sweep is None else sweep.predict(sgds[i])
            if trajectory is not None:
                found[i] = trajectory
                ticks.update(1)
    for i in set(range(len(sgds))) - set(found):
        found[i] = predict(linearization, sgds[i], n_steps, record=record, progress=covered)
        ticks.update(1)
    ticks.close()
    return [found[i] for i in range(len(sgds))]


def _cost(
    linearization: Linearization, sgds: Sequence[SGD], groups: Mapping[float, Sequence[int]], steps: Tensor
) -> StageCost:
    """A basis for each weight decay, and the predictions that have none; at least, since a basis may not do."""
    courses = [Course.of(linearization, sgd, steps) for sgd in sgds]
    alone = set(range(len(sgds))).difference(*groups.values())
    costs = [evolution_seconds(default_dynamics(linearization.problem, sgds[i]), courses[i]) for i in alone]
    basis = [evolution_seconds(ReducedMoments(), courses[members[0]]) for members in groups.values()]
    size, seconds = Size.of(linearization), sum(cost.seconds for cost in (*costs, *basis))
    seconds += 0 if size.has_basis else spectrum_cost(size.d).seconds
    return StageCost("settings", seconds, max((cost.bytes for cost in (*costs, *basis)), default=0), at_least=True)


def predicted_together(linearization: Linearization, sgds: Mapping[int, SGD], steps: Tensor) -> dict[int, Trajectory]:
    """Those of ``sgds`` that cost less from one basis than one by one, at recorded steps."""
    if isinstance(linearization.kernel, KroneckerKernel):
        return {}
    groups: dict[float, list[int]] = defaultdict(list)
    for i, sgd in sgds.items():
        if _is_reducible(linearization, sgd):
            groups[sgd.weight_decay].append(i)
    places: list[int] = []
    for members in groups.values():
        rank, n = len(linearization.eigenbasis.values), len(members)
        if n * min(int(steps[-1]), cost_in_plain_steps(rank)) > cost_in_plain_steps(rank, BASIS_SETTINGS) + 10 * n:
            places += members
    record = steps.tolist()
    found = predict_many(linearization, [sgds[i] for i in places], record[-1], record=record, progress=covered)
    return dict(zip(places, found))


def _is_reducible(linearization: Linearization, sgd: SGD) -> bool:
    """Whether a shared basis can represent this training."""
    if not isinstance(linearization.problem.criterion, SquaredError) or linearization.basis is not None:
        return False
    if linearization.outputs.dtype != torch.float64:
        return False
    return not sgd.momentum and sgd.sampling != "shuffled"


@dataclass(frozen=True, eq=False)
class _Sweep:
    """One basis, and what predictions from it need."""

    linearization: Linearization
    modes: Modes
    system: ReducedSystem
    coarser: list[ReducedSystem]
    forms: dict[str, LossForms]
    steps: Tensor
    tolerance: float

    @classmethod
    def of(cls, linearization: Linearization, sgds: Sequence[SGD], steps: Tensor, tolerance: float) -> _Sweep | None:
        """None where a basis cannot be made: no setting is stable."""
        modes, last = modes_of(linearization), int(steps[-1])
        plans = [segments_between(sgd, modes.n_train, 0, last) for sgd in sgds]
        time = max(sum(s.length * s.coefficients.lr for s in plan) for plan in plans)
        loudest = max(sgds, key=lambda sgd: sgd.label_noise_std)
        start = ReducedStart.of(modes, loudest, modes.start, None, time=time)
        settings = [s for plan in plans for s in plan if s.coefficients.lr > 0]
        sharpness = _sharpness(start)
        chosen = _far_apart(settings, sharpness)
        while chosen:
            model = ReducedModel(start.sources, chosen, last, snapshots=SNAPSHOTS)
            try:
                system = model.build(POLES_PER_DECADE, 1e-4)
                break
            except PastLimitError:  # the setting at the largest share of its limit goes first
                largest = _share_of_limit(chosen[0], sharpness)
                settings = [s for s in settings if _share_of_limit(s, sharpness) < largest]
                chosen = _far_apart(settings, sharpness)
        else:
            return None
        forms = _forms(modes, start, system, chosen, last)
        return cls(linearization, modes, system, model.coarser(), forms, steps, tolerance)

    def predict(self, sgd: SGD) -> Trajectory | None:
        """None where the basis is not good enough for this setting."""
        record = self.steps.tolist()
        segments = segments_between(sgd, self.modes.n_train, 0, record[-1])
        if any(segment.coefficients.lr * sgd.weight_decay >= 1 for segment in segments):
            return None
        for noise in {s.coefficients.noise for s in segments}:
            largest = max(s.coefficients.lr for s in segments if s.coefficients.noise == noise)
            if largest > STABLE_SHARE * reduced_limit(self.system, noise):
                return None
        label = sgd.label_noise_std**2 * self.modes.n_columns * self.modes.n_train
        states, means = replace(self.system, label_variance=label).run(segments, record)
        times, factors = times_and_factors(segments, record, decay=sgd.weight_decay)
        bands = {}
        for side, form in self.forms.items():
            mean, std = form.mean_and_std(states, means, torch.tensor(factors).to(means))
            bands[side] = LossBand(mean.double().cpu(), std.double().cpu(), torch.zeros(len(record)).double())
        loss, errors = bands["train"].mean, torch.zeros(len(record), dtype=torch.float64)
        scale = self.forms["train"].scale
        for system in self.coarser:
            other = replace(system, label_variance=label)
            moved = other.run(segments, record)[0] @ other.loss - states @ self.system.loss
            errors = torch.maximum(errors, scale * moved.abs().double().cpu() / loss)
        errors = errors.cummax(0).values
        relevant = loss > RELATIVE_DOWN_TO * loss[0]
        if not float(errors[relevant].max()) <= self.tolerance:
            return None
        return Trajectory(
            steps=self.steps,
            times=torch.tensor(times, dtype=torch.float64),
            train_loss=bands["train"],
            test_loss=bands.get("test"),
            train_outputs=None,
            test_outputs=None,
            n_runs=0,
            dynamics=f"ReducedMoments(tolerance={self.tolerance:g}): {len(self.system.start)} directions, shared",
            problem_digest=self.linearization.problem.digest,
            diverged_at=torch.zeros(0, dtype=torch.int64),
            estimated_error=errors,
            origin="predicted",
        )


def reduced_limit(system: ReducedSystem, noise: float) -> float:
    """The mean-square limit at phi/B = noise from the matrices of a basis: from above, by 0.1 % or less in cases tried.

    1 / l_max(A1^-1/2 ((1 - q) A2 + q A3) A1^-1/2), the projection of the exact eigenproblem (``stability.max_lr``).
    """
    whole = system.projection
    lower, failed = torch.linalg.cholesky_ex(whole.a1)
    if failed:
        return 0.0  # modes too slow to be told from still ones: nothing is known to be stable
    middle = torch.linalg.solve_triangular(lower, (1 - noise) * whole.a2 + noise * whole.a3, upper=False)
    return 1 / float(torch.linalg.eigvalsh(torch.linalg.solve_triangular(lower, middle.mT, upper=False))[-1])


def _sharpness(start: ReducedStart) -> tuple[float, float]:
    """l_max(H), and the largest curvature that one example sees, n D(H)."""
    rows = start.sources.space.rows.square().sum(1)
    return float(start.sources.space.drift.max()), start.sources.space.n_train * float(rows.max())


def _share_of_limit(segment: Segment, sharpness: tuple[float, float]) -> float:
    """The learning rate in units of a bound on its stability limit that costs nothing."""
    (top, example), q = sharpness, segment.coefficients.noise
    return segment.coefficients.lr * ((1 - q) * top + q * example) / 2


def _far_apart(settings: Sequence[Segment], sharpness: tuple[float, float]) -> list[Segment]:
    """Four settings far from each other in the share of the stability limit and in log q; the largest share first."""
    distinct = list({(s.coefficients, s.batch_size): s for s in settings}.values())

    def place(segment: Segment) -> tuple[float, float]:
        return 3 * _share_of_limit(segment, sharpness), math.log10(max(segment.coefficients.noise, 1e-4))

    chosen: list[Segment] = []
    while distinct and len(chosen) < BASIS_SETTINGS:
        if not chosen:
            best = max(distinct, key=lambda s: place(s)[0])
        else:
            best = max(distinct, key=lambda s: min(math.dist(place(s), place(other)) for other in chosen))
        if best in chosen:
            break
        chosen.append(best)
    return chosen


def _forms(
    modes: Modes, start: ReducedStart, system: ReducedSystem, settings: Sequence[Segment], last: int
) -> dict[str, LossForms]:
    """Forms of both losses; the means of the fastest and the slowest setting span those of the others."""
    rates = [s.coefficients.lr for s in settings]
    record = sorted({0, *(round(last ** (j / 60)) for j in range(61))})
    means = []
    for lr in (min(rates), max(rates)):
        coefficients = replace(settings[0].coefficients, lr=lr)
        sources = start.sources
        means.append(
            mean_at(
                [Segment(last, coefficients, 1.0)],
                record,
                drift=sources.space.drift,
                mean=sources.mean,
                offset=sources.offset,
            )
        )
    forms = {}
    for side, of_training, examples in (
        ("train", True, modes.n_train),
        ("test", False, modes.linearization.problem.n_test),
    ):
        outputs = OutputMap.of(modes, start, of_training=of_training)
        if outputs is not None:
            scale = modes.loss_curvature / (2 * examples)
            forms[side] = LossForms.of(outputs, system, start, torch.cat(means), scale)
    return forms
