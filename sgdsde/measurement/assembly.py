"""Real runs in batches until the standard error of the mean loss meets a target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number, word
from sgdsde._types import Observable, Progress
from sgdsde.bands import LossBand
from sgdsde.measurement.control import LinearizedControl
from sgdsde.measurement.estimate import MeanLoss, chance_of_share, dominated, plain_mean
from sgdsde.measurement.operations import Operations
from sgdsde.measurement.plain_run import clock, plain_seconds
from sgdsde.measurement.runs import RealRuns, samples
from sgdsde.problem import Problem, check_training
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.sgd import SGD, check_sgd
from sgdsde.trajectory import Trajectory

Control: TypeAlias = Literal["auto", "always", "never"]

MOST_RUNS, FIRST_RUNS = 1024, 8
"""Runs at most, and runs of the first batch: fewer do not tell their own spread."""

GROWTH = 4
"""Factor by which a batch may at most multiply the runs done, so that a spread of chance is not trusted far."""

WORTH_A_LOOK = 0.5
"""Share of the operations still expected of plain runs that may be spent on finding out whether a control pays."""

SHARE, CHANCE = 0.5, 1e-4
"""One run that makes more than this share of the variance, at a chance below this among normal numbers, is named."""


class MeasurementWarning(UserWarning):
    """A measured mean that is less certain than was asked for, or than its standard error says."""


def measure(
    problem: Problem,
    sgd: SGD,
    n_steps: int,
    *,
    target: float = 0.03,
    max_runs: int = MOST_RUNS,
    min_runs: int = FIRST_RUNS,
    control: Control = "auto",
    seed: int = 0,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    memory: int | None = None,
    progress: Progress = None,
) -> Trajectory:
    """The mean loss of real runs of minibatch SGD, as many as a stated standard error takes.

    Runs are done in batches until the relative standard error of the mean loss, times t / 1.96 (the quantile of
    Student's law for the runs done), is at most ``target`` at every recorded step, train and test. Where it is expected
    to take fewer operations, the linearized run of the same batches serves as control variate.

    Args:
        target: relative standard error of the mean loss at the worst recorded step.
        max_runs: cap on the runs; ends with a warning that says which standard error was reached.
        min_runs: runs of the first batch, 4 or more.
        control: ``"auto"``: where counted operations say that it pays. ``"always"``, ``"never"``.
        seed, record, observe, memory, progress: as in ``run_ensemble``, whose first ``min_runs`` runs are the first
            batch; later batches have seeds of their own.
    Returns:
        A measured ``Trajectory``. ``std`` and ``samples`` are those of the real runs; with a control ``mean`` and
        ``standard_error`` are those of the controlled estimate, which is not the mean of the samples.
        ``effort``: "n_runs"; "runs_saved", plain runs of the same standard error less those done; "target";
        "relative_standard_error" reached (times t / 1.96); "cost_in_runs", processor time in plain runs of
        ``torch.optim.SGD`` without evaluations of the loss, measured, the one number that a seed does not fix.
        ``obtained`` says it in words.
    Warns:
        MeasurementWarning: the target was not reached; runs diverged (their mean is infinite, and the target holds for
            the steps before); one run makes most of the variance of a step, where a standard error says little.
    Exactness: unbiased runs; stopping by the sample's own spread makes 95 % intervals, mean +- 1.96 standard errors
        times t / 1.96, hold in 92 to 96 % of repeated measurements in what was tried (docs/measuring.md).
    Cost: the runs; see ``run_ensemble``.
    """
    asked = Asked(positive_number("target", target), whole_number("max_runs", max_runs, minimum=1), control)
    n_steps = whole_number("n_steps", n_steps)
    min_runs = min(whole_number("min_runs", min_runs, minimum=4), asked.max_runs)
    word("control", control, get_args(Control))
    record = recorded_steps(n_steps, record).tolist()
    check_observables(observe)
    check_sgd(sgd)
    if not isinstance(problem, Problem):
        remedy = "use sgdsde.Problem(model, ...), or run_ensemble for runs of a linearized model"
        raise TypeError(complaint("problem", "a Problem", type(problem).__name__, remedy))
    check_training(problem, sgd)
    start = clock(problem.device)
    runs = RealRuns(problem, sgd, n_steps, record, whole_number("seed", seed), observe, memory, progress)
    runs.extend(min_runs)
    return complete(runs, asked, start)


@dataclass(frozen=True)
class Asked:
    """What a measurement is to reach, and at most how.

    Attributes:
        remedy: what to do where the target is not reached.
    """

    target: float
    max_runs: int
    control: Control = "auto"
    remedy: str = "raise max_runs, or the target"


def complete(runs: RealRuns, asked: Asked, start: float) -> Trajectory:
    """The measurement that begins with the runs done so far; ``start``: the clock when it began."""
    search = _Search(runs, asked)
    while search.reached > asked.target and runs.count < asked.max_runs:
        search.consider_control()
        if search.reached <= asked.target:
            break
        runs.extend(min(search.needed(), GROWTH * runs.count, asked.max_runs) - runs.count)
        search.renew()
    return _result(search, asked, start)


class _Search:
    """The estimate so far, plain or controlled."""

    def __init__(self, runs: RealRuns, asked: Asked) -> None:
        self.runs, self.asked = runs, asked
        self.control: LinearizedControl | None = None
        self.undecided, self.refusal = asked.control != "never", ""
        self.renew()

    @property
    def sides(self) -> list[str]:
        return list(self.runs.parts[0].losses)

    def renew(self) -> None:
        """Estimate again, from all runs."""
        self.plain = {side: plain_mean(samples(self.runs.parts, side)) for side in self.sides}
        self.means = self.plain
        if self.control is not None:
            self.means = {side: self.control.mean(side) for side in self.sides}
        self.reached = worst(self.means)

    def needed(self) -> int:
        """Runs that the target is expected to take."""
        return runs_for(self.runs.count, self.reached, self.asked.target)

    def consider_control(self) -> None:
        """Take the linearized runs as control where they save more operations than they cost."""
        if not self.undecided:
            return
        self.undecided = False
        runs, always = self.runs, self.asked.control == "always"
        cost = Operations.of(runs.problem, runs.sgd, runs.n_steps, len(runs.record))
        plainly = min(self.needed(), self.asked.max_runs) - runs.count
        if not always and cost.theory + runs.count * cost.linear_run > WORTH_A_LOOK * plainly * cost.run:
            return
        try:
            self.control = LinearizedControl(runs, runs.progress)
        except (ValueError, TypeError, NotImplementedError, MemoryError) as error:
            if always:
                raise
            self.refusal = str(error)
            return
        self.renew()
        further = max(self.needed() - runs.count, 0)
        if not always and further * (cost.run + cost.linear_run) >= plainly * cost.run:
            self.control = None
            self.renew()


def runs_for(done: int, reached: float, target: float) -> int:
    """Runs expected to bring a relative standard error from ``reached`` to ``target``, at least one more."""
    wanted = done * (reached / target) ** 2
    return max(done + 1, math.ceil(min(wanted, 2.0**40)))


def worst(means: dict[str, MeanLoss]) -> float:
    """The largest relative standard error over steps and sides, steps that a run did not reach left out."""
    relative = torch.cat([mean.relative for mean in means.values()])
    known = relative[torch.isfinite(torch.cat([mean.mean for mean in means.values()]))]
    return float(known.max()) if len(known) else 0.0


def _result(search: _Search, asked: Asked, start: float) -> Trajectory:
    runs, made = search.runs, search.runs.trajectory()
    bands = {side: _band(made.losses[side], mean) for side, mean in search.means.items()}
    plain = worst(search.plain)
    saved = max(round(runs.count * ((plain / search.reached) ** 2 - 1)), 0) if search.control and search.reached else 0
    spent = clock(runs.problem.device) - start
    effort = {
        "n_runs": float(runs.count),
        "runs_saved": float(saved),
        "target": asked.target,
        "relative_standard_error": search.reached,
        "cost_in_runs": spent / plain_seconds(runs.problem, runs.sgd, max(runs.n_steps, 1)),
    }
    obtained = f"measured: {runs.count} real runs, standard error {100 * search.reached:.2g} % at the worst step"
    if search.control is not None:
        obtained += f" with linearized runs of the same batches as control, which saved {saved} runs"
    obtained += f"; cost of {effort['cost_in_runs']:.2g} plain runs"
    made = replace(made, train_loss=bands["train"], test_loss=bands.get("test"), obtained=obtained, effort=effort)
    for message in _doubts(search, asked, made):
        warnings.warn(message, MeasurementWarning, stacklevel=4)
    return made


def _band(band: LossBand, mean: MeanLoss) -> LossBand:
    return LossBand(mean.mean, band.std, mean.standard_error, band.samples)


def _doubts(search: _Search, asked: Asked, made: Trajectory) -> list[str]:
    found: list[str] = []
    lost: Tensor = made.diverged_at <= search.runs.n_steps
    if lost.any():
        first = int(made.diverged_at.min())
        found.append(
            f"{int(lost.sum())} of {made.n_runs} runs diverged, the first at step {first}: the mean loss is infinite "
            "from there on, and standard errors hold for the steps before. Use a smaller lr, or medians "
            "(.train_loss.quantile(0.5)), which stay finite"
        )
    if search.reached > asked.target:
        needed = runs_for(made.n_runs, search.reached, asked.target)
        found.append(
            f"the standard error of the mean loss is {100 * search.reached:.2g} % at the worst step after "
            f"{made.n_runs} runs, above the target of {100 * asked.target:.2g} %: about {needed} runs would reach it; "
            f"{asked.remedy}"
        )
    for side in search.sides:
        losses = samples(search.runs.parts, side)
        matters = plain_mean(losses).relative > asked.target / 2
        share, run, column = dominated(torch.where(matters, losses, 0.0))
        if share > SHARE and chance_of_share(share, made.n_runs) < CHANCE:
            found.append(
                f"run {run} makes {100 * share:.0f} % of the variance of the {side} loss of {made.n_runs} runs at step "
                f"{int(made.steps[column])}: with tails that heavy the standard error of a mean says little; look at "
                "quantiles, or measure with a smaller target"
            )
    return found
