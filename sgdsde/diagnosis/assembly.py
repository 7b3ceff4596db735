"""The diagnosis of a problem and its SGD, from a few runs to advice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import SharedBar, StageCost, announced
from sgdsde._types import Progress
from sgdsde.diagnosis.expected_errors import frozen_error, moving_error
from sgdsde.diagnosis.options import Costs, advised, options
from sgdsde.diagnosis.pilot import MANY, fly
from sgdsde.diagnosis.result import Diagnosis
from sgdsde.diagnosis.sample import Sample
from sgdsde.diagnosis.wording import checks, summary
from sgdsde.linearization import Linearization, problem_of
from sgdsde.machine import step_seconds
from sgdsde.measurement import clock
from sgdsde.problem import Problem, check_training
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd

RECORDED = 16
"""Steps at which losses are compared unless others are asked for."""

MOST_COST = 10
"""Plain runs that a diagnosis takes, about, at most."""

PARTS = {"network": 6.0, "linearized model": 2.0, "checks": 2.0}
"""Parts of the work by their shares."""


def diagnose(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    tolerance: float = 0.05,
    n_settings: int = 1,
    record: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress = None,
) -> Diagnosis:
    """Diagnosis by a few real runs: which prediction to trust, its error and its cost, or how many runs to measure.

    Args:
        n_steps: how long it is trained: kernels drift and losses fall with the steps.
        tolerance: relative error of the mean training loss that is asked for, at every recorded step.
        n_settings: how many settings (lr, B) like this one are to be known; from two on, anchors may be advised.
        record: steps at which losses are compared; default about 16, geometric.
        seed: of the pilot's batches, which are not those of ``run_ensemble`` with small seeds. progress: as in
            ``predict``; one bar, which ends with the diagnosis.
    Returns:
        A ``Diagnosis``: options with error, interval and cost, one of them advised; checks ``stability``,
        ``kernel_drift``, ``laziness``, ``noise_scale``, ``confusion``, ``spread``, ``linearization``, ``sde``.
    Exactness: the error of the frozen kernel is measured, on 2 to 16 pairs of runs of network and linearized model on
        the same batches; that of the moving kernel is calibrated on everyday settings (docs/diagnosis.md). Checks and
        limits look at no more than 128 outputs. The test loss is not diagnosed.
    Cost: about ten plain runs, of which the result says how many it took; kernels of at most 128 outputs.
    """
    n_steps = whole_number("n_steps", n_steps)
    tolerance, n_settings = positive_number("tolerance", tolerance), whole_number("n_settings", n_settings, minimum=1)
    steps = _steps(n_steps, record)
    check_sgd(sgd)
    problem = problem_of(problem_or_linearization)
    check_training(problem, sgd)
    begun = clock(problem.device)
    bar = SharedBar(announced(diagnosis_cost(problem, sgd, n_steps), progress), PARTS, "diagnosis")
    sample = Sample.of(problem)
    pilot = fly(problem_or_linearization, sample, sgd, steps, seed=whole_number("seed", seed), bar=bar)
    frozen = frozen_error(pilot)
    moving = moving_error(pilot, frozen)
    costs = Costs.of(problem_or_linearization, sgd, steps, pilot.run_seconds)
    found = options(problem, sgd, pilot, (frozen, moving), costs, tolerance=tolerance, n_settings=n_settings)
    best = advised(found, tolerance)
    made = checks(sample, pilot, frozen, sgd, tolerance=tolerance)
    sentence = summary(found, best, tolerance, pilot)
    bar.close()
    return Diagnosis(
        options=tuple(found),
        best=best,
        checks=made,
        tolerance=tolerance,
        sentence=sentence,
        steps=torch.tensor(steps),
        measured=pilot.real.mean(0),
        linearized=pilot.linear.mean(0),
        n_pairs=len(pilot.real),
        spread=pilot.spread,
        cost=(clock(problem.device) - begun) / pilot.run_seconds,
    )


def diagnosis_cost(problem: Problem, sgd: SGD, n_steps: int) -> StageCost:
    """The cost to expect of a diagnosis, from a forward pass of a batch."""
    seconds = MOST_COST * n_steps * step_seconds(problem, sgd.batch_size_at(0), n_steps)
    size = sum(value.numel() * value.element_size() for value in problem.params.values())
    return StageCost("diagnosis", seconds, 5 * MANY * size)


def _steps(n_steps: int, record: Sequence[int] | None) -> list[int]:
    if record is None:
        record = sorted(
            {0, *np.rint(np.geomspace(1, max(n_steps, 1), RECORDED)).astype(int).tolist()} & {*range(n_steps + 1)}
        )
    steps: list[int] = recorded_steps(n_steps, record).tolist()
    if steps[-1] == 0:
        raise ValueError(complaint("record", "with a step after 0", steps, "omit it for about 16 geometric steps"))
    return steps if steps[0] == 0 else [0, *steps]
