"""Checks and advice in words: each number of the evidence against its threshold."""

from __future__ import annotations

import math

from sgdsde.diagnosis import calibration, indicators
from sgdsde.diagnosis.expected_errors import ExpectedError
from sgdsde.diagnosis.pilot import Pilot
from sgdsde.diagnosis.result import Advice, Check, Grade, Option
from sgdsde.diagnosis.sample import Sample
from sgdsde.losses import SquaredError
from sgdsde.regimes import gradient_confusion
from sgdsde.sgd import SGD

SDE_TOLERANCE = 0.03
"""Relative error of the fastest rate from which steps and time are worth telling apart."""


def checks(sample: Sample, pilot: Pilot, frozen: ExpectedError, sgd: SGD, *, tolerance: float) -> dict[str, Check]:
    """Every check by name; ``tolerance`` is the relative error of the training loss that is asked for."""
    made = [_stability(sample, pilot), _kernel_drift(pilot), _laziness(sample), _noise_scale(sample, sgd)]
    made += [_confusion(sample), _spread(pilot, tolerance), _linearization(frozen, pilot, tolerance)]
    made.append(_sde(sample, sgd, pilot.steps[-1]))
    return {check.name: check for check in made}


def summary(options: list[Option], best: Option, tolerance: float, pilot: Pilot) -> str:
    """The advice in one sentence, with the error to expect of each kernel."""
    frozen, moving = options[0].error, options[1].error
    errors = f"error to expect: {frozen} with a frozen kernel, {moving} with a moving one"
    cost = f"{best.cost:.2g} plain runs"
    if pilot.n_diverged:
        share = f"{pilot.n_diverged} of {len(pilot.real)} runs of the network diverged within {pilot.steps[-1]} steps"
        return (
            f"Take a smaller learning rate: {share}, so the mean loss is infinite. A measurement shows when they fail."
        )
    said = {
        Advice.FROZEN_KERNEL: f"Predict with {best.dynamics!r}, for {cost}: the kernel may be frozen",
        Advice.MOVING_KERNEL: f"Predict with {best.dynamics!r}, for {cost}: the kernel moves too much to be frozen",
        Advice.INTERPOLATE: f"Measure {best.n_runs} runs at anchors and interpolate between them, for {cost}",
        Advice.MEASURE: f"Measure {best.n_runs} runs, for {cost}: " + _why_measured(options, tolerance),
    }
    return f"{said[best.advice]}; {errors}."


def _why_measured(options: list[Option], tolerance: float) -> str:
    if any(each.dynamics is not None and each.error.high <= tolerance for each in options):
        return f"a prediction within {100 * tolerance:g} % costs more"
    return f"no prediction is sure to be within {100 * tolerance:g} %"


def _stability(sample: Sample, pilot: Pilot) -> Check:
    ratio, bound = pilot.limit_ratio, calibration.SHARE_OF_LIMIT
    source = "1 is the limit of SGD linearized there; beyond 0.6 fluctuations amplify what a moving kernel leaves out"
    sentence = f"lr is {ratio:.2g} of the largest that is stable in mean square, at the worst of the start and a run"
    if math.isnan(ratio):
        said = "no limit: the loss is not curved upwards at the outputs"
        return Check("stability", ratio, bound, source, Grade.CAUTION, said)
    if ratio >= 1 and isinstance(sample.whole.criterion, SquaredError):
        sentence += ": the expected loss grows while the kernel stays, a kernel that moves may still train"
        return Check("stability", ratio, bound, source, Grade.BAD, sentence)
    return _graded("stability", ratio, bound, source, sentence, beyond="errors are amplified")


def _kernel_drift(pilot: Pilot) -> Check:
    bound = calibration.DRIFT_CUT
    source = "best single cut between frozen kernels within 5 % and others (calibration)"
    if not math.isfinite(pilot.drift):
        said = "the run along which the kernel was looked at has diverged"
        return Check("kernel_drift", pilot.drift, bound, source, Grade.BAD, said)
    sentence = f"the kernel moves by {100 * pilot.drift:.2g} % along one run"
    if pilot.drift > calibration.DRIFT_MEASURED:
        said = sentence + ", more than any moving kernel was held against"
        return Check("kernel_drift", pilot.drift, bound, source, Grade.BAD, said)
    return _graded("kernel_drift", pilot.drift, bound, source, sentence, beyond="a frozen kernel is late off by more")


def _laziness(sample: Sample) -> Check:
    value = indicators.laziness(sample.linearization)
    sentence = f"on its way to the targets the Jacobian changes by about {value:.2g} of itself"
    source = "best single cut between frozen kernels within 5 % and others (calibration); lazy training needs << 1"
    return _graded("laziness", value, calibration.LAZINESS_CUT, source, sentence, beyond="features are learned")


def _noise_scale(sample: Sample, sgd: SGD) -> Check:
    value = sample.noise_ratio(sgd)
    source = "at 1 noise and mean of the first gradient are equally large (McCandlish et al.)"
    sentence = f"the first gradient's variance is {value:.2g} of its squared mean"
    return _graded("noise_scale", value, 1.0, source, sentence, beyond="gradient descent says little of this SGD")


def _confusion(sample: Sample) -> Check:
    source = "at 1 a step on one example raises another's loss by as much as an average step lowers its own"
    if sample.linearization.problem.n_train < 2:
        return Check("confusion", math.nan, 1.0, source, Grade.GOOD, "a single example confuses none")
    confusion = gradient_confusion(sample.linearization)
    value = confusion.bound / confusion.mean_square if confusion.mean_square > 0 else 0.0
    beyond = "small batches undo each other's steps"
    return _graded("confusion", value, 1.0, source, confusion.sentence, beyond=beyond)


def _spread(pilot: Pilot, tolerance: float) -> Check:
    source = "the tolerance asked for: a single run is then as good as a mean"
    if pilot.n_diverged:
        said = f"{pilot.n_diverged} of {len(pilot.real)} runs diverged"
        return Check("spread", math.inf, tolerance, source, Grade.BAD, said)
    sentence = f"losses of single runs differ by {100 * pilot.spread:.2g} % of their mean"
    return _graded("spread", pilot.spread, tolerance, source, sentence, beyond="a mean takes several runs")


def _linearization(frozen: ExpectedError, pilot: Pilot, tolerance: float) -> Check:
    source = "the tolerance asked for"
    if not math.isfinite(frozen.value):
        which = "the network" if pilot.n_diverged else "the linearized model"
        said = f"runs of {which} diverged"
        return Check("linearization", math.inf, tolerance, source, Grade.BAD, said)
    sentence = f"on the same batches the mean loss of the linearized model is off by {frozen}"
    return _graded("linearization", frozen.value, tolerance, source, sentence, beyond="let the kernel move, or measure")


def _sde(sample: Sample, sgd: SGD, n_steps: int) -> Check:
    source = "the tolerance of compare"
    value = indicators.sde_error(sample.linearization, sgd, n_steps)
    if math.isnan(value):
        said = "shuffled epochs have no SDE" if sgd.sampling == "shuffled" else "no curvature to tell by"
        return Check("sde", value, SDE_TOLERANCE, source, Grade.CAUTION, said)
    sentence = f"the fastest rate of the SDE is off from that of SGD by about {100 * value:.2g} %"
    return _graded("sde", value, SDE_TOLERANCE, source, sentence, beyond="predict in steps, not in time")


def _graded(name: str, value: float, bound: float, source: str, sentence: str, *, beyond: str) -> Check:
    if value <= bound:
        return Check(name, value, bound, source, Grade.GOOD, sentence)
    return Check(name, value, bound, source, Grade.CAUTION, f"{sentence}: {beyond}")
