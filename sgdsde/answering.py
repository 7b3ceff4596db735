"""One call for the expected loss: by theory where that is cheap and good enough, by real runs where it is not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._types import Progress
from sgdsde.advice import Advice
from sgdsde.frozen_kernel import kernel_motion
from sgdsde.linearization import as_linearization
from sgdsde.measurement import NORMAL, Asked, MeasurementWarning, RealRuns, clock, complete, plain_seconds
from sgdsde.measurement.operations import Operations, forward_operations
from sgdsde.prediction import predict
from sgdsde.problem import Problem, check_training
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd
from sgdsde.stability import UnstableWarning
from sgdsde.surface import EnsembleSurface
from sgdsde.trajectory import Trajectory

FIRST_RUNS, FEWEST, MOST_RUNS = 8, 4, 4096
"""Runs of the first batch, the fewest that tell a spread, and the most."""

PATH_PASSES = 24 * 4
"""Passes over the training set of the short full-batch path: 24 steps, each one backward and two forward."""

UNCERTAIN = 2.5
"""Factor by which the error of a frozen kernel was above or below gap / share on the seven networks of the table."""


def answer(
    problem: Problem,
    sgd: SGD,
    n_steps: int,
    *,
    tolerance: float = 0.05,
    budget: float | None = None,
    advice: Advice | None = None,
    seed: int = 0,
    record: Sequence[int] | None = None,
    progress: Progress = None,
) -> Trajectory:
    """The expected loss within a tolerance, in the cheapest way that is trusted.

    A prediction with the frozen kernel where its operations are fewer than those of eight runs and a short path of the
    network keeps it below the tolerance; otherwise real runs until 1.96 standard errors are within the tolerance.

    Args:
        tolerance: relative error of the mean loss, train and test, at every recorded step.
        budget: most processor time to spend, in plain runs of ``torch.optim.SGD``; default none.
        advice: follow this instead of finding out.
        seed, record, progress: as in ``measure``.
    Returns:
        A ``Trajectory`` whose ``origin`` is "predicted", "measured" or "interpolated", whose ``obtained`` says how and
        why in words, and whose ``effort`` holds "cost_in_runs", "tolerance" and "expected_error".
    Raises:
        ValueError: a budget of fewer than four runs, which tell nothing of their spread.
    Warns:
        MeasurementWarning: the budget ended before the tolerance was reached (with the standard error that was), or the
            first runs alone cost more; what ``measure`` warns of.
    Exactness: of a measurement that of ``measure``. The error to expect of a prediction is read off seven networks.
    Cost: never a prediction that costs more than the first eight runs; then those of ``measure``.
    """
    tolerance, n_steps = positive_number("tolerance", tolerance), whole_number("n_steps", n_steps, minimum=1)
    steps = recorded_steps(n_steps, record).tolist()
    check_sgd(sgd)
    if not isinstance(problem, Problem):
        raise TypeError(complaint("problem", "a Problem", type(problem).__name__, "use sgdsde.Problem(model, ...)"))
    if advice is not None and not isinstance(advice, Advice):
        raise TypeError(complaint("advice", "an Advice", type(advice).__name__, "omit it"))
    if budget is not None and positive_number("budget", budget) < FEWEST:
        received = f"{budget:g} runs"
        raise ValueError(complaint("budget", f"at least {FEWEST} runs, which tell their spread", received, "raise it"))
    check_training(problem, sgd)
    question = _Question(problem, sgd, n_steps, steps, tolerance, budget, seed, progress, clock(problem.device))
    predicted = None
    if advice is None:
        advice, predicted = question.advise()
    made = question.follow(advice, predicted)
    effort = dict(made.effort) | {"tolerance": tolerance}
    if budget is not None and effort["cost_in_runs"] > budget:
        message = f"the answer cost {effort['cost_in_runs']:.2g} plain runs, above the budget of {budget:g}"
        warnings.warn(message, MeasurementWarning, stacklevel=2)
    return replace(made, obtained=f"{made.obtained}; {advice.reason}".removesuffix("; "), effort=effort)


@dataclass(frozen=True)
class _Question:
    problem: Problem
    sgd: SGD
    n_steps: int
    record: list[int]
    tolerance: float
    budget: float | None
    seed: int
    progress: Progress
    start: float

    def advise(self) -> tuple[Advice, Trajectory | None]:
        """The cheapest way that is trusted, and the prediction where it was made to find out."""
        problem, sgd = self.problem, self.sgd
        count = Operations.of(problem, sgd, self.n_steps, len(self.record))
        path = PATH_PASSES * problem.n_train * forward_operations(problem)
        plain = forward_operations(problem) * 3 * float(sgd.plan(problem.n_train, self.n_steps).batch_size.sum())
        price, runs = (count.theory + path) / plain, FIRST_RUNS * count.run / plain
        if price > min(runs, math.inf if self.budget is None else self.budget):
            reason = (
                f"a prediction takes the operations of {price:.2g} runs, {FIRST_RUNS} real runs those of {runs:.2g}"
            )
            return self._measure(reason), None
        predicted, error, reason = self._prediction()
        if predicted is None or UNCERTAIN * error > self.tolerance:
            return self._measure(reason), None
        interval = (error / UNCERTAIN, UNCERTAIN * error)
        theory = predicted.dynamics
        return Advice("predict", None, None, error, interval, price, f"by {theory}, because {reason}"), predicted

    def follow(self, advice: Advice, predicted: Trajectory | None) -> Trajectory:
        """What the advice says, done; runs of the setting itself where a surface refuses."""
        if advice.kind == "predict":
            return self._predicted(advice, predicted)
        if advice.kind == "surface":
            surface = EnsembleSurface.fit(
                self.problem, self.sgd, self.n_steps, n_runs=advice.n_runs, seed=self.seed, progress=self.progress
            )
            if surface.refusal:
                return self._measured(replace(advice, n_runs=None))
            found = surface.at(self.sgd)
            return replace(found, effort=dict(found.effort) | {"expected_error": advice.expected_error})
        return self._measured(advice)

    def _measure(self, reason: str) -> Advice:
        error = self.tolerance
        return Advice("measure", None, None, error, (0.0, error), float(FIRST_RUNS), reason)

    def _prediction(self) -> tuple[Trajectory | None, float, str]:
        """The prediction of the frozen kernel, the error to expect of it, and both in words."""
        try:
            linearization = as_linearization(self.problem, sgd=self.sgd, progress=self.progress)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UnstableWarning)
                predicted = predict(linearization, self.sgd, self.n_steps, record=self.record, progress=self.progress)
        except UnstableWarning:
            return None, math.inf, "the learning rate lies past the limit of the initial kernel"
        except (ValueError, TypeError, NotImplementedError, MemoryError) as refused:
            return None, math.inf, f"there is no prediction: {refused}"
        motion = kernel_motion(linearization, self.sgd, predicted)
        if motion is None:
            return predicted, 0.0, "nothing moves"
        error = math.inf if motion.is_large else motion.gap / motion.share
        noise = float((predicted.train_loss.standard_error / predicted.train_loss.mean).max())
        return predicted, error + NORMAL * noise, motion.sentence

    def _predicted(self, advice: Advice, predicted: Trajectory | None) -> Trajectory:
        how = "predicted" if predicted is None else "predicted, without a run"  # advice may have taken some
        if predicted is None:
            words = {"dynamics": advice.dynamics, "record": self.record, "progress": self.progress}
            predicted = predict(self.problem, self.sgd, self.n_steps, **words)  # type: ignore[arg-type]
        cost = (clock(self.problem.device) - self.start) / self._unit()
        low, high = (100 * bound for bound in advice.interval)
        obtained = f"{how}: error to expect {100 * advice.expected_error:.2g} % ({low:.2g} to {high:.2g} %)"
        effort = {"cost_in_runs": cost, "expected_error": advice.expected_error}
        return replace(predicted, obtained=f"{obtained}, cost of {cost:.2g} plain runs", effort=effort)

    def _measured(self, advice: Advice) -> Trajectory:
        runs = RealRuns(self.problem, self.sgd, self.n_steps, self.record, self.seed, progress=self.progress)
        first = FIRST_RUNS if advice.n_runs is None else max(advice.n_runs, FEWEST)
        runs.extend(first if self.budget is None else min(first, int(self.budget)))
        most, remedy = MOST_RUNS, f"raise tolerance={self.tolerance:g}"
        if self.budget is not None:
            spent = (clock(self.problem.device) - self.start) / self._unit()
            most = max(runs.count, min(most, int(runs.count * self.budget / spent)))
            remedy = f"raise budget={self.budget:g}, or tolerance={self.tolerance:g}"
        made = complete(runs, Asked(self.tolerance / NORMAL, most, remedy=remedy), self.start)
        return replace(
            made, effort=dict(made.effort) | {"expected_error": NORMAL * made.effort["relative_standard_error"]}
        )

    def _unit(self) -> float:
        return plain_seconds(self.problem, self.sgd, self.n_steps)
