"""Claim: on a model linear in its weights predicted and measured agree within Monte-Carlo error, at every step.

24 examples, two outputs, a kernel with a null space, a test set. Compared: expected train and test loss, the mean of
every train and test output, and the variance of the outputs (summed over each set). Chance of a false alarm 1e-4 for
one assertion, over everything it compares, by the normal law of sample means: a squared normal number's skewness makes
the true rate a few times that at 1000 runs. Sample sizes and seeds are fixed.

The same assertion must fail for the null predictor and for each classical mistake.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from sgdsde.stability import max_lr
from tests.problems import LARGER
from tests.settings import chosen
from tests.statistics import assert_mean_is

N_STEPS = 120
RECORD = (0, 1, 2, 4, 8, 15, 30, 60, 120)
ERROR_RATE = 1e-4
FRACTION = 0.35
"""Of the mean-square limit: noise matters there, and the loss's tail is still light."""

WORDS = chosen(
    "plain",
    "without replacement",
    "momentum",
    "momentum, dampening",
    "nesterov",
    "decay",
    "nesterov, decay, without replacement",
    "label noise",
    "label noise, momentum",
)
SCHEDULES = {
    "falling lr": {"lr": lambda lr: lambda step: lr / (1 + step / 20)},
    "growing batch": {"batch_size": lambda step: 3 + step // 20},
    "both, momentum, decay": {
        "lr": lambda lr: lambda step: lr * (0.5 + 0.5 * (step % 7 == 0)),
        "batch_size": lambda step: 4 + (step % 5),
        "momentum": 0.7,
        "weight_decay": 0.05,
    },
}


@cache
def linearization() -> sgdsde.Linearization:
    return sgdsde.linearize(LARGER.problem())


def trained_by(words: dict) -> sgdsde.SGD:
    """These words at a batch of 4, at a fixed fraction of their own stability limit."""
    words = dict(words)
    of_limit = {name: words[name] for name in ("momentum", "nesterov", "weight_decay") if name in words}
    lr = FRACTION * max_lr(linearization(), 3, **of_limit)
    lr_of = words.pop("lr", lambda lr: lr)
    return sgdsde.SGD(**{"batch_size": 4, **words, "lr": lr_of(lr)})


@cache
def measured(name: str, n_runs: int) -> sgdsde.Trajectory:
    sgd = trained_by({**WORDS, **SCHEDULES}[name])
    return sgdsde.run_ensemble(
        linearization(), sgd, N_STEPS, n_runs, seed=17, record=RECORD, observe=("loss", "outputs")
    )


def assert_agree(predicted: sgdsde.Trajectory, runs: sgdsde.Trajectory) -> None:
    for side in ("train", "test"):
        claims = {"error_rate": ERROR_RATE, "n_claims": 6}
        band, losses = getattr(predicted, f"{side}_loss"), getattr(runs, f"{side}_loss")
        assert_mean_is(band.mean, losses.samples, what=f"{side} loss", **claims)
        band, outputs = getattr(predicted, f"{side}_outputs"), getattr(runs, f"{side}_outputs")
        assert_mean_is(band.mean, outputs.samples, what=f"{side} outputs", **claims)
        spread = (outputs.samples - band.mean).square().sum((2, 3))
        assert_mean_is(band.std.square().sum((1, 2)), spread, what=f"{side} variance", **claims)


def predicted_by(dynamics: Dynamics, sgd: sgdsde.SGD, source: sgdsde.Linearization | None = None) -> sgdsde.Trajectory:
    return sgdsde.predict(
        source or linearization(), sgd, N_STEPS, dynamics=dynamics, record=RECORD, observe=("loss", "outputs")
    )


@pytest.mark.parametrize("name", ["plain", "nesterov, decay, without replacement", "label noise, momentum"])
def test_a_thousand_runs(name: str) -> None:
    assert_agree(predicted_by(MomentRecursion(), trained_by(WORDS[name])), measured(name, 1000))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WORDS, *SCHEDULES])
def test_four_thousand_runs(name: str) -> None:
    sgd = trained_by({**WORDS, **SCHEDULES}[name])
    assert_agree(predicted_by(MomentRecursion(), sgd), measured(name, 4000))


def noiseless(sgd: sgdsde.SGD) -> sgdsde.SGD:
    return dataclasses.replace(sgd, batch_size=LARGER.n_train, sampling="without_replacement")


MISTAKES = {
    "null predictor": lambda sgd: predicted_by(GradientDescent(), sgd),
    "gradient flow": lambda sgd: predicted_by(GradientFlow(), sgd),
    "noise frozen at the start": lambda sgd: predicted_by(OrnsteinUhlenbeck(freeze="init"), sgd),
    "batch two too large": lambda sgd: predicted_by(MomentRecursion(), dataclasses.replace(sgd, batch_size=6)),
    "batch two too small": lambda sgd: predicted_by(MomentRecursion(), dataclasses.replace(sgd, batch_size=2)),
    "noise switched off": lambda sgd: predicted_by(MomentRecursion(), noiseless(sgd)),
    "the other sampling": lambda sgd: predicted_by(
        MomentRecursion(), dataclasses.replace(sgd, sampling="without_replacement")
    ),
    "half the learning rate in the noise": lambda sgd: predicted_by(
        MomentRecursion(), dataclasses.replace(sgd, batch_size=8)
    ),
    "a dropped 1/2": lambda sgd: predicted_by(
        MomentRecursion(),
        sgd,
        dataclasses.replace(
            linearization(), kernel=linearization().kernel / 2, cross_kernel=linearization().cross_kernel / 2
        ),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_thousand_runs_refute_every_mistake(mistake) -> None:
    with pytest.raises(AssertionError, match="z = "):
        assert_agree(mistake(trained_by({})), measured("plain", 1000))


def test_the_library_says_the_same_as_these_statistics() -> None:
    sgd, runs = trained_by({}), measured("plain", 1000)
    right = sgdsde.compare(predicted_by(MomentRecursion(), sgd), runs)
    assert right.verdict in (sgdsde.Verdict.AGREES, sgdsde.Verdict.WITHIN_NOISE), right.sentence
    for name in ("null predictor", "gradient flow", "a dropped 1/2"):
        wrong = sgdsde.compare(MISTAKES[name](sgd), runs)
        assert wrong.verdict is sgdsde.Verdict.DISAGREES, name
    torch.testing.assert_close(right.train.measured, runs.train_loss.mean)
