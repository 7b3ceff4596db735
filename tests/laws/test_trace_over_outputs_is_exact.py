"""For K_0 (x) I_c the recursion summed over outputs has the expected loss of the recursion of all outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import SGD, dynamics, stability
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.kernel import DenseKernel, KroneckerKernel, LowRankKernel, TiledKernel, leading_eigenpairs
from tests.settings import chosen

WORDS = chosen("plain", "without replacement", "nesterov", "momentum, decay", "label noise")


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    """Only the read-out is trained: the kernel is K_0 (x) I_3, of rank 5 of 8."""
    rng = np.random.default_rng(0)
    torch_from = lambda *shape: torch.from_numpy(rng.normal(size=shape))  # noqa: E731
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    model[0].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch_from(*parameter.shape))
    x, y = torch_from(11, 4), torch_from(11, 3)
    return sgdsde.Problem(model, x[:8], y[:8], loss=nn.MSELoss(), x_test=x[8:], y_test=y[8:])


def kronecker(problem: sgdsde.Problem) -> sgdsde.Linearization:
    trace = DenseKernel(sgdsde.empirical_ntk(problem.model, problem.x_train, outputs="trace"))
    return sgdsde.linearize(problem, kernel=KroneckerKernel(trace, 3, scale=1 / 3))


@pytest.mark.parametrize("words", WORDS)
def test_the_expected_losses_are_those_of_the_whole_recursion(problem, words):
    whole, traced = sgdsde.linearize(problem), kronecker(problem)
    torch.testing.assert_close(traced.kernel.to_dense(), whole.kernel)
    sgd = SGD(0.3 * stability.max_lr(whole, 2), 2, **WORDS[words])
    expected = sgdsde.predict(whole, sgd, 30)
    found = sgdsde.predict(traced, sgd, 30, dynamics=dynamics.TracedRecursion())
    for side in ("train_loss", "test_loss"):
        a, b = getattr(found, side), getattr(expected, side)
        torch.testing.assert_close(a.mean, b.mean, rtol=1e-9, atol=1e-12)
        assert (a.std >= b.std * (1 - 1e-9)).all()
        assert (a.std <= 4 * b.std + 1e-9).all()


def test_a_sum_over_outputs_that_forgets_one_fails(problem, monkeypatch):
    whole, traced = sgdsde.linearize(problem), kronecker(problem)
    sgd = SGD(0.3 * stability.max_lr(whole, 2), 2)
    expected = sgdsde.predict(whole, sgd, 30)
    monkeypatch.setattr(Modes, "mean_blocks", lambda self, mean: self.residual(mean)[:, :1].square().view(-1, 1, 1))
    found = sgdsde.predict(traced, sgd, 30, dynamics=dynamics.TracedRecursion())
    assert (found.train_loss.mean / expected.train_loss.mean - 1).abs().max() > 0.01


def test_the_mean_square_limit_is_that_of_one_output(problem):
    whole, traced = sgdsde.linearize(problem), kronecker(problem)
    for words in ({}, {"momentum": 0.5}):
        assert stability.max_lr(traced, 2, **words) == pytest.approx(stability.max_lr(whole, 2, **words), rel=1e-6)


def test_it_runs_on_leading_eigenpairs_of_a_kernel_on_disk(problem, tmp_path):
    trace = TiledKernel.create(tmp_path / "k", problem.model, problem.x_train, tile=3, outputs="trace")
    pairs = leading_eigenpairs(trace, 5)
    kernel = KroneckerKernel(LowRankKernel(pairs.values, pairs.vectors), 3, scale=1 / 3)
    sgd = SGD(0.3 * stability.max_lr(kronecker(problem), 2), 2)
    found = sgdsde.predict(sgdsde.linearize(problem, kernel=kernel), sgd, 30, dynamics=dynamics.TracedRecursion())
    expected = sgdsde.predict(sgdsde.linearize(problem), sgd, 30)
    torch.testing.assert_close(found.train_loss.mean, expected.train_loss.mean, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.test_loss.mean, expected.test_loss.mean, rtol=1e-8, atol=1e-12)


def test_what_it_cannot_represent_is_refused(problem):
    sgd = SGD(0.1, 2)
    with pytest.raises(ValueError, match="TracedRecursion cannot represent a kernel that outputs do not share"):
        sgdsde.predict(sgdsde.linearize(problem), sgd, 3, dynamics=dynamics.TracedRecursion())
    trace = DenseKernel(sgdsde.empirical_ntk(problem.model, problem.x_train, outputs="trace"))
    with pytest.raises(
        ValueError, match=r"kernel must be \[24, 24\], n_train \* n_outputs, got \[8, 8\]; wrap it: Kronecker"
    ):
        sgdsde.linearize(problem, kernel=trace)
    with pytest.raises(ValueError, match="TracedRecursion cannot represent the law of single outputs"):
        sgdsde.predict(kronecker(problem), sgd, 3, dynamics=dynamics.TracedRecursion(), observe=("loss", "outputs"))
    with pytest.raises(ValueError, match="TracedRecursion cannot represent shuffled epochs"):
        sgdsde.predict(kronecker(problem), SGD(0.1, 2, sampling="shuffled"), 3, dynamics=dynamics.TracedRecursion())


def test_the_bound_of_truncation_is_that_of_all_outputs(problem, tmp_path):
    whole = sgdsde.linearize(problem)
    trace = TiledKernel.create(tmp_path / "k", problem.model, problem.x_train, tile=3, outputs="trace")
    shared = sgdsde.linearize(problem, kernel=KroneckerKernel(trace, 3, scale=1 / 3)).truncate(3, tail="frozen")
    torch.testing.assert_close(shared.eigenbasis.values, whole.eigenbasis.values[-9:], rtol=1e-8, atol=1e-9)
    for words in WORDS.values():
        sgd = SGD(0.2 * stability.max_lr(whole, 2), 2, **words)
        expected = sgdsde.predict(whole, sgd, 20)
        one = sgdsde.predict(shared, sgd, 20, dynamics=dynamics.TracedRecursion())
        all_modes = sgdsde.predict(shared, sgd, 20, dynamics=dynamics.MomentRecursion())
        torch.testing.assert_close(one.train_loss.mean, all_modes.train_loss.mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.truncation_error, all_modes.truncation_error)
        error = (one.train_loss.mean - expected.train_loss.mean).abs()
        assert (error <= one.truncation_error * (1 + 1e-9) + 1e-13).all(), words
        assert error[-1] > 1e-4
