"""The diagnosis of a problem and its SGD, from evidence to advice."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import SharedBar, announced
from sgdsde._types import Progress
from sgdsde.diagnosis.evidence import Evidence, diagnosis_cost
from sgdsde.diagnosis.result import Advice, Diagnosis
from sgdsde.diagnosis.wording import checks, summary
from sgdsde.dynamics import Dynamics, MovingKernel
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, check_sgd


def diagnose(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    tolerance: float = 0.05,
    record: Sequence[int] | None = None,
    progress: Progress = None,
) -> Diagnosis:
    """Diagnosis without a measured run: which prediction to trust, and the error to expect of it.

    Args:
        n_steps: how long it is trained: kernels drift and losses fall with the steps.
        tolerance: relative error of the training loss that is asked for, at every recorded step.
        record: as in ``predict``. progress: as in ``predict``; one bar, which ends with the diagnosis.
    Returns:
        A ``Diagnosis`` with checks ``stability``, ``kernel_drift``, ``laziness``, ``noise_scale``, ``confusion``,
        ``feedback``, ``linearization``, ``sde``; each has its number, threshold, source of the threshold, grade and
        sentence.
    Exactness: calibrated, not derived: the errors to expect are those that nine of ten settings stayed below, on small
        networks and digits (docs/diagnosis.md, where it is checked on other settings).
    Cost: the predictions of the frozen and of the moving kernel and of the SDE, a full-batch gradient a step, and three
        kernels.
    """
    n_steps = whole_number("n_steps", n_steps, minimum=1)
    tolerance = positive_number("tolerance", tolerance)
    steps = recorded_steps(n_steps, record).tolist()
    if steps[-1] == 0:
        raise ValueError(complaint("record", "with a step after 0", steps, "omit it for about 50 geometric steps"))
    check_sgd(sgd)
    linearization = as_linearization(problem_or_linearization, sgd=sgd, progress=progress)
    cost = diagnosis_cost(linearization, sgd, steps)
    bar = SharedBar(announced(cost.stage, progress, cost.run_seconds), cost.parts, "diagnosis")
    found = Evidence(linearization, sgd, steps, bar)
    made = checks(found, tolerance)
    advice = _advice(found, tolerance)
    predictors: dict[Advice, Dynamics] = {
        Advice.FROZEN_KERNEL: found.frozen_theory,
        Advice.MOVING_KERNEL: MovingKernel(),
    }
    diagnosis = Diagnosis(
        checks=made,
        advice=advice,
        predictor=predictors.get(advice),
        frozen_error=found.frozen_error,
        moving_error=found.moving_error,
        tolerance=tolerance,
        sentence=summary(found, advice, tolerance),
        steps=torch.tensor(steps),
        frozen_losses=found.frozen_losses,
        moving_losses=found.moving[0],
    )
    bar.close()
    return diagnosis


def _advice(found: Evidence, tolerance: float) -> Advice:
    """The cheaper dynamics whose error to expect is within the tolerance."""
    if found.frozen_error <= tolerance:
        return Advice.FROZEN_KERNEL
    return Advice.MOVING_KERNEL if found.moving_error <= tolerance else Advice.MEASURE
