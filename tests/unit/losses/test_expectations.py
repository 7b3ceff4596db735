"""Expectations of a loss over Gaussian outputs: exact where there is a closed form, bounded always."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sgdsde.losses import CrossEntropy, SquaredError, TorchLoss, as_loss
from sgdsde.losses.expectations import gaussian_rule
from sgdsde.noise import gaussian_loss, gaussian_moments
from tests.statistics import assert_mean_is

N = 5


def law(c: int, *, std: float = 1.0, rank: int | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    mean = torch.randn(N, c, generator=stream, dtype=torch.float64)
    root = torch.randn(N, c, rank or c, generator=stream, dtype=torch.float64) * std / (rank or c) ** 0.5
    return mean, root @ root.mT


@pytest.mark.parametrize("c", [1, 2, 3, 4, 10, 30])
def test_the_rule_has_the_moments_of_the_normal_law(c: int) -> None:
    points, weights = gaussian_rule(c)
    assert float(weights.min()) > 0
    torch.testing.assert_close(weights.sum(), torch.ones((), dtype=torch.float64))
    assert float((weights @ points).abs().max()) < 1e-13
    torch.testing.assert_close(points.mT @ (weights[:, None] * points), torch.eye(c, dtype=torch.float64))
    third = torch.einsum("p,pa,pb,pd->abd", weights, points, points, points)
    assert float(third.abs().max()) < 1e-12


@pytest.mark.parametrize("c", [1, 2, 5])
def test_squares_are_exact_in_closed_form_and_by_the_rule(c: int) -> None:
    mean, blocks = law(c)
    targets = torch.ones(N, c, dtype=torch.float64)
    exact, by_rule = SquaredError(2 / c), TorchLoss(lambda f, y: (f - y).square().mean(), "squares")
    closed, found = (gaussian_moments(loss, mean, blocks, targets) for loss in (exact, by_rule))
    s = 2 / c
    second = (mean - targets)[:, :, None] * (mean - targets)[:, None, :] + blocks
    torch.testing.assert_close(closed.gradient, s * (mean - targets), rtol=1e-13, atol=0)
    torch.testing.assert_close(closed.gradient_moment, s**2 * second, rtol=1e-13, atol=0)
    for name in ("gradient", "hessian", "gradient_moment"):
        torch.testing.assert_close(getattr(found, name), getattr(closed, name), rtol=1e-11, atol=1e-12)
    expected = (s / 2) * second.diagonal(dim1=1, dim2=2).sum(1)
    for loss in (exact, by_rule):
        torch.testing.assert_close(gaussian_loss(loss, mean, blocks, targets), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize(("c", "std", "rtol"), [(1, 1.0, 1e-12), (2, 1.0, 1e-7), (4, 0.3, 5e-3), (10, 0.3, 5e-3)])
def test_an_exponential_has_the_moments_of_a_log_normal(c: int, std: float, rtol: float) -> None:
    """Poisson loss exp(f) - y f: E exp(f) = exp(m + v/2), E exp(f_a + f_b) = exp(m_a + m_b + var(f_a + f_b)/2)."""
    mean, blocks = law(c, std=std)
    zero = torch.zeros(N, c, dtype=torch.float64)
    found = gaussian_moments(as_loss(nn.PoissonNLLLoss(), c), mean, blocks, zero)
    variance = blocks.diagonal(dim1=1, dim2=2)
    expected = (mean + variance / 2).exp() / c
    torch.testing.assert_close(found.gradient, expected, rtol=rtol, atol=0)
    torch.testing.assert_close(found.hessian, expected.diag_embed(), rtol=rtol, atol=rtol)
    both = expected[:, :, None] * expected[:, None, :] * blocks.exp()
    torch.testing.assert_close(found.gradient_moment, both, rtol=10 * rtol, atol=0)
    total = gaussian_loss(as_loss(nn.PoissonNLLLoss(), c), mean, blocks, zero)
    torch.testing.assert_close(total, expected.sum(1), rtol=rtol, atol=0)


CASES = {
    "cross-entropy": (CrossEntropy(), torch.tensor([0, 1, 2, 1, 0])),
    "smoothed cross-entropy": (CrossEntropy(0.2), torch.tensor([0, 1, 2, 1, 0])),
    "logistic": (as_loss(nn.BCEWithLogitsLoss(), 3), torch.tensor([[1.0, 0.0, 1.0]] * N, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", CASES)
def test_against_draws(name: str) -> None:
    """At standard deviations where the rule's own error is below the sample's."""
    loss, targets = CASES[name]
    mean, blocks = law(3, std=0.8 if name == "logistic" else 0.5)
    found = gaussian_moments(loss, mean, blocks, targets)
    stream = torch.Generator().manual_seed(4)
    normal = torch.randn(20_000, N, 3, generator=stream, dtype=torch.float64)
    deviation = torch.einsum("iab,pib->pia", torch.linalg.cholesky(blocks), normal)
    gradient = loss.gradient(mean + deviation, targets)
    assert_mean_is(found.gradient, gradient, n_claims=4)
    assert_mean_is(found.gradient_moment, gradient[..., :, None] * gradient[..., None, :], n_claims=4)
    assert_mean_is(gaussian_loss(loss, mean, blocks, targets), loss.per_example(mean + deviation, targets), n_claims=4)
    stein = gradient[..., :, None] * deviation[..., None, :]
    assert_mean_is(found.hessian @ blocks, stein, what="Stein's lemma", n_claims=4)
    with pytest.raises(AssertionError):
        assert_mean_is(loss.gradient(mean, targets), gradient, what="no spread")
    with pytest.raises(AssertionError):
        assert_mean_is(loss.hessian(mean, targets) @ blocks, stein, what="the Hessian at the mean")


@pytest.mark.parametrize("std", [3.0, 100.0, 1e6])
def test_nothing_grows_beyond_the_losss_own_bounds(std: float) -> None:
    """|r| <= sqrt 2, 0 <= G <= 1/2; the second-order Taylor series is far outside."""
    mean, blocks = law(10, std=std)
    targets = torch.zeros(N, dtype=torch.int64)
    found = gaussian_moments(CrossEntropy(), mean, blocks, targets)
    assert float(found.gradient.norm(dim=1).max()) <= math.sqrt(2)
    assert float(found.gradient_moment.diagonal(dim1=1, dim2=2).sum(1).max()) <= 2
    values = torch.linalg.eigvalsh(found.hessian)
    assert float(values.min()) > -1e-12
    assert float(values.max()) <= 0.5
    own = found.gradient_moment - found.gradient[:, :, None] * found.gradient[:, None, :]
    assert float(torch.linalg.eigvalsh(own).min()) > -1e-12, "a covariance"


def test_a_singular_covariance_moves_in_its_range_only() -> None:
    mean, blocks = law(3, rank=1)
    targets = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(
        gaussian_moments(CrossEntropy(), mean, blocks - 1e-17 * torch.eye(3), targets).gradient,
        gaussian_moments(CrossEntropy(), mean, blocks, targets).gradient,
    )
    same = gaussian_moments(CrossEntropy(), mean, torch.zeros_like(blocks), targets)
    torch.testing.assert_close(same.gradient, CrossEntropy().gradient(mean, targets), rtol=1e-13, atol=1e-15)
    shifted = gaussian_moments(CrossEntropy(), mean, 9.0 * torch.ones(N, 3, 3, dtype=torch.float64), targets)
    torch.testing.assert_close(shifted.gradient, same.gradient, rtol=1e-6, atol=1e-7, msg="a common shift is nothing")


def test_relabelling_permutes_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mean, blocks = law(3)
    targets = torch.tensor([0, 1, 2, 1, 0])
    whole = gaussian_moments(CrossEntropy(), mean, blocks, targets)
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = gaussian_moments(CrossEntropy(), mean[order], blocks[order], targets[order])
    torch.testing.assert_close(permuted.gradient, whole.gradient[order], rtol=1e-12, atol=1e-14)
    monkeypatch.setattr("sgdsde.losses.expectations.NUMBERS_AT_ONCE", 1)
    single = gaussian_moments(CrossEntropy(), mean, blocks, targets)
    torch.testing.assert_close(single.hessian, whole.hessian, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        gaussian_loss(CrossEntropy(), mean, blocks, targets).sum(),
        sum(gaussian_loss(CrossEntropy(), mean[[i]], blocks[[i]], targets[[i]]).sum() for i in range(N)),
    )


def test_ten_classes_are_as_close_as_the_docstring_says() -> None:
    """Against 2^16 points of another scrambling; stated: 0.01 % at 0.3, 0.4 % at 1, 2 % at 3."""
    targets = torch.zeros(N, dtype=torch.int64)
    engine = torch.quasirandom.SobolEngine(10, scramble=True, seed=9)
    uniform = engine.draw(2**15, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform - 1)
    for std, stated in ((0.3, 1e-4), (1.0, 4e-3), (3.0, 2e-2)):
        mean, blocks = law(10, std=std)
        found = gaussian_moments(CrossEntropy(), mean, blocks, targets).gradient
        root = torch.linalg.cholesky(blocks)
        deviation = torch.einsum("iab,pb->pia", root, torch.cat([normal, -normal]))
        true = CrossEntropy().gradient(mean + deviation, targets).mean(0)
        assert float((found - true).norm() / true.norm()) < 2 * stated


def test_a_kinked_loss_has_an_expectation_and_no_hessian() -> None:
    loss = TorchLoss(lambda f, y: (f - y).abs().mean(), "absolute", find_kink=lambda loss: "whose gradient jumps by 2")
    mean, blocks = law(1)
    targets = torch.zeros(N, 1, dtype=torch.float64)
    std = blocks[:, 0, 0].sqrt()
    ratio = mean[:, 0] / std
    folded = std * math.sqrt(2 / math.pi) * torch.exp(-(ratio**2) / 2) + mean[:, 0] * torch.erf(ratio / math.sqrt(2))
    torch.testing.assert_close(gaussian_loss(loss, mean, blocks, targets), folded, rtol=0.05, atol=0)
    with pytest.raises(ValueError, match=r"got absolute, whose gradient jumps by 2; use"):
        gaussian_moments(loss, mean, blocks, targets)
