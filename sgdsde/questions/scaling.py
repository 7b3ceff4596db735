"""Which learning rate keeps the loss curve when the batch size changes?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np

from sgdsde._checks import complaint, positive_number, whole_number, word
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics import Dynamics
from sgdsde.linearization import Linearization, problem_of
from sgdsde.problem import Problem
from sgdsde.questions.arrival import Side
from sgdsde.questions.forecasts import Forecasts
from sgdsde.questions.learning_rate import check_side
from sgdsde.questions.scaling_result import RULES, BatchScaling, RuleOutcome, ScalingRule
from sgdsde.questions.search import refined
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd
from sgdsde.trajectory import Trajectory

Keep: TypeAlias = Literal["examples", "steps"]
"""What the losses are compared at: equal numbers of drawn examples, or of steps."""

EPOCHS, LEAST_STEPS = 10, 50
"""Default length of the curve: this many passes over the training set, and steps at least."""

REACH = 4.0
"""Factor beyond the rules' learning rates that is searched."""

POINTS, REFINED, ROUNDS = 9, 7, 3
POINTS_MOVING, ROUNDS_MOVING = 5, 1
"""Learning rates of the first grid, of each refinement, and refinements; with a kernel that moves fewer."""

BASINS = 2
"""Local minima that are refined: steps that overshoot shrink the error as smaller ones do."""

STABLE_SHARE = 0.97
"""Of the mean-square limit, up to which learning rates are searched."""


def scaling_rule(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    batch_sizes: Sequence[int],
    *,
    keep: Keep = "examples",
    n_steps: int | None = None,
    tolerance: float = 0.05,
    side: Side = "train",
    dynamics: Dynamics | None = None,
    progress: Progress = None,
) -> ScalingRule:
    """The learning rate at each batch size that keeps the expected loss curve, and how far the usual rules do.

    The mismatch of a learning rate is the largest |loss / reference loss - 1| over the recorded steps, at equal
    examples or equal steps; the one that keeps the curve makes it smallest. Rules: linear lr B'/B, square root
    lr sqrt(B'/B), constant lr.

    Args:
        problem_or_linearization: a ``Problem`` asks for the network, a ``Linearization`` for the linearized model.
        sgd: the reference: constant lr and batch size. Momentum, decay and sampling stay as they are.
        batch_sizes: the others.
        keep: ``"examples"``: the loss after as many drawn examples, in fewer steps where the batch is larger;
            ``"steps"``: after as many steps.
        n_steps: of the reference; default ten passes over the training set, 50 at least.
        tolerance: mismatch up to which a curve counts as kept. side: whose loss, "train" or "test".
        dynamics: the theory; default as ``predict`` takes it, on the frozen kernel. ``dynamics.MovingKernel()`` follows
            the network.
    Warns:
        FrozenKernelWarning: the network's kernel moves, and the dynamics keeps it; the answer says so too.
    Raises:
        ValueError: a schedule; a reference past the mean-square limit under squared error; a batch so large that the
            examples of the reference make less than two steps of it.
    Exactness: that of the predictions, the learning rate to about 1 %; a reference loss between two of its steps by a
        straight line in log loss.
    Cost: for each batch size one limit and about 50 predictions (from one basis under squared error), 10 with
        ``MovingKernel``.
    """
    check_sgd(sgd)
    problem = problem_of(problem_or_linearization)
    check_side(problem, side)
    word("keep", keep, get_args(Keep))
    positive_number("tolerance", tolerance)
    if not sgd.is_constant:
        remedy = "ask at the learning rate and batch size of one phase"
        raise ValueError(complaint("sgd", "of constant lr and batch_size", "a schedule", remedy))
    batch = sgd.batch_size_at(0)
    if n_steps is None:
        n_steps = max(LEAST_STEPS, math.ceil(EPOCHS * problem.n_train / batch))
    n_steps = whole_number("n_steps", n_steps, minimum=2)
    others = _others(sgd, batch_sizes, problem.n_train, n_steps, keep)
    forecasts = Forecasts.of(problem_or_linearization, dynamics, progress)
    limit = forecasts.limit(sgd, n_steps)
    if forecasts.has_limit and not forecasts.moves_kernel and sgd.lr_at(0) > limit:
        remedy = "ask at a smaller lr, whose loss curve can be kept"
        raise ValueError(complaint("sgd.lr", f"below the mean-square limit {limit:.4g}", f"{sgd.lr_at(0):.4g}", remedy))
    predicted = forecasts.predict_one(sgd, n_steps)
    forecasts = forecasts.suited(problem_or_linearization, sgd, predicted, switch=False)
    bar, rows = ticker(progress, len(others), "batch sizes"), []
    for other in others:
        rows.append(_Match.of(forecasts, sgd, other, n_steps, keep, side).outcome())
        bar.update(1)
    bar.close()
    return ScalingRule(
        sgd, limit, n_steps, keep, side, float(tolerance), tuple(rows), forecasts.kernel, forecasts.is_doubtful
    )


def _others(sgd: SGD, batch_sizes: Sequence[int], n_train: int, n_steps: int, keep: Keep) -> list[SGD]:
    """The reference at every batch size, which each makes sense."""
    if isinstance(batch_sizes, str) or not isinstance(batch_sizes, Sequence | np.ndarray):
        raise TypeError(complaint("batch_sizes", "a sequence of batch sizes", repr(batch_sizes), "use [16, 32]"))
    sizes = sorted({whole_number("batch_sizes", size, minimum=1) for size in batch_sizes})
    if not sizes:
        raise ValueError(complaint("batch_sizes", "one batch size at least", "none"))
    others = [replace(sgd, batch_size=size) for size in sizes]
    for other in others:
        other.plan(n_train, 1)
    most = n_steps * sgd.batch_size_at(0) // 2
    if keep == "examples" and sizes[-1] > most:
        expected = (
            f"at most {most}, so that the {n_steps * sgd.batch_size_at(0)} examples of the reference make two steps"
        )
        raise ValueError(complaint("batch_sizes", expected, sizes[-1], "raise n_steps"))
    return others


@dataclass(frozen=True, eq=False)
class _Match:
    """The search at one batch size: the other's recorded steps, and the reference losses that they are held against."""

    forecasts: Forecasts
    reference: SGD
    other: SGD
    side: Side
    record: list[int]
    targets: np.ndarray

    @classmethod
    def of(cls, forecasts: Forecasts, sgd: SGD, other: SGD, n_steps: int, keep: Keep, side: Side) -> _Match:
        ratio = other.batch_size_at(0) / sgd.batch_size_at(0) if keep == "examples" else 1.0
        steps = recorded_steps(int(n_steps / ratio + 1e-9)).numpy()
        places = np.minimum(steps * ratio, n_steps)
        wanted = np.unique(np.concatenate([np.floor(places + 1e-9), np.ceil(places - 1e-9)])).astype(int)
        (found,) = forecasts.predict([sgd], n_steps, wanted.tolist())
        if found is None:
            raise ValueError(complaint("the reference loss", "finite", "infinite", "ask at a smaller lr"))
        known, losses = found.steps.numpy(), found.losses[side].mean.numpy()
        with np.errstate(divide="ignore"):
            targets = np.exp(np.interp(places, known, np.log(losses)))
        return cls(forecasts, sgd, other, side, steps.tolist(), targets)

    def outcome(self) -> BatchScaling:
        lr, batch = self.reference.lr_at(0), self.other.batch_size_at(0)
        ratio = batch / self.reference.batch_size_at(0)
        rules = {name: lr * ratio**power for name, power in RULES.items()}
        limit = self.forecasts.limit(self.other, self.record[-1])
        is_bound = self.forecasts.has_limit and not self.forecasts.moves_kernel
        highest = REACH * max(rules.values())
        if is_bound:
            highest = min(highest, STABLE_SHARE * limit)
        first = np.geomspace(min(min(rules.values()), highest) / REACH, highest, self._points).tolist()
        first += [rate for rate in rules.values() if rate <= highest]
        basins = 1 if self.forecasts.moves_kernel else BASINS
        rates, mismatches = refined(
            self.mismatches, first, rounds=self._rounds, points=REFINED, extend=False, basins=basins
        )
        at = int(mismatches.argmin())
        told = {}
        for name, rate in rules.items():
            past = is_bound and rate > limit
            known = {**dict(zip(rates.tolist(), mismatches.tolist()))}
            mismatch = math.inf if past else known[rate] if rate in known else self.mismatches([rate])[0]
            told[name] = RuleOutcome(rate, mismatch, rate <= limit)
        return BatchScaling(batch, self.record[-1], float(rates[at]), float(mismatches[at]), limit, told)

    @property
    def _points(self) -> int:
        return POINTS_MOVING if self.forecasts.moves_kernel else POINTS

    @property
    def _rounds(self) -> int:
        return ROUNDS_MOVING if self.forecasts.moves_kernel else ROUNDS

    def mismatches(self, rates: Sequence[float]) -> list[float]:
        sgds = [replace(self.other, lr=rate) for rate in rates]
        return [self._mismatch(found) for found in self.forecasts.predict(sgds, self.record[-1], self.record)]

    def _mismatch(self, found: Trajectory | None) -> float:
        if found is None:
            return math.inf
        losses = found.losses[self.side].mean.numpy()
        equal = losses == self.targets
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(equal, 1.0, losses / self.targets)
        return float(np.abs(ratio - 1).max()) if np.isfinite(ratio).all() else math.inf
