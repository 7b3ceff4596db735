"""Claim: ``mean_square_radius`` and ``max_lr`` are those of the dense map of second moments, with every torch word.

Oracle: the average of T_b (x) T_b over every batch b, T_b the update of ``torch.optim.SGD`` on weights and buffer in
the row space of the features. Nothing of the theory of covariances enters.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import sgdsde
from sgdsde.stability import max_lr, max_lr_full_batch, max_lr_of, mean_square_radius
from tests.oracles import every_batch, features
from tests.problems import LARGER, LINEAR, Case, digits_problem
from tests.settings import chosen

SAMPLINGS = ("with_replacement", "without_replacement")
WORDS = chosen(
    "plain",
    "decay",
    "momentum",
    "momentum, dampening",
    "momentum, negative dampening, decay",
    "nesterov",
    "momentum, decay",
    "nesterov, decay",
)
CASES = [case for case in LINEAR if case.rank <= 5]
TOLERANCE = 1e-7


def dense_radius(problem: sgdsde.Problem, sgd: sgdsde.SGD) -> float:
    """Spectral radius of E T (x) T on the row space of the features."""
    rows, _ = features(problem)
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    coordinates = (rows @ basis[values > 1e-10 * values[0]].T).reshape(problem.n_train, problem.n_outputs, -1)
    size = 1 if sgd.momentum == 0 else 2
    r, total = coordinates.shape[-1], 0.0
    for batch, chance in every_batch(problem.n_train, sgd.batch_size_at(0), sgd.sampling):
        drawn = coordinates[list(batch)].reshape(-1, r)
        step = update_matrix(2 / len(drawn) * drawn.T @ drawn + sgd.weight_decay * np.eye(r), sgd)[
            : size * r, : size * r
        ]
        total = total + chance * np.kron(step, step)
    return float(np.abs(np.linalg.eigvals(total)).max())


def update_matrix(curvature: np.ndarray, sgd: sgdsde.SGD) -> np.ndarray:
    """One later step on (w, buffer), [2 r, 2 r]."""
    one, lr = np.eye(len(curvature)), sgd.lr_at(0)
    buffer = np.hstack([(1 - sgd.dampening) * curvature, sgd.momentum * one])
    gradient = np.hstack([curvature, 0 * one])
    move = gradient + sgd.momentum * buffer if sgd.nesterov else buffer if sgd.momentum else gradient
    return np.vstack([np.hstack([one, 0 * one]) - lr * move, buffer])


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_radius_and_the_limit(case: Case, sampling: str, words: dict) -> None:
    problem = case.problem()
    linearization = sgdsde.linearize(problem)
    limit = max_lr(linearization, 2, sampling=sampling, **words)
    assert 0 < limit <= max_lr_full_batch(linearization, **words) * (1 + 1e-12)
    radii = []
    for fraction in (0.05, 0.5, 0.9, 1.0, 1.1, 2.0):
        sgd = sgdsde.SGD(fraction * limit, 2, sampling=sampling, **words)
        dense = dense_radius(problem, sgd)
        assert mean_square_radius(linearization, sgd) == pytest.approx(dense, rel=TOLERANCE)
        radii.append(dense)
    assert max(radii[:3]) < 1 < min(radii[4:])
    assert radii[3] == pytest.approx(1, abs=TOLERANCE), "the limit, up to the slope of the radius"


@pytest.mark.parametrize("words", ["plain", "momentum", "nesterov, decay"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_stable_everywhere_below_the_limit(sampling: str, words: str) -> None:
    problem = CASES[0].problem()
    limit = max_lr(problem, 1, sampling=sampling, **WORDS[words])
    fractions = np.linspace(0.02, 0.999, 25)
    radii = [dense_radius(problem, sgdsde.SGD(f * limit, 1, sampling=sampling, **WORDS[words])) for f in fractions]
    assert max(radii) < 1


@pytest.mark.parametrize("wrong", [{"batch_size": 1}, {"batch_size": 3}, {"momentum": 0.8}, {"nesterov": True}, {
    "weight_decay": 0.05}, {"sampling": "without_replacement"}, {"lr": 0.21}], ids=str)  # fmt: skip
def test_the_comparison_notices_every_wrong_word(wrong: dict) -> None:
    problem, true = CASES[0].problem(), {"lr": 0.2, "batch_size": 2, "momentum": 0.9}
    radius = mean_square_radius(problem, sgdsde.SGD(**{**true, **wrong}))
    assert radius != pytest.approx(dense_radius(problem, sgdsde.SGD(**true)), rel=1e-4)


@pytest.mark.parametrize("words", ["plain", "momentum", "nesterov, decay"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("problem", [LARGER.problem(), digits_problem(16)], ids=["two outputs", "digits"])
def test_the_limit_grows_with_the_batch(problem: sgdsde.Problem, sampling: str, words: str) -> None:
    linearization = sgdsde.linearize(problem)
    limits = [max_lr(linearization, b, sampling=sampling, **WORDS[words]) for b in (1, 2, 3, 5, 8, 12, 16)]
    assert all(low < high for low, high in itertools.pairwise(limits))
    full = max_lr_full_batch(linearization, **WORDS[words])
    whole = max_lr(linearization, problem.n_train, sampling="without_replacement", **WORDS[words])
    assert limits[-1] <= whole * (1 + 1e-9)
    assert whole == pytest.approx(full, rel=1e-9)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_full_batch_limit_is_where_the_dense_step_grows(words: dict) -> None:
    problem = CASES[0].problem()
    rows, _ = features(problem)
    sharpest = np.array([[2 / len(rows) * np.linalg.norm(rows, 2) ** 2]])
    limit = max_lr_full_batch(problem, **words)
    for lr, grows in ((0.9999 * limit, False), (1.0001 * limit, True)):
        sgd = sgdsde.SGD(lr, 1, **words)
        matrix = update_matrix(sharpest + sgd.weight_decay, sgd)
        matrix = matrix if sgd.momentum else matrix[:1, :1]
        assert (np.abs(np.linalg.eigvals(matrix)).max() > 1) == grows


def test_dampening_scales_the_limit_and_past_one_leaves_none() -> None:
    problem = CASES[0].problem()
    plain, damped = (max_lr(problem, 2, momentum=0.9, dampening=d) for d in (0.0, 0.75))
    assert damped == pytest.approx(4 * plain, rel=1e-7)
    assert max_lr(problem, 2, dampening=0.75) == max_lr(problem, 2), "torch dampens the momentum's buffer only"
    assert [max_lr(problem, 2, momentum=0.9, dampening=d) for d in (1.0, 1.5)] == [float("inf"), 0.0]
    for lr in (1e-3, 1e-1):
        assert dense_radius(problem, sgdsde.SGD(lr, 2, momentum=0.9, dampening=1.5)) > 1


def test_the_limit_of_an_sgd_is_that_of_its_words() -> None:
    problem = CASES[0].problem()
    words = {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}
    for sampling, stands_for in [(s, s) for s in SAMPLINGS] + [("shuffled", "without_replacement")]:
        limit = max_lr_of(problem, sgdsde.SGD(3.0, 2, sampling=sampling, **words))
        assert limit == max_lr(problem, 2, sampling=stands_for, **words)
    nesterov = sgdsde.SGD(3.0, 2, momentum=0.9, nesterov=True)
    assert max_lr_of(problem, nesterov) == max_lr(problem, 2, momentum=0.9, nesterov=True)
    with pytest.raises(ValueError, match="constant batch size"):
        max_lr_of(problem, sgdsde.SGD(0.1, lambda step: 2))


def test_a_duplicated_input_alone_leaves_null_modes_out() -> None:
    """On the full space the radius would be 1 at every learning rate."""
    case = next(case for case in LINEAR if case.duplicated)
    sgd = sgdsde.SGD(0.5 * max_lr(case.problem(), 2, momentum=0.9), 2, momentum=0.9)
    assert mean_square_radius(case.problem(), sgd) < 0.9999


def test_what_has_no_radius_is_refused() -> None:
    problem = CASES[0].problem()
    with pytest.raises(ValueError, match=r"sgd.sampling.*shuffled.*without_replacement"):
        mean_square_radius(problem, sgdsde.SGD(0.1, 2, sampling="shuffled"))
    with pytest.raises(ValueError, match=r"constant learning rate.*largest learning rate"):
        mean_square_radius(problem, sgdsde.SGD(lambda step: 0.1, 2))
    with pytest.raises(ValueError, match=r"batch_size=5, n_train=4.*with_replacement"):
        max_lr(problem, 5, sampling="without_replacement")
