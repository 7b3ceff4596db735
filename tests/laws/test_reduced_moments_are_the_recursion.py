"""The reduced model is the plain recursion, to the error that it reports, in every setting that it takes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion, ReducedModelWarning, ReducedMoments, TracedRecursion
from sgdsde.dynamics.moments.reduced import prediction
from sgdsde.kernel import DenseKernel, KroneckerKernel
from tests.problems import AFFINE, LARGER, LINEAR, digits_problem

RECORD = [0, 1, 16, 17, 30, 100, 300, 1000]
DOWN_TO = 1e-4  # of the first loss: the range of the promise
ROUNDING = 1e-12


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(32, n_test=16))


def limit(linearization: sgdsde.Linearization, batch_size: int, sampling: str = "with_replacement") -> float:
    return sgdsde.stability.max_lr(linearization, batch_size, sampling=sampling)


def both(linearization, sgd, record=RECORD, **words):
    reduced = sgdsde.predict(linearization, sgd, record[-1], dynamics=ReducedMoments(**words), record=record)
    plain = sgdsde.predict(linearization, sgd, record[-1], dynamics=MomentRecursion(), record=record)
    return reduced, plain


def errors(reduced, plain, side="train_loss"):
    ours, theirs = getattr(reduced, side).mean, getattr(plain, side).mean
    relevant = theirs > DOWN_TO * theirs[0]
    return ((ours - theirs).abs() / theirs)[relevant], relevant


def schedule(k: int) -> float:
    return 0.5 + 0.5 * np.cos(np.pi * k / RECORD[-1])


SETTINGS = {
    "half of the limit": lambda top: sgdsde.SGD(0.5 * top(4), 4),
    "0.9 of the limit, single examples": lambda top: sgdsde.SGD(0.9 * top(1), 1),
    "without replacement": lambda top: sgdsde.SGD(
        0.5 * top(8, "without_replacement"), 8, sampling="without_replacement"
    ),
    "label noise": lambda top: sgdsde.SGD(0.5 * top(8), 8, label_noise_std=0.3),
    "weight decay": lambda top: sgdsde.SGD(0.5 * top(8), 8, weight_decay=1e-2),
    "weight decay and label noise": lambda top: sgdsde.SGD(0.5 * top(8), 8, weight_decay=1e-3, label_noise_std=0.1),
    "cosine to zero": lambda top: sgdsde.SGD(lambda k: 0.6 * top(8) * schedule(k), 8),
    "steps down, batches up": lambda top: sgdsde.SGD(
        lambda k: (0.6 if k < 200 else 0.2) * top(4), lambda k: 4 if k < 500 else 24
    ),
    "a step of length zero": lambda top: sgdsde.SGD(lambda k: 0.0 if k < 50 else 0.5 * top(4), 4),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_error_is_below_the_tolerance_and_below_its_estimate(digits, name):
    sgd = SETTINGS[name](functools.cache(lambda *setting: limit(digits, *setting)))
    reduced, plain = both(digits, sgd)
    error, relevant = errors(reduced, plain)
    assert reduced.dynamics.startswith("ReducedMoments")
    assert error.max() < 1e-4
    assert (error <= reduced.estimated_error[relevant] + ROUNDING).all()
    assert errors(reduced, plain, "test_loss")[0].max() < 1e-3
    deviation = (reduced.train_loss.std - plain.train_loss.std).abs()
    assert (deviation <= 0.02 * plain.train_loss.std + 1e-7 * plain.train_loss.mean)[relevant].all()
    torch.testing.assert_close(reduced.times, plain.times, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", LINEAR + AFFINE + (LARGER,), ids=lambda case: case.name)
@pytest.mark.parametrize("words", [{}, {"weight_decay": 0.02, "label_noise_std": 0.2}], ids=["plain", "all sources"])
def test_null_spaces_duplicates_and_constant_parts(case, words):
    linearization = sgdsde.linearize(case.problem())
    sgd = sgdsde.SGD(0.5 * limit(linearization, 2), 2, **words)
    reduced, plain = both(linearization, sgd, [0, 10, 40, 100, 400])
    assert errors(reduced, plain)[0].max() < 1e-5


@pytest.mark.parametrize("change", [{"batch_size": 6}, {"lr": 1.01}, {"label_noise_std": 0.05}])
def test_another_setting_is_told_apart(digits, change):
    """The negative control: what the test above would let pass is far below what a wrong setting changes."""
    sgd = sgdsde.SGD(0.5 * limit(digits, 4), 4)
    other = dataclasses.replace(sgd, **({"lr": sgd.lr * change["lr"]} if "lr" in change else change))
    reduced, _ = both(digits, sgd, [0, 30, 100])
    _, plain = both(digits, other, [0, 30, 100])
    assert errors(reduced, plain)[0].max() > 1e-3


def test_the_first_sixteen_steps_are_the_recursion_itself(digits):
    reduced, plain = both(digits, sgdsde.SGD(0.7 * limit(digits, 2), 2), [*range(17), 400])
    torch.testing.assert_close(reduced.train_loss.mean[:16], plain.train_loss.mean[:16], rtol=1e-14, atol=0)
    torch.testing.assert_close(reduced.train_loss.std[:16], plain.train_loss.std[:16], rtol=1e-12, atol=0)
    assert (reduced.estimated_error[:16] == 0).all()


def test_a_tighter_tolerance_is_kept(digits):
    sgd = sgdsde.SGD(0.5 * limit(digits, 4), 4)
    loose, plain = both(digits, sgd, tolerance=1e-2)
    tight, _ = both(digits, sgd, tolerance=1e-6)
    assert errors(loose, plain)[0].max() < 1e-2
    assert errors(tight, plain)[0].max() < 1e-6
    assert errors(tight, plain)[0].max() < errors(loose, plain)[0].max()


def test_full_batch_is_gradient_descent_without_spread(digits):
    sgd = sgdsde.SGD(0.5 * limit(digits, 32, "without_replacement"), 32, sampling="without_replacement")
    reduced, plain = both(digits, sgd)
    torch.testing.assert_close(reduced.train_loss.mean, plain.train_loss.mean, rtol=1e-10, atol=0)
    assert (reduced.train_loss.std == 0).all()
    assert (reduced.test_loss.std == 0).all()


def test_outputs_and_their_spread_are_those_of_the_recursion(digits):
    sgd, words = sgdsde.SGD(0.5 * limit(digits, 4), 4), {"record": [20, 300], "observe": ("outputs", "accuracy")}
    reduced = sgdsde.predict(digits, sgd, 300, dynamics=ReducedMoments(), **words)
    plain = sgdsde.predict(digits, sgd, 300, dynamics=MomentRecursion(), **words)
    for side in ("train_outputs", "test_outputs"):
        torch.testing.assert_close(getattr(reduced, side).mean, getattr(plain, side).mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(getattr(reduced, side).std, getattr(plain, side).std, rtol=0.05, atol=0)
    torch.testing.assert_close(reduced.test_accuracy.mean, plain.test_accuracy.mean, rtol=0, atol=1e-3)


def test_a_stationary_floor_is_reached_at_any_horizon(digits):
    """At 10^12 steps the loss is that of the linear equation M = T M + sources, solved by the recursion's last step."""
    sgd = sgdsde.SGD(0.5 * limit(digits, 8), 8, label_noise_std=0.3, weight_decay=1e-2)
    far = sgdsde.predict(digits, sgd, 10**12, dynamics=ReducedMoments(), record=[10**6, 10**12])
    near = sgdsde.predict(digits, sgd, 4000, dynamics=MomentRecursion(), record=[4000])
    torch.testing.assert_close(far.train_loss.mean, near.train_loss.mean.expand(2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("n_steps", [2**53 + 2, 10**17])
def test_a_horizon_beyond_float64_is_refused(digits, n_steps):
    with pytest.raises(ValueError, match=r"n_steps must be at most 2\*\*53"):
        sgdsde.predict(digits, sgdsde.SGD(0.01, 4), n_steps)


@pytest.mark.parametrize("theory", [None, MomentRecursion(), ReducedMoments()], ids=str)
def test_a_record_of_a_million_steps_is_refused(digits, theory):
    with pytest.raises(ValueError, match="record must be at most 100,000 steps, got 1,000,000"):
        sgdsde.predict(digits, sgdsde.SGD(0.01, 4), 10**6, dynamics=theory, record=range(10**6))
    with pytest.raises(ValueError, match="record must be at most 20,000 steps, got 30,000"):
        sgdsde.predict(digits, sgdsde.SGD(0.01, 4), 10**6, dynamics=ReducedMoments(), record=range(30_000))


@pytest.mark.parametrize("tolerance", [0, 1e-9, 0.5, -1, float("nan")])
def test_a_tolerance_that_cannot_be_kept_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be"):
        ReducedMoments(tolerance)


def test_a_tolerance_that_is_missed_is_told(digits, monkeypatch):
    monkeypatch.setattr(prediction, "DENSITIES", (1.0,))
    monkeypatch.setattr(prediction, "SOLVES", 1e6)
    sgd = sgdsde.SGD(0.5 * limit(digits, 4), 4)
    with pytest.warns(ReducedModelWarning, match="above tolerance=0.0001"):
        reduced = sgdsde.predict(digits, sgd, 10**6, dynamics=ReducedMoments())
    assert reduced.estimated_error is not None
    assert reduced.estimated_error.max() > 1e-4
    short = sgdsde.predict(digits, sgd, 100, dynamics=ReducedMoments(), record=[100])
    plain = sgdsde.predict(digits, sgd, 100, dynamics=MomentRecursion(), record=[100])
    assert short.dynamics.startswith("MomentRecursion() for ReducedMoments")
    torch.testing.assert_close(short.train_loss.mean, plain.train_loss.mean, rtol=0, atol=0)


def test_beyond_the_limit_the_recursion_itself_answers_or_a_long_horizon_is_refused(digits):
    sgd = sgdsde.SGD(1.3 * limit(digits, 4), 4)
    with pytest.warns(sgdsde.UnstableWarning):
        past = sgdsde.predict(digits, sgd, 300, dynamics=ReducedMoments())
    assert "beyond the mean-square limit" in past.dynamics
    assert past.estimated_error is None
    with (
        pytest.warns(sgdsde.UnstableWarning),
        pytest.raises(ValueError, match="a setting that ReducedMoments can represent over so many steps"),
    ):
        sgdsde.predict(digits, sgd, 10**6, dynamics=ReducedMoments())


@pytest.mark.parametrize("words", [{"momentum": 0.5, "weight_decay": 0.1}, {"momentum": 0.5, "sampling": "shuffled"}])
def test_what_it_cannot_represent_is_refused_by_name(digits, words):
    with pytest.raises(ValueError, match="ReducedMoments cannot represent"):
        sgdsde.predict(digits, sgdsde.SGD(0.01, 4, **words), 100, dynamics=ReducedMoments())
    assert sgdsde.predict(digits, sgdsde.SGD(0.01, 4, **words), 200).dynamics.startswith("MomentRecursion")


def test_predict_takes_it_where_it_is_cheaper_and_says_so(digits):
    sgd = sgdsde.SGD(0.5 * limit(digits, 4), 4)
    assert sgdsde.predict(digits, sgd, 10**5).dynamics.startswith("ReducedMoments(tolerance=0.0001): ")
    assert sgdsde.predict(digits, sgd, 100).dynamics == "MomentRecursion()"
    assert sgdsde.predict(digits, sgd, 2000, observe=("loss", "outputs")).dynamics == "MomentRecursion()"


def test_outputs_that_share_a_kernel_are_summed(digits):
    kernel = KroneckerKernel(DenseKernel(digits.dense_kernel), 2)
    rng = np.random.default_rng(0)
    x, y = digits.problem.x_train, torch.from_numpy(rng.normal(size=(32, 2)))
    problem = sgdsde.Problem(sgdsde.networks.MLP(x.shape[1], 8, 2).double(), x, y, loss=torch.nn.MSELoss())
    outputs = torch.from_numpy(rng.normal(size=(32, 2)))
    linearization = sgdsde.Linearization(problem, kernel, cross_kernel=None, outputs=outputs, test_outputs=None)
    sgd = sgdsde.SGD(0.8 * limit(digits, 4), 4, label_noise_std=0.1)
    reduced = sgdsde.predict(linearization, sgd, 400, dynamics=ReducedMoments(), record=RECORD[:6])
    plain = sgdsde.predict(linearization, sgd, 400, dynamics=TracedRecursion(), record=RECORD[:6])
    torch.testing.assert_close(reduced.train_loss.mean, plain.train_loss.mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(reduced.train_loss.std, plain.train_loss.std, rtol=0.02, atol=1e-9)


def test_single_precision_and_truncation_are_left_to_others(digits):
    single = sgdsde.linearize(digits_problem(32), dtype=torch.float32)
    sgd = sgdsde.SGD(0.3 * limit(digits, 4), 4)
    assert "single precision" in sgdsde.predict(single, sgd, 300, dynamics=ReducedMoments()).dynamics
    assert sgdsde.predict(single, sgd, 2000).dynamics == "MomentRecursion()"
    truncated = digits.truncate(20, tail="frozen")
    reduced, plain = both(truncated, sgd, [0, 30, 100])
    assert errors(reduced, plain)[0].max() < 1e-4
    torch.testing.assert_close(reduced.truncation_error, plain.truncation_error, rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="more than 10,000 steps of a frozen tail"):
        sgdsde.predict(truncated, sgd, 20_000, dynamics=ReducedMoments())
