"""FrozenNoise: one step of any length has the law of the process with its noise frozen at initialization."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.dynamics import FrozenNoise, OrnsteinUhlenbeck, SDEPaths
from sgdsde.dynamics.paths.integrators import PathSetup
from sgdsde.dynamics.paths.integrators.frozen_noise import add_triangular, triangular_root
from tests.oracles import Given
from tests.problems import BY_NAME, LINEAR
from tests.statistics import assert_mean_is

SETTINGS = (
    {},
    {"sampling": "without_replacement"},
    {"lr": lambda k: 0.2 / (1 + k // 3)},
    {"lr": lambda k: 0.2 if k < 4 else 0.1, "batch_size": lambda k: 1 if k < 2 else 3},
    # two pieces that take equally long, whose noise differs
    {"lr": lambda k: 0.2 if 4 <= k < 6 else 0.1, "batch_size": lambda k: 2 if 4 <= k < 6 else 4},
)


@pytest.mark.parametrize("words", SETTINGS, ids=range(len(SETTINGS)))
@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_the_covariance_without_sampling(case: object, words: dict) -> None:
    """The steps are linear: paths whose numbers are unit vectors, one a step and mode, add up to the covariance."""
    made, sgd = sgdsde.linearize(case.problem()), sgdsde.SGD(**{"lr": 0.2, "batch_size": 2} | words)
    setup, rank, n_steps = PathSetup(made, sgd, sgd.plan(4, 7), 0), len(made.eigenbasis.values), 7
    for stride in (1, 3, None):
        bounds = setup.plan.segments(0, n_steps)
        count = sum(-(-(last - first) // (stride or last - first)) for first, last in bounds)
        numbers = torch.eye(count * rank, dtype=torch.float64).view(count * rank, count, rank)
        numbers = torch.cat([numbers, torch.zeros(1, count, rank, dtype=torch.float64)])
        group = FrozenNoise(stride).group(setup, range(len(numbers)), Given(list(numbers.unbind(1))))
        group.advance(0, n_steps)
        (law,) = OrnsteinUhlenbeck("init").evolve(made, sgd, [n_steps])
        for outputs, mean, covariance in zip(
            group.outputs(n_steps), (law.mean, law.test_mean), (law.covariance, law.test_covariance)
        ):
            torch.testing.assert_close(outputs[-1], mean, rtol=1e-12, atol=1e-12)
            moved = (outputs[:-1] - outputs[-1]).flatten(1)
            torch.testing.assert_close(moved.mT @ moved, covariance.to_dense(), rtol=1e-10, atol=1e-12)


def test_sampled_paths_and_the_wrong_noise() -> None:
    made, sgd = sgdsde.linearize(BY_NAME["two outputs"].problem()), sgdsde.SGD(0.3, 1)
    (law,) = SDEPaths(4096, FrozenNoise()).evolve(made, sgd, [20])
    (exact,) = OrnsteinUhlenbeck("init").evolve(made, sgd, [20])
    squares = (law.samples - exact.mean).square()
    assert_mean_is(exact.mean, law.samples, what="mean", n_claims=2)
    assert_mean_is(exact.covariance.diagonal().view_as(exact.mean), squares, what="variance", n_claims=2)
    (wrong,) = OrnsteinUhlenbeck("mean_path").evolve(made, sgd, [20])
    with pytest.raises(AssertionError, match="family-wise error rate"):
        assert_mean_is(wrong.covariance.diagonal().view_as(exact.mean), squares, what="variance", n_claims=2)


@pytest.mark.parametrize("size", [1, 5, 127, 128, 131, 600])
def test_panels_are_the_product(size: int) -> None:
    rng = torch.Generator().manual_seed(size)
    root = torch.randn(size, size, generator=rng, dtype=torch.float64).triu()
    state, numbers = torch.randn(2, 3, size, generator=rng, dtype=torch.float64)
    expected = state + numbers @ root
    add_triangular(state, numbers, root)
    torch.testing.assert_close(state, expected, rtol=1e-12, atol=1e-12)


def test_the_root_of_a_singular_covariance() -> None:
    half = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = triangular_root(half @ half.mT)
    torch.testing.assert_close(root.mT @ root, half @ half.mT, rtol=1e-12, atol=1e-12)
    assert torch.equal(root, root.triu())


@pytest.mark.parametrize("stride", [0, 1.5, -1])
def test_messages(stride: object) -> None:
    with pytest.raises(ValueError, match="stride must be"):
        FrozenNoise(stride)
