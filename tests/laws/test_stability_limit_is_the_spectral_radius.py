"""Claim: ``mean_square_radius`` is the spectral radius of the second-moment map on the range of K, and 1 at ``max_lr``.

Oracle: the dense matrix of that map, column by column, for tiny problems.
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import sgdsde
from sgdsde.dynamics import GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from sgdsde.stability import max_lr, max_lr_full_batch, mean_square_radius, sufficient_lr
from tests.oracles import dense_radius, features
from tests.problems import BY_NAME, LINEAR, Case, digits_problem
from tests.settings import chosen

SAMPLINGS = ("with_replacement", "without_replacement")
WORDS = chosen("plain", "momentum", "nesterov", "decay", "momentum, decay")
by_name = pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
by_words = pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)


def dense_kernel(problem: sgdsde.Problem) -> np.ndarray:
    train, _ = features(problem)
    return train @ train.T


@by_words
@pytest.mark.parametrize("sampling", SAMPLINGS)
@by_name
def test_radius_equals_the_dense_matrix(case: Case, sampling: str, words: dict) -> None:
    """From far below the limit to beyond the full-batch limit."""
    linearization = sgdsde.linearize(case.problem())
    kernel = dense_kernel(linearization.problem)
    fractions = (0.02, 0.4, 1.3) if words == {} else (0.1, 0.7)
    for fraction in fractions:
        sgd = sgdsde.SGD(fraction * max_lr_full_batch(linearization), 2, sampling=sampling, **words)
        oracle = dense_radius(kernel, case.n_train, sgd)
        assert mean_square_radius(linearization, sgd) == pytest.approx(oracle, rel=1e-8), fraction


def test_the_whole_space_has_radius_one() -> None:
    """Null modes neither grow nor shrink: a radius that counted them would be 1 at every learning rate."""
    case = BY_NAME["one output, null space"]
    assert mean_square_radius(case.problem(), sgdsde.SGD(0.2, 2)) < 0.99


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@by_name
def test_the_limit_is_where_the_dense_radius_crosses_one(case: Case, sampling: str, batch_size: int) -> None:
    problem = case.problem()
    kernel = dense_kernel(problem)

    def excess(lr: float) -> float:
        return dense_radius(kernel, case.n_train, sgdsde.SGD(lr, batch_size, sampling=sampling)) - 1

    bound = max_lr_full_batch(problem) * 1.001
    oracle = brentq(excess, 1e-3 * bound, bound, xtol=1e-12, rtol=1e-11)
    assert max_lr(problem, batch_size, sampling=sampling) == pytest.approx(oracle, rel=1e-8)


@by_words
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", ["one output, null space", "two outputs", "three outputs, null space"])
def test_radius_is_one_at_the_limit_and_crosses_once(case: str, sampling: str, words: dict) -> None:
    linearization = sgdsde.linearize(BY_NAME[case].problem())
    limit = max_lr(linearization, 2, sampling=sampling, **words)

    def radius(factor: float) -> float:
        return mean_square_radius(linearization, sgdsde.SGD(factor * limit, 2, sampling=sampling, **words))

    assert radius(1.0) == pytest.approx(1.0, abs=1e-7)
    assert all(radius(factor) < 1 for factor in (0.05, 0.3, 0.6, 0.9, 0.99))
    beyond = [radius(factor) for factor in (1.01, 1.1, 1.5, 3.0)]
    assert all(value > 1 for value in beyond)
    assert beyond == sorted(beyond)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@by_name
def test_the_limits_are_ordered(case: Case, sampling: str) -> None:
    linearization = sgdsde.linearize(case.problem())
    full_batch = max_lr_full_batch(linearization)
    assert full_batch == pytest.approx(case.n_train * case.n_outputs / np.linalg.eigvalsh(linearization.kernel)[-1])
    limits = [max_lr(linearization, size, sampling=sampling) for size in (1, 2, 3, 4)]
    assert limits == sorted(limits)
    assert all(limit <= full_batch * (1 + 1e-9) for limit in limits)
    for size, limit in zip((1, 2, 3, 4), limits):
        assert sufficient_lr(linearization, size, sampling=sampling) <= limit * (1 + 1e-9)
    if sampling == "without_replacement":
        assert limits[-1] == pytest.approx(full_batch, rel=1e-12)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_limit_of_one_weight_in_closed_form(sampling: str) -> None:
    """E x^2 lr 2 < 2 turns into 2 lr (E x^2 + q (E x^4 - (E x^2)^2) / E x^2) < 2, q = phi/B."""
    from tests.problems import linear_problem

    x = np.array([1.0, 2.0, -1.0, 0.5])
    problem = linear_problem(x[:, None, None], x[:, None], [0.0])
    second, fourth = np.mean(x**2), np.mean(x**4)
    q = 1 / 2 if sampling == "with_replacement" else (2 / 3) / 2
    assert max_lr(problem, 2, sampling=sampling) == pytest.approx(
        1 / (second + q * (fourth - second**2) / second), rel=1e-8
    )


@by_words
def test_the_recursion_grows_and_falls_by_the_radius(words: dict) -> None:
    """Late in a prediction beyond the limit the expected loss is multiplied by the radius at every step."""
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    limit = max_lr(linearization, 1, **words)
    sgd = sgdsde.SGD(1.3 * limit, 1, **words)
    with pytest.warns(sgdsde.UnstableWarning):
        late = sgdsde.predict(linearization, sgd, 1001, record=(1000, 1001)).train_loss.mean
    assert float(late[1] / late[0]) == pytest.approx(mean_square_radius(linearization, sgd), rel=1e-6)


@pytest.mark.parametrize(
    ("dynamics", "words"),
    [(MomentRecursion(), words) for words in WORDS.values()]
    + [(GradientFlow(), {}), (OrnsteinUhlenbeck(freeze="init"), {})],
)
def test_every_predictor_warns_beyond_the_limit_and_only_there(dynamics, words: dict) -> None:
    """GradientFlow and the frozen process return finite numbers there: the warning is all that tells."""
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    limit, full_batch = max_lr(linearization, 2, **words), max_lr_full_batch(linearization, **words)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for factor in (0.1, 0.8, 0.999):
            stable = sgdsde.predict(linearization, sgdsde.SGD(factor * limit, 2, **words), 3, dynamics=dynamics)
            assert not stable.is_past_limit
    with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"mean-square limit {limit:.6g}")) as caught:
        beyond = sgdsde.predict(linearization, sgdsde.SGD(1.001 * limit, 2, **words), 3, dynamics=dynamics)
    assert beyond.is_past_limit
    assert "full-batch" not in str(caught[0].message)
    with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"full-batch limit {full_batch:.6g}")):
        sgdsde.predict(linearization, sgdsde.SGD(1.01 * full_batch, 2, **words), 3, dynamics=dynamics)


def test_a_schedule_is_held_against_the_limit_at_its_worst() -> None:
    linearization = sgdsde.linearize(BY_NAME["two outputs"].problem())
    limit = max_lr(linearization, 2)
    with pytest.warns(sgdsde.UnstableWarning):
        sgdsde.predict(linearization, sgdsde.SGD(lambda step: limit * (1.2 if step == 2 else 0.1), 2), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgdsde.predict(linearization, sgdsde.SGD(lambda step: limit * (1.2 if step == 7 else 0.1), 2), 4)


def test_the_limit_on_digits_is_far_below_the_full_batch_one_and_single_precision_agrees() -> None:
    problem = digits_problem(48)
    limit = max_lr(problem, 2)
    assert limit < 0.4 * max_lr_full_batch(problem)
    single = sgdsde.linearize(problem, dtype=torch.float32)
    assert max_lr(single, 2) == pytest.approx(limit, rel=1e-4)
