"""Checks and advice in words: each number of the evidence against its threshold."""

from __future__ import annotations

import math

from sgdsde.comparison import TOLERANCE as SDE_TOLERANCE
from sgdsde.diagnosis import calibration, indicators
from sgdsde.diagnosis.evidence import Evidence
from sgdsde.diagnosis.result import Advice, Check, Grade
from sgdsde.regimes import gradient_confusion


def checks(found: Evidence, tolerance: float) -> dict[str, Check]:
    """Every check by name; ``tolerance`` is the relative error of the training loss that is asked for."""
    made = [_stability(found), _kernel_drift(found), _laziness(found), _noise_scale(found)]
    made += [_confusion(found), _feedback(found, tolerance), _linearization(found, tolerance), _sde(found)]
    return {check.name: check for check in made}


def summary(found: Evidence, advice: Advice, tolerance: float) -> str:
    """The advice in one sentence, with the error to expect of each kernel."""
    frozen, moving = _percent(found.frozen_error), _percent(found.moving_error)
    errors = f"error to expect: {frozen} with a frozen kernel, {moving} with a moving one"
    said = {
        Advice.FROZEN_KERNEL: f"Predict with {found.frozen_theory!r}: the kernel may be frozen",
        Advice.MOVING_KERNEL: "Predict with MovingKernel(): the kernel moves too much to be frozen",
        Advice.MEASURE: f"Measure: no prediction is expected within {100 * tolerance:g} %",
    }
    return f"{said[advice]}; {errors}."


def _stability(found: Evidence) -> Check:
    ratio, bound = found.limit_ratio, calibration.SHARE_OF_LIMIT
    source = "1 is the limit of the linearized SGD; beyond 0.6 fluctuations amplify what a moving kernel leaves out"
    sentence = f"lr is {ratio:.2g} of the largest that is stable in mean square along the path"
    if math.isnan(ratio):
        said = "no limit: the loss is not curved upwards at the outputs"
        return Check("stability", ratio, bound, source, Grade.CAUTION, said)
    if found.is_past_limit:
        return Check("stability", ratio, bound, source, Grade.BAD, sentence + ": the expected loss grows")
    return _graded("stability", ratio, bound, source, sentence, beyond="errors are amplified")


def _kernel_drift(found: Evidence) -> Check:
    bound, source = (
        calibration.DRIFT_CUT,
        "best single cut between frozen kernels within 5 % and others (calibration)",
    )
    if isinstance(found.path, str):
        return Check("kernel_drift", math.inf, bound, source, Grade.BAD, found.path)
    drift = found.path.drift
    sentence = f"the kernel moves by {100 * drift:.2g} % along full-batch descent"
    if drift > calibration.DRIFT_MEASURED:
        return Check("kernel_drift", drift, bound, source, Grade.BAD, sentence + ", more than was ever measured")
    return _graded("kernel_drift", drift, bound, source, sentence, beyond="a frozen kernel is late off by more")


def _laziness(found: Evidence) -> Check:
    value = indicators.laziness(found.linearization)
    sentence = f"on its way to the targets the Jacobian changes by about {value:.2g} of itself"
    source = "best single cut between frozen kernels within 5 % and others (calibration); lazy training needs << 1"
    return _graded("laziness", value, calibration.LAZINESS_CUT, source, sentence, beyond="features are learned")


def _noise_scale(found: Evidence) -> Check:
    value = indicators.noise_ratio(found.linearization, found.sgd)
    source = "at 1 noise and mean of the first gradient are equally large (McCandlish et al.)"
    sentence = f"the first gradient's variance is {value:.2g} of its squared mean"
    return _graded("noise_scale", value, 1.0, source, sentence, beyond="gradient descent says little of this SGD")


def _confusion(found: Evidence) -> Check:
    source = "at 1 a step on one example raises another's loss by as much as an average step lowers its own"
    if found.linearization.problem.n_train < 2:
        return Check("confusion", math.nan, 1.0, source, Grade.GOOD, "a single example confuses none")
    confusion = gradient_confusion(found.linearization)
    value = confusion.bound / confusion.mean_square if confusion.mean_square > 0 else 0.0
    beyond = "small batches undo each other's steps"
    return _graded("confusion", value, 1.0, source, confusion.sentence, beyond=beyond)


def _feedback(found: Evidence, tolerance: float) -> Check:
    bound = calibration.feedback_at(tolerance)
    source = f"where {calibration.MOVING_SCALE:g} x^{calibration.MOVING_POWER:g}, the fit of the moving kernel's "
    source += f"errors, is {100 * tolerance:g} %"
    sentence = f"noise is up to {100 * found.noise_share:.2g} % of the expected loss, and moves a kernel that moves"
    return _graded(
        "feedback", found.feedback, bound, source, sentence, beyond="the mean path no longer follows full batches"
    )


def _linearization(found: Evidence, tolerance: float) -> Check:
    source = "the tolerance asked for"
    sentence = f"letting the kernel move changes the expected loss by up to {100 * found.kernel_gap:.2g} %"
    losses, said = found.moving
    if said:
        sentence += f" (of full batches alone; {said})" if losses is None else f" ({said})"
    return _graded("linearization", found.kernel_gap, tolerance, source, sentence, beyond="let it move")


def _sde(found: Evidence) -> Check:
    if found.is_past_limit:
        said = "not compared past the mean-square limit"
        return Check("sde", math.nan, SDE_TOLERANCE, "the tolerance of compare", Grade.BAD, said)
    value = indicators.sde_error(found.frozen_losses, found.linearization, found.sgd, found.record)
    source = "the tolerance of compare"
    if math.isnan(value):
        said = "shuffled epochs have no SDE" if found.sgd.sampling == "shuffled" else "no curvature to tell by"
        return Check("sde", value, SDE_TOLERANCE, source, Grade.CAUTION, said)
    sentence = f"the SDE's expected loss is off from that of SGD by up to {100 * value:.2g} %"
    return _graded("sde", value, SDE_TOLERANCE, source, sentence, beyond="predict in steps, not in time")


def _graded(name: str, value: float, bound: float, source: str, sentence: str, *, beyond: str) -> Check:
    if value <= bound:
        return Check(name, value, bound, source, Grade.GOOD, sentence)
    return Check(name, value, bound, source, Grade.CAUTION, f"{sentence}: {beyond}")


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if math.isfinite(error) else "none given"
