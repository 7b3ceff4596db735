"""Claim: EulerMaruyama(substeps=1) has the first two moments of SGD exactly, with all that torch adds to a step.

No sampling: each normal number is replaced by both signs, and all patterns are paths of equal weight.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import EulerMaruyama, ExponentialEuler, Integrator, MomentRecursion
from sgdsde.dynamics.paths.integrators import PathSetup
from tests.oracles import AllSigns
from tests.problems import BY_NAME, Case
from tests.settings import chosen

WORDS = chosen(
    "plain",
    "without replacement",
    "momentum, dampening",
    "nesterov, decay",
    "decay, without replacement",
    "falling lr, growing batch",
)


def exact_moments(
    linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int, integrator: Integrator
) -> tuple[Tensor, Tensor]:
    """Mean [n + m, c] and covariance of all outputs after some steps, by every pattern of signs."""
    n, c = linearization.outputs.shape
    per_step = n * integrator.substeps + (n * c if sgd.label_noise_std else 0)
    draws = AllSigns(per_step * n_steps)
    setup = PathSetup(linearization, sgd, sgd.plan(n, n_steps), 0)
    integrator.check(setup)
    group = integrator.group(setup, range(draws.n_paths), draws)
    group.advance(0, n_steps)
    assert draws.exhausted
    train, test = group.outputs(n_steps)
    outputs = train if test is None else torch.cat([train, test], dim=1)
    mean = outputs.mean(0)
    deviation = (outputs - mean).flatten(1)
    return mean, deviation.mT @ deviation / len(deviation)


def assert_is_sgd(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, n_steps: int, integrator: Integrator) -> None:
    mean, covariance = exact_moments(linearization, sgd, n_steps, integrator)
    (law,) = MomentRecursion().evolve(linearization, sgd, [n_steps])
    train = linearization.outputs.numel()
    assert law.test_mean is not None
    torch.testing.assert_close(mean, torch.cat([law.mean, law.test_mean]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance[:train, :train], law.covariance.to_dense(), rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(covariance[train:, train:], law.test_covariance.to_dense(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize(
    "name", ["one output, null space", "two outputs, duplicated input", "three outputs, null space"]
)
def test_three_steps(name: str, words: dict) -> None:
    sgd = sgdsde.SGD(**{"lr": 0.3, "batch_size": 2} | words)
    assert_is_sgd(sgdsde.linearize(BY_NAME[name].problem()), sgd, 3, EulerMaruyama())


def test_with_label_noise() -> None:
    linearization = sgdsde.linearize(BY_NAME["one output"].problem())
    assert_is_sgd(linearization, sgdsde.SGD(0.3, 3, label_noise_std=0.7, momentum=0.5), 2, EulerMaruyama())


@pytest.mark.parametrize("integrator", [EulerMaruyama(substeps=2), ExponentialEuler()], ids=repr)
def test_other_schemes_are_not_sgd(integrator: Integrator) -> None:
    """The same assertion fails: they are schemes of the SDE."""
    linearization = sgdsde.linearize(BY_NAME["one output, null space"].problem())
    with pytest.raises(AssertionError):
        assert_is_sgd(linearization, sgdsde.SGD(0.3, 2), 1, integrator)


@pytest.mark.parametrize("change", [{"batch_size": 4}, {"lr": 0.15}, {"sampling": "without_replacement"}], ids=str)
def test_other_settings_are_not_met(change: dict) -> None:
    linearization = sgdsde.linearize(BY_NAME["one output, null space"].problem())
    _, covariance = exact_moments(linearization, sgdsde.SGD(0.3, 2), 2, EulerMaruyama())
    other = sgdsde.SGD(**{"lr": 0.3, "batch_size": 2} | change)
    (law,) = MomentRecursion().evolve(linearization, other, [2])
    n = law.mean.numel()
    assert float((covariance[:n, :n] - law.covariance.to_dense()).norm()) > 0.1 * float(
        law.covariance.to_dense().norm()
    )


# ----------------------------------------------------------------- a smaller step leads to the SDE, to first order

PAIR = Case("two examples", 2, 2, 3, n_test=1)
"""Two examples: eight substeps have 2^16 patterns of signs."""
N_STEPS = 12


def moment_map(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, integrator: Integrator) -> Tensor:
    """Matrix of E[e e^T] -> E[e' e'^T] over one step of SGD, from steps that start at each pair of unit residuals."""
    targets, d = linearization.targets, linearization.outputs.numel()
    eye, columns = torch.eye(d, dtype=torch.float64), {}

    def moved(residual: Tensor) -> Tensor:
        start = dataclasses.replace(linearization, outputs=targets + residual.view_as(targets))
        mean, covariance = exact_moments(start, sgd, 1, integrator)
        e = (mean[: len(targets)] - targets).flatten()
        return covariance[:d, :d] + torch.outer(e, e)

    for i in range(d):
        columns[i, i] = moved(eye[i])
    for i in range(d):
        for j in range(i):
            columns[i, j] = columns[j, i] = (moved(eye[i] + eye[j]) - columns[i, i] - columns[j, j]) / 2
    return torch.stack([columns[i, j].flatten() for i in range(d) for j in range(d)], dim=1)


def errors(integrators: list[Integrator]) -> list[float]:
    """Relative error of E |e|^2 against the SDE after some steps of SGD, of each integrator."""
    linearization = sgdsde.linearize(PAIR.problem())
    lr = sgdsde.stability.max_lr_full_batch(linearization) / 16
    sgd = sgdsde.SGD(lr, 1)
    (law,) = sgdsde.dynamics.MomentEquations(1, rtol=1e-11).evolve(linearization, sgd, [N_STEPS])
    residual = (law.mean - linearization.targets).flatten()
    exact = float(law.covariance.trace + residual @ residual)
    start = linearization.residual.flatten()
    measured = []
    for integrator in integrators:
        moment = torch.outer(start, start).flatten()
        moment = torch.linalg.matrix_power(moment_map(linearization, sgd, integrator), N_STEPS) @ moment
        measured.append(abs(float(moment.view(len(start), -1).trace()) / exact - 1))
    return measured


def test_smaller_steps_of_euler_lead_to_the_sde() -> None:
    """Weak order 1 in lr / substeps: the error halves from 2 to 4 and from 4 to 8 substeps."""
    two, four, eight = errors([EulerMaruyama(2), EulerMaruyama(4), EulerMaruyama(8)])
    halvings = torch.log2(torch.tensor([two / four, four / eight])).tolist()
    assert halvings == pytest.approx([1, 1], abs=0.1)


def test_exponential_euler_is_there_at_once() -> None:
    euler, one, two, four = errors([EulerMaruyama(8), *(ExponentialEuler(k) for k in (1, 2, 4))])
    assert one < euler
    assert four < two / 1.8 < one / 3.2
