"""Claim: SDEPaths and MomentEquations describe one process: mean, variance and loss, train and test, at every step.

Three outputs and a kernel with a null space. The family-wise error rate is 1e-4 over all numbers compared (steps,
examples, outputs, train and test, two moments, losses); sample sizes are fixed beforehand, seeds fixed. The learning
rate is large enough that SGD itself, and every other wrong law below, is told apart.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import (
    Dynamics,
    EulerMaruyama,
    ExponentialEuler,
    Integrator,
    MomentEquations,
    MomentRecursion,
    OrnsteinUhlenbeck,
    OutputLaw,
    SDEInt,
    SDEPaths,
    WeakOrder2,
)
from tests.problems import BY_NAME, Case, linear_problem
from tests.statistics import assert_mean_is

THREE_OUTPUTS = Case("eight examples, three outputs, null space", 8, 3, 10, n_test=4)
RECORD = [1, 4, 16, 40]
N_PATHS = 4096
N_CLAIMS = len(RECORD) * 2 * 3


def linearization() -> sgdsde.Linearization:
    return sgdsde.linearize(THREE_OUTPUTS.problem())


def settings(words: dict | None = None) -> sgdsde.SGD:
    """A fifth of the mean-square limit at B = 2."""
    lr = 0.2 * sgdsde.stability.max_lr(linearization(), 2)
    return sgdsde.SGD(**{"lr": lr, "batch_size": 2} | (words or {}))


def assert_same_law(paths: list[OutputLaw], moments: list[OutputLaw], targets: tuple[Tensor, Tensor]) -> None:
    """Means, squared deviations from the predicted mean, and losses of every recorded step."""
    for sampled, law in zip(paths, moments, strict=True):
        for side, y in zip(("", "test_"), targets):
            samples, mean = getattr(sampled, f"{side}samples"), getattr(law, f"{side}mean")
            covariance = getattr(law, f"{side}covariance")
            what = f"step {law.step}, {side or 'train_'}"
            assert_mean_is(mean, samples, what=f"{what}mean", n_claims=N_CLAIMS)
            variance = covariance.diagonal().view_as(mean)
            assert_mean_is(variance, (samples - mean).square(), what=f"{what}variance", n_claims=N_CLAIMS)
            loss = (covariance.trace + (mean - y).square().sum()) / y.numel()
            assert_mean_is(loss, (samples - y).square().mean((1, 2)), what=f"{what}loss", n_claims=N_CLAIMS)


def compared(dynamics: SDEPaths, moments: Dynamics, sgd: sgdsde.SGD, other: sgdsde.SGD | None = None) -> None:
    problem = linearization()
    targets = (problem.targets, problem.problem.y_test)
    paths = list(dynamics.evolve(problem, sgd, RECORD))
    assert_same_law(paths, list(moments.evolve(problem, other or sgd, RECORD)), targets)


@pytest.mark.parametrize(
    "integrator", [EulerMaruyama(substeps=16), ExponentialEuler(), ExponentialEuler(2), WeakOrder2()], ids=repr
)
def test_the_sde(integrator: Integrator) -> None:
    compared(SDEPaths(N_PATHS, integrator), MomentEquations(1), settings())


def test_the_sde_without_replacement_with_a_schedule() -> None:
    lr = settings().lr_at(0)
    words = {"lr": lambda k: lr / (1 + k // 10), "sampling": "without_replacement"}
    for integrator in (ExponentialEuler(), WeakOrder2()):
        compared(SDEPaths(N_PATHS, integrator, seed=1), MomentEquations(1), settings(words))


@pytest.mark.parametrize(
    "words", [{}, {"momentum": 0.5, "weight_decay": 0.1, "label_noise_std": 0.5}, {"nesterov": True, "momentum": 0.3}]
)
def test_euler_with_one_step_and_the_recursion(words: dict) -> None:
    compared(SDEPaths(N_PATHS), MomentRecursion(), settings(words))


@pytest.mark.parametrize("words", [{"weight_decay": 0.1}, {"label_noise_std": 0.5}], ids=str)
def test_decay_and_label_noise_in_continuous_time(words: dict) -> None:
    compared(SDEPaths(N_PATHS, EulerMaruyama(16)), MomentEquations(1), settings(words))


WRONG: dict[str, Callable[[], tuple[Dynamics, sgdsde.SGD]]] = {
    "SGD instead of its SDE": lambda: (MomentRecursion(), settings()),
    "order 2": lambda: (MomentEquations(2), settings()),
    "a batch off by two": lambda: (MomentEquations(1), settings({"batch_size": 4})),
    "the factor of sampling dropped": lambda: (MomentEquations(1), settings({"sampling": "without_replacement"})),
    "half the learning rate": lambda: (MomentEquations(1), settings({"lr": settings().lr_at(0) / 2})),
    "noise of the start": lambda: (OrnsteinUhlenbeck("init"), settings()),
    "no noise": lambda: (MomentEquations(1), settings({"batch_size": 8, "sampling": "without_replacement"})),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_assertion_fails_for_every_wrong_law(name: str) -> None:
    moments, other = WRONG[name]()
    with pytest.raises(AssertionError, match="family-wise error rate"):
        compared(SDEPaths(N_PATHS, ExponentialEuler()), moments, settings(), other)


def test_the_noise_of_the_mean_path_is_told_apart_where_the_data_are_interpolated() -> None:
    """Above, what cannot be fitted makes most of the noise, and the spread little of it."""
    problem = sgdsde.linearize(BY_NAME["one output"].problem())
    sgd = sgdsde.SGD(0.5 * sgdsde.stability.max_lr(problem, 1), 1)
    targets = (problem.targets, problem.problem.y_test)
    record = [2, 5, 10]
    paths = list(SDEPaths(N_PATHS, ExponentialEuler(4)).evolve(problem, sgd, record))
    assert_same_law(paths, list(MomentEquations(1).evolve(problem, sgd, record)), targets)
    with pytest.raises(AssertionError, match="family-wise error rate"):
        assert_same_law(paths, list(OrnsteinUhlenbeck().evolve(problem, sgd, record)), targets)


# ------------------------------------------------------------------------------------------ sdeint's integrators


@pytest.mark.parametrize(("method", "substeps", "n_paths"), [
    ("itoEuler", 8, 128),
    ("itoSRI2", 2, 128),
    ("stratHeun", 4, 128),
    ("stratSRS2", 2, 128),
    ("stratKP2iS", 2, 64),
])  # fmt: skip
def test_sdeint_gives_the_same_law(method: str, substeps: int, n_paths: int) -> None:
    """Fewer paths, one output: mean, variance and loss of three examples, at one step."""
    rng = torch.Generator().manual_seed(4)
    features = torch.randn(4, 1, 2, generator=rng, dtype=torch.float64).numpy()
    problem = sgdsde.linearize(linear_problem(features, [[1.0], [-1.0], [0.5], [0.0]], [0.5, 0.5], n_train=3))
    sgd = sgdsde.SGD(0.2 * sgdsde.stability.max_lr(problem, 1), 1)
    paths = list(SDEPaths(n_paths, SDEInt(method, substeps)).evolve(problem, sgd, [6]))
    targets = (problem.targets, problem.problem.y_test)
    assert_same_law(paths, list(MomentEquations(1).evolve(problem, sgd, [6])), targets)
    with pytest.raises(AssertionError):
        assert_same_law(paths, list(MomentEquations(1).evolve(problem, sgdsde.SGD(sgd.lr, 4), [6])), targets)
