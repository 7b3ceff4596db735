"""Claim: on a model linear in its weights ``MomentRecursion`` is exact, train and test, whatever words are used.

Oracle: every sequence of batches over three steps, stepped by ``torch.optim.SGD`` itself.
"""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion
from tests.oracles import Moments, enumerate_runs
from tests.problems import AFFINE, BY_NAME, LINEAR, Case
from tests.settings import chosen

SAMPLINGS = ("with_replacement", "without_replacement")
WORDS = chosen(
    "plain",
    "decay",
    "dampening alone",
    "momentum",
    "momentum, dampening",
    "nesterov",
    "momentum, dampening, decay",
    "nesterov, decay",
)


def falling(step: int) -> float:
    """A learning rate that differs at every step."""
    return (0.6, 0.25, 0.45)[step]


def growing(step: int) -> int:
    return (1, 2, 3)[step]


def assert_exact(problem: sgdsde.Problem, sgd: sgdsde.SGD, oracle: list[Moments]) -> None:
    n, c = problem.n_train, problem.n_outputs
    laws = list(MomentRecursion().evolve(sgdsde.linearize(problem), sgd, range(len(oracle))))
    assert len(laws) == len(oracle)
    scale = max(float(moments.covariance.abs().max()) for moments in oracle)
    for law, moments in zip(laws, oracle):
        torch.testing.assert_close(law.mean, moments.mean[:n], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(law.test_mean, moments.mean[n:], rtol=1e-12, atol=1e-12)
        train, test = moments.covariance[: n * c, : n * c], moments.covariance[n * c :, n * c :]
        torch.testing.assert_close(law.covariance.to_dense(), train, rtol=1e-12, atol=1e-12 * max(scale, 1))
        torch.testing.assert_close(law.test_covariance.to_dense(), test, rtol=1e-12, atol=1e-12 * max(scale, 1))
    predicted = sgdsde.predict(problem, sgd, len(oracle) - 1, record=range(len(oracle)), observe=("loss", "outputs"))
    for side in ("train", "test"):
        expected = torch.tensor([getattr(moments, f"{side}_loss") for moments in oracle], dtype=torch.float64)
        torch.testing.assert_close(getattr(predicted, f"{side}_loss").mean, expected, rtol=1e-12, atol=1e-12)
    variances = torch.stack([moments.covariance.diagonal() for moments in oracle])
    predicted_variances = torch.cat(
        [predicted.train_outputs.std.square().flatten(1), predicted.test_outputs.std.square().flatten(1)], dim=1
    )
    torch.testing.assert_close(predicted_variances, variances, rtol=1e-12, atol=1e-12 * max(scale, 1))


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_plain_sgd_in_every_problem(case: Case, sampling: str) -> None:
    problem, sgd = case.problem(), sgdsde.SGD(0.4, 2, sampling=sampling)
    assert_exact(problem, sgd, enumerate_runs(problem, sgd, 3))


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    "case", ["one output, null space", "two outputs, null space", "two outputs", *(case.name for case in AFFINE)]
)
def test_every_word_under_a_changing_learning_rate(case: str, sampling: str, words: dict) -> None:
    problem, sgd = BY_NAME[case].problem(), sgdsde.SGD(falling, 2, sampling=sampling, **words)
    assert_exact(problem, sgd, enumerate_runs(problem, sgd, 3))


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize("words", ["plain", "nesterov, decay", "momentum, dampening, decay"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_changing_batch_size(sampling: str, words: str) -> None:
    problem = BY_NAME["two outputs, null space"].problem()
    sgd = sgdsde.SGD(falling, growing, sampling=sampling, **WORDS[words])
    assert_exact(problem, sgd, enumerate_runs(problem, sgd, 3))


@pytest.mark.filterwarnings("ignore::sgdsde.UnstableWarning")
@pytest.mark.parametrize("words", ["plain", "nesterov, decay", "momentum, dampening, decay"])
@pytest.mark.parametrize(("case", "sampling", "batch_size"), [
    ("one output, null space", "with_replacement", 2),
    ("one output", "without_replacement", 2),
    ("one output, duplicated input", "without_replacement", 4),
    ("two outputs, null space", "with_replacement", 1),
])  # fmt: skip
def test_fresh_label_noise(case: str, sampling: str, batch_size: int, words: str) -> None:
    problem = BY_NAME[case].problem()
    sgd = sgdsde.SGD(falling, batch_size, sampling=sampling, label_noise_std=0.7, **WORDS[words])
    n_steps = 2 if batch_size == 2 and sampling == "with_replacement" else 3
    assert_exact(problem, sgd, enumerate_runs(problem, sgd, n_steps))


@pytest.mark.parametrize("wrong", [
    {"batch_size": 3}, {"sampling": "without_replacement"}, {"momentum": 0.85}, {"dampening": 0.1}, {"nesterov": True},
    {"weight_decay": 0.11}, {"label_noise_std": 0.1}, {"lr": 0.19},
], ids=str)  # fmt: skip
def test_the_comparison_notices_every_wrong_word(wrong: dict) -> None:
    problem = BY_NAME["one output, null space"].problem()
    true = {"lr": 0.2, "batch_size": 2, "momentum": 0.9, "weight_decay": 0.1}
    oracle = enumerate_runs(problem, sgdsde.SGD(**true), 3)
    assert_exact(problem, sgdsde.SGD(**true), oracle)
    with pytest.raises(AssertionError):
        assert_exact(problem, sgdsde.SGD(**{**true, **wrong}), oracle)
