"""Claim: over shuffled epochs ``MomentRecursion`` has the mean of torch's SGD and its loss within a stated error.

Oracle: every order in which an epoch's batches can come, epoch after epoch. The recursion closes the moments by a
regression on which examples remain; its error grows like the cube of the learning rate. In every case below that of the
i.i.d. recursion is more than twice the bound.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion
from sgdsde.dynamics.moments.linearized_state import LinearizedState
from tests.epochs import EpochLaw, enumerate_epochs, every_order, step_map
from tests.oracles import torch_optimizer
from tests.problems import Case, linear_problem
from tests.settings import chosen

SIX = Case("six examples, null space", 6, 1, 4)
SIX_WIDE = Case("six examples, two outputs, null space", 6, 2, 8)
SEVEN = Case("seven examples, null space", 7, 1, 4)
FIVE = Case("five examples, two outputs, null space", 5, 2, 7)
FIVE_WIDE = Case("five examples, three outputs, duplicated input", 5, 3, 9, duplicated=True)

N_STEPS = 12
FRACTION_OF_LIMIT = 0.3
WORDS = chosen(
    "plain",
    "decay",
    "momentum",
    "momentum, dampening",
    "nesterov",
    "momentum, dampening, decay",
    "nesterov, decay",
)


def shuffled(case: Case, fraction: float, batch_size: object = 2, **words: object) -> sgdsde.SGD:
    """lr as a fraction of the mean-square limit of fresh, smallest batches without replacement; lr_shape varies it."""
    shape = words.pop("lr_shape", None)
    iid = {key: words[key] for key in ("momentum", "nesterov", "weight_decay") if key in words}
    smallest = min(batch_size(k) for k in range(N_STEPS)) if callable(batch_size) else batch_size
    limit = sgdsde.stability.max_lr(case.problem(), smallest, sampling="without_replacement", **iid)
    lr = (lambda k: fraction * limit * shape(k)) if shape else fraction * limit
    return sgdsde.SGD(lr, batch_size, sampling="shuffled", **words)


def fresh(sgd: sgdsde.SGD, n: int) -> sgdsde.SGD:
    """The same batch sizes, each batch fresh."""
    sizes = sgd.plan(n, N_STEPS).batch_size.tolist()
    return dataclasses.replace(sgd, sampling="without_replacement", drop_last=False, batch_size=lambda k: sizes[k])


def loss_errors(
    case: Case, sgd: sgdsde.SGD, oracle: list[EpochLaw], dynamics: MomentRecursion | None = None
) -> np.ndarray:
    predicted = sgdsde.predict(case.problem(), sgd, N_STEPS, dynamics=dynamics, record=range(N_STEPS + 1))
    return np.abs(predicted.train_loss.mean.numpy() / [law.train_loss for law in oracle] - 1)


def assert_close(case: Case, sgd: sgdsde.SGD, *, bound: float) -> None:
    """The mean exactly, the loss of train and test set within ``bound``, and the i.i.d. recursion well outside."""
    problem = case.problem()
    oracle = enumerate_epochs(problem, sgd, N_STEPS)
    predicted = sgdsde.predict(problem, sgd, N_STEPS, record=range(N_STEPS + 1), observe=("loss", "outputs"))
    d = problem.n_train * problem.n_outputs
    mean = torch.cat([predicted.train_outputs.mean.flatten(1), predicted.test_outputs.mean.flatten(1)], dim=1)
    np.testing.assert_allclose(mean, [law.mean for law in oracle], rtol=1e-12, atol=1e-12)
    first = torch.cat([predicted.train_outputs.std[1].flatten(), predicted.test_outputs.std[1].flatten()]) ** 2
    np.testing.assert_allclose(first, oracle[1].covariance.diagonal(), rtol=1e-10, atol=1e-14)
    assert d < len(oracle[0].mean)
    error = loss_errors(case, sgd, oracle)
    assert error[:2].max() < 1e-12, "the first step is exact"
    assert error.max() < bound
    test = np.abs(predicted.test_loss.mean.numpy() / [law.test_loss for law in oracle] - 1)
    assert test.max() < 4 * bound, "a test loss far below its start amplifies relative errors"
    assert loss_errors(case, fresh(sgd, problem.n_train), oracle).max() > 2 * bound


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize(("case", "bound"), [(SIX, 0.02), (SIX_WIDE, 0.01)], ids=lambda x: getattr(x, "name", ""))
def test_every_word(case: Case, bound: float, words: dict) -> None:
    assert_close(case, shuffled(case, FRACTION_OF_LIMIT, **words), bound=bound)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_small_steps_are_nearly_exact(words: dict) -> None:
    assert_close(SIX, shuffled(SIX, FRACTION_OF_LIMIT / 3, **words), bound=0.002)


@pytest.mark.parametrize(("case", "words", "bound"), [
    (FIVE, {"momentum": 0.9}, 0.01),
    (FIVE_WIDE, {"batch_size": 3}, 0.01),
    (SEVEN, {"batch_size": 3, "drop_last": True}, 0.03),
    (FIVE, {"drop_last": True, "momentum": 0.9}, 0.01),
    (SIX, {"momentum": 0.9, "lr_shape": lambda k: (1.0, 0.5, 0.8, 1.2, 0.6)[k % 5]}, 0.01),
    (SIX, {"batch_size": lambda k: (1, 2, 3)[k % 3], "momentum": 0.9}, 0.01),
    (SIX, {"batch_size": lambda k: (1, 2, 3, 1, 4)[k % 5]}, 0.02),
], ids=[
    "smaller last batch, momentum", "smaller last batch, three outputs", "last batch dropped",
    "last batch dropped, momentum", "learning-rate schedule", "batch-size schedule", "batch sizes across epochs",
])  # fmt: skip
def test_epochs_of_every_shape(case: Case, words: dict, bound: float) -> None:
    assert_close(case, shuffled(case, FRACTION_OF_LIMIT, **words), bound=bound)


def test_the_error_falls_like_the_cube_of_the_learning_rate() -> None:
    errors = []
    for fraction in (0.2, 0.1, 0.05):
        sgd = shuffled(SIX, fraction)
        errors.append(loss_errors(SIX, sgd, enumerate_epochs(SIX.problem(), sgd, N_STEPS))[3])
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert orders[-1] == pytest.approx(3, abs=0.3)


def test_single_examples_close_less_well() -> None:
    """Six steps an epoch: here the mean too depends on the closure."""
    sgd = shuffled(SIX, 0.1, batch_size=1)
    oracle = enumerate_epochs(SIX.problem(), sgd, N_STEPS)
    error = loss_errors(SIX, sgd, oracle)
    assert error.max() < 0.02
    assert loss_errors(SIX, fresh(sgd, 6), oracle).max() > 0.04


@pytest.mark.parametrize("words", ["plain", "momentum, dampening, decay", "nesterov, decay"])
@pytest.mark.parametrize("case", [SIX, FIVE_WIDE], ids=lambda case: case.name)
def test_the_mean_equation_is_exact_given_the_usage_covariance(case: Case, words: str) -> None:
    """m' = G m + a + (lr s/R) K (rho m - P_own), with the P of the enumeration in place of the closure's."""
    problem, sgd = case.problem(), shuffled(case, 0.6, batch_size=1, **WORDS[words])
    oracle, plan = enumerate_epochs(problem, sgd, N_STEPS), sgd.plan(problem.n_train, N_STEPS)
    linearization, d = sgdsde.linearize(problem), problem.n_train * problem.n_outputs
    inverse = torch.linalg.pinv(linearization.kernel)
    corrected = uncorrected = 0.0
    told, free = LinearizedState(linearization, sgd, plan), LinearizedState(linearization, sgd, plan)
    for k in range(N_STEPS):
        told._fluctuation._usage[0, :d] = inverse @ torch.from_numpy(oracle[k].usage)  # of the weights J^T a
        for state in (told, free):
            state.advance(k)
        exact = torch.from_numpy(oracle[k + 1].mean[:d])
        corrected = max(corrected, float((told.law(k + 1, 0.0).mean.flatten() - exact).abs().max()))
        uncorrected = max(uncorrected, float((free.law(k + 1, 0.0).mean.flatten() - exact).abs().max()))
    assert corrected < 1e-11
    assert uncorrected > 1e-6, "otherwise this shows nothing"


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_oracle_steps_as_torch_does(words: dict) -> None:
    problem, sgd = FIVE.problem(), shuffled(FIVE, 0.5, **words)
    order = every_order(5, [2, 2, 1])[17]
    theta = problem.params["theta"].clone().requires_grad_()
    state = np.concatenate([theta.detach(), np.zeros(len(theta)), [1.0]])
    optimizer = torch_optimizer([theta], sgd)
    for k in range(2 * len(order)):
        batch = order[k % len(order)]
        optimizer.zero_grad()
        outputs = problem.x_train[list(batch)] @ theta
        problem.loss(outputs, problem.y_train[list(batch)]).backward()
        optimizer.step()
        state = step_map(problem, sgd, k, batch) @ state
        np.testing.assert_allclose(state[: len(theta)], theta.detach(), rtol=1e-12, atol=1e-13)
    assert len(every_order(6, [2, 2, 2])) == 90


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_whole_set_as_a_batch_is_gradient_descent(words: dict) -> None:
    problem, sgd = SIX_WIDE.problem(), shuffled(SIX_WIDE, 0.9, batch_size=6, **words)
    asked = {"record": range(N_STEPS + 1), "observe": ("loss", "outputs")}
    epochs = sgdsde.predict(problem, sgd, N_STEPS, **asked)
    descent = sgdsde.predict(problem, sgd, N_STEPS, dynamics=sgdsde.dynamics.GradientDescent(), **asked)
    torch.testing.assert_close(epochs.train_loss.mean, descent.train_loss.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(epochs.train_outputs.mean, descent.train_outputs.mean, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(epochs.test_outputs.mean, descent.test_outputs.mean, rtol=1e-11, atol=1e-11)
    assert float(epochs.train_outputs.std.max()) == 0 == float(epochs.train_loss.std.max())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2)])
def test_the_smallest_sets_do_not_divide_by_zero(n: int, batch_size: int, momentum: float) -> None:
    """Two steps an epoch at most, or one example at a time: exact up to n = 2."""
    case = Case("smallest", n, 1, 3)
    problem, sgd = case.problem(), shuffled(case, 0.1, batch_size, momentum=momentum)
    oracle = enumerate_epochs(problem, sgd, N_STEPS)
    laws = list(MomentRecursion().evolve(sgdsde.linearize(problem), sgd, range(N_STEPS + 1)))
    for law, exact in zip(laws, oracle):
        assert law.covariance is None or torch.isfinite(law.covariance.to_dense()).all()
        np.testing.assert_allclose(law.mean.flatten(), exact.mean[:n], rtol=1e-3 if n == 3 else 1e-12)
    assert loss_errors(case, sgd, oracle).max() < (1e-12 if n == 1 or batch_size == n else 1e-2)


def test_a_spread_at_the_start_of_an_epoch_is_split() -> None:
    """The closure is written for an epoch that starts without spread; unsplit, its error builds up over the epochs."""
    sgd = shuffled(SIX, 0.8, momentum=0.9)
    oracle = enumerate_epochs(SIX.problem(), sgd, N_STEPS)
    split = loss_errors(SIX, sgd, oracle)
    whole = loss_errors(SIX, sgd, oracle, MomentRecursion(epoch_starts=0))
    assert split[:4] == pytest.approx(whole[:4], abs=1e-12), "the first epoch starts without spread"
    assert split[-3:].max() < 0.3 * whole[-3:].max()


def test_splitting_keeps_the_second_moment() -> None:
    problem, sgd = SIX.problem(), shuffled(SIX, 0.5, momentum=0.9)
    linearization = sgdsde.linearize(problem)
    state = LinearizedState(linearization, sgd, sgd.plan(6, 4), most_starts=32)
    for k in range(3):
        state.advance(k)
    fluctuation = state._fluctuation
    seen = fluctuation.expectations(state._features, state.law(3, 0.0).mean)
    rest, deviations, usage = fluctuation._split(fluctuation._starts(3, seen))
    assert len(deviations) > 1
    torch.testing.assert_close(rest + deviations.mT @ deviations, fluctuation.covariance, rtol=1e-10, atol=1e-12)
    assert float(usage.abs().max()) == 0
    kernel, d = linearization.kernel, len(linearization.kernel)
    left, before = (float((kernel @ part[:d, :d] @ kernel).trace()) for part in (rest, fluctuation.covariance))
    assert abs(left) < 0.5 * before  # the closure itself may leave a small negative variance


def test_label_noise_at_the_whole_set_is_that_of_fresh_batches() -> None:
    """Six examples drawn of six: the closure is exact, and nothing but the fresh noise is left."""
    words = {"momentum": 0.6, "label_noise_std": 0.7, "weight_decay": 0.05}
    linearization = sgdsde.linearize(SIX.problem())
    epochs, fresh = (
        sgdsde.predict(linearization, sgdsde.SGD(0.1, 6, sampling=sampling, **words), 8)
        for sampling in ("shuffled", "without_replacement")
    )
    np.testing.assert_allclose(epochs.train_loss.mean, fresh.train_loss.mean, rtol=1e-12)
    np.testing.assert_allclose(epochs.test_loss.std[1:], fresh.test_loss.std[1:], rtol=1e-9)
    assert (fresh.train_loss.std[1:] > 0).all()


def test_the_two_examples_of_the_derivation() -> None:
    """docs/derivations.md, section 5: orthogonal inputs, a drawn residual times 0.6."""
    problem = linear_problem([[[1.0, 0.0]], [[0.0, 1.0]]], [[0.0], [0.0]], [1.0, 1.0])
    epochs, fresh_batches = (
        sgdsde.predict(problem, sgdsde.SGD(0.2, 1, sampling=sampling), 2, record=[1, 2], observe=("loss", "outputs"))
        for sampling in ("shuffled", "with_replacement")
    )
    for found, means, variances in (
        (epochs.train_outputs, (0.8, 0.6), (0.04, 0.0)),
        (fresh_batches.train_outputs, (0.8, 0.64), (0.04, 0.0528)),
    ):
        for i in (0, 1):
            np.testing.assert_allclose(found.mean[i], means[i], atol=1e-14)
            np.testing.assert_allclose(found.std[i].square(), variances[i], atol=1e-14)
