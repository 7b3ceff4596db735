"""From laws of outputs to losses and accuracies: closed forms against draws, ties, what is not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import sgdsde
from sgdsde.dynamics import Covariance
from sgdsde.losses import SquaredError, is_right
from sgdsde.observables import GAUSSIAN_DRAWS, Estimate, accuracy_of_law, loss_of_law
from tests.problems import BY_NAME, Case, digits_problem
from tests.statistics import assert_mean_is

N_DRAWS = 40_000


def factored(rows: int, rank: int, seed: int) -> Covariance:
    rng = np.random.default_rng(seed)
    factor, root = (torch.from_numpy(rng.normal(size=size)) for size in ((rows, rank), (rank, rank)))
    return Covariance(factor, root @ root.mT, factor.mT @ factor)


def draws_of(mean: Tensor, covariance: Covariance, seed: int, count: int = N_DRAWS) -> tuple[Tensor, Tensor]:
    """Modal draws [P, r] as ``accuracy_of_law`` takes them, and the outputs [P, n, c]."""
    root = torch.linalg.cholesky(covariance.core)
    normal = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, len(root))))
    modal = normal @ root.mT
    return modal, mean + (modal @ covariance.factor.mT).view(-1, *mean.shape)


@pytest.mark.parametrize("c", [1, 3])
def test_loss_of_a_gaussian_law(c: int) -> None:
    rng = np.random.default_rng(c)
    mean, targets = (torch.from_numpy(rng.normal(size=(4, c))) for _ in range(2))
    covariance, criterion = factored(4 * c, 2, seed=1), SquaredError(2 / c)
    reduced = loss_of_law(criterion, mean, targets, covariance=covariance, samples=None)
    _, outputs = draws_of(mean, covariance, seed=2)
    losses = torch.stack([nn.MSELoss()(each, targets) for each in outputs[:2000]])
    torch.testing.assert_close(losses, criterion.mean(outputs[:2000], targets))
    losses = criterion.mean(outputs, targets)
    assert_mean_is(reduced.mean, losses, n_claims=2)
    assert_mean_is(reduced.std**2, (losses - reduced.mean) ** 2, n_claims=2)
    with pytest.raises(AssertionError):
        assert_mean_is(criterion.mean(mean, targets), losses)
    assert float(reduced.standard_error) == 0
    assert reduced.samples is None


def test_loss_of_samples_is_theirs() -> None:
    samples = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 4, 2)))
    targets = torch.zeros(4, 2, dtype=torch.float64)
    reduced = loss_of_law(SquaredError(1.0), samples.mean(0), targets, covariance=None, samples=samples)
    expected = torch.stack([nn.MSELoss()(each, targets) for each in samples])
    torch.testing.assert_close(reduced.samples, expected)
    torch.testing.assert_close(reduced.standard_error, expected.std() / 5**0.5)
    certain = loss_of_law(SquaredError(1.0), samples[0], targets, covariance=None, samples=None)
    torch.testing.assert_close(certain.mean, expected[0])
    assert float(certain.std) == 0


def test_what_overflows_is_infinite() -> None:
    covariance = factored(3, 2, seed=4)
    huge = Covariance(covariance.factor, covariance.core * math.nan, covariance.gram)
    mean = torch.ones(3, 1, dtype=torch.float64)
    assert float(loss_of_law(SquaredError(2.0), mean, mean, covariance=huge, samples=None).mean) == math.inf


def test_accuracy_of_one_gaussian_output_in_closed_form() -> None:
    rng = np.random.default_rng(5)
    mean = torch.from_numpy(rng.normal(size=(6, 1)))
    targets = torch.from_numpy(rng.choice([-1.0, 1.0], size=(6, 1)))
    covariance = factored(6, 3, seed=6)
    modal, outputs = draws_of(mean, covariance, seed=7)
    reduced = accuracy_of_law(mean, targets[:, 0], covariance=covariance, draws=modal)
    spread = covariance.to_dense().diagonal().numpy() ** 0.5
    expected = stats.norm.cdf(targets.numpy()[:, 0] * mean.numpy()[:, 0] / spread).mean()
    assert float(reduced.mean) == pytest.approx(expected, rel=1e-12)
    assert float(reduced.standard_error) == 0
    right = is_right(outputs, targets[:, 0]).double().mean(1)
    assert_mean_is(reduced.mean, right)
    torch.testing.assert_close(reduced.std, right.std())
    with pytest.raises(AssertionError):
        assert_mean_is(accuracy_of_law(mean, targets[:, 0]).mean, right)


def test_an_output_without_spread_is_on_one_side() -> None:
    factor = torch.tensor([[0.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    covariance = Covariance(factor, torch.ones(1, 1, dtype=torch.float64), factor.mT @ factor)
    mean = torch.tensor([[2.0], [-2.0], [0.0], [0.0]], dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    draws = torch.linspace(-3, 3, 100, dtype=torch.float64)[:, None]
    reduced = accuracy_of_law(mean, ones, covariance=covariance, draws=draws)
    assert float(reduced.mean) == pytest.approx((1 + 0 + 0.5 + 0) / 4, rel=1e-12), "an output of exactly 0 is wrong"


def test_accuracy_of_several_outputs_is_argmax_of_draws() -> None:
    rng = np.random.default_rng(8)
    mean, covariance = torch.from_numpy(rng.normal(size=(5, 3))), factored(15, 4, seed=9)
    classes = torch.from_numpy(rng.integers(0, 3, size=5))
    modal, outputs = draws_of(mean, covariance, seed=10, count=GAUSSIAN_DRAWS)
    reduced = accuracy_of_law(mean, classes, covariance=covariance, draws=modal)
    by_hand = [np.mean(np.argmax(each, axis=1) == classes.numpy()) for each in outputs.numpy()]
    assert float(reduced.mean) == pytest.approx(np.mean(by_hand), rel=1e-12)
    assert float(reduced.standard_error) == pytest.approx(np.std(by_hand, ddof=1) / GAUSSIAN_DRAWS**0.5, rel=1e-12)
    _, others = draws_of(mean, covariance, seed=11)
    right = is_right(others, classes).double().mean(1)
    z = float(reduced.mean - right.mean()) / math.hypot(
        float(reduced.standard_error), float(right.std()) / N_DRAWS**0.5
    )
    assert abs(z) < 4
    assert abs(float(accuracy_of_law(mean, classes).mean) - float(right.mean())) > 0.02


@pytest.mark.parametrize(("outputs", "labels", "right"), [
    ([[0.2], [-0.2], [0.0], [-0.0]], [1.0, 1.0, 1.0, -1.0], [True, False, False, False]),
    ([[math.nan], [math.inf], [-math.inf]], [1.0, 1.0, -1.0], [False, False, False]),
    ([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], [0, 2], [True, False]),
    ([[0.0, 2.0], [2.0, 0.0], [math.nan, 0.0], [0.0, math.inf]], [1, 1, 0, 1], [True, False, False, False]),
], ids=["sign and zero", "not finite", "ties go to the first", "classes"])  # fmt: skip
def test_is_right(outputs: list, labels: list, right: list) -> None:
    found = is_right(torch.tensor(outputs, dtype=torch.float64), torch.tensor(labels))
    assert found.tolist() == right


def test_leading_dimensions_are_runs() -> None:
    outputs = torch.from_numpy(np.random.default_rng(12).normal(size=(2, 3, 4, 2)))
    classes = torch.tensor([0, 1, 1, 0])
    together = is_right(outputs, classes)
    assert together.shape == (2, 3, 4)
    assert all(torch.equal(together[i, j], is_right(outputs[i, j], classes)) for i in range(2) for j in range(3))


def test_a_sample_that_is_not_finite_counts_as_wrong() -> None:
    samples = torch.tensor([[[1.0], [1.0]], [[math.nan], [1.0]]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    reduced = accuracy_of_law(samples[0], ones, samples=samples)
    assert reduced.samples.tolist() == [1.0, 0.5]
    assert isinstance(reduced, Estimate)


@pytest.mark.parametrize("case", ["two outputs", "one output"])
def test_a_certain_law_has_the_accuracy_of_its_outputs(case: str) -> None:
    problem, descent = BY_NAME[case].problem(), sgdsde.dynamics.GradientDescent()
    asked = {"record": (0, 3), "observe": ("accuracy", "outputs")}
    predicted = sgdsde.predict(problem, sgdsde.SGD(0.1, 2), 3, dynamics=descent, **asked)
    for side, targets in (("train", problem.y_train), ("test", problem.y_test)):
        outputs = getattr(predicted, f"{side}_outputs").mean
        expected = is_right(outputs, problem.criterion.labels("y", targets, outputs.shape[-1])).double().mean(1)
        torch.testing.assert_close(getattr(predicted, f"{side}_accuracy").mean, expected)
        assert float(getattr(predicted, f"{side}_accuracy").std.max()) == 0


def test_without_asking_there_is_no_accuracy() -> None:
    predicted = sgdsde.predict(Case("small", 4, 1, 3).problem(), sgdsde.SGD(0.01, 2), 2)
    assert predicted.train_accuracy is None
    assert predicted.test_accuracy is None
    with pytest.raises(ValueError, match="'accuracy'"):
        sgdsde.predict(digits_problem(4), sgdsde.SGD(0.01, 2), 2, observe=("precision",))
