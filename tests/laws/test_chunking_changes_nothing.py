"""Claim: the memory budget, and how much is worked on together, decide how the work is cut, never what comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

import sgdsde
from sgdsde.dynamics import FrozenNoise, ModalMoments, MomentEquations, MomentRecursion, MovingKernel, SDEPaths
from tests.problems import LARGER, classification_problem, conv_problem, mlp_problem

T = TypeVar("T")
BUILDS = (mlp_problem, conv_problem, classification_problem)


def with_budgets(call: Callable[[int], T]) -> list[T]:
    """Results with the smallest power of two that is not refused, and with four times as much."""
    results: list[T] = []
    budget = 1
    while len(results) < 2:
        try:
            results.append(call(budget))
        except MemoryError:
            assert not results, "a larger budget was refused"
        budget *= 4 if results else 2
    return results


@pytest.mark.parametrize("build", BUILDS)
def test_the_kernel(build) -> None:
    problem = build()
    whole = sgdsde.empirical_ntk(problem.model, problem.x_train, problem.x_test)
    square = sgdsde.empirical_ntk(problem.model, problem.x_train)
    for kernel in with_budgets(
        lambda m: sgdsde.empirical_ntk(problem.model, problem.x_train, problem.x_test, memory=m)
    ):
        torch.testing.assert_close(kernel, whole, rtol=1e-12, atol=1e-12)
    for kernel in with_budgets(lambda m: sgdsde.empirical_ntk(problem.model, problem.x_train, memory=m)):
        torch.testing.assert_close(kernel, square, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kernel, kernel.mT, rtol=0, atol=0)


@pytest.mark.parametrize("build", BUILDS)
def test_the_linearization(build) -> None:
    problem = build()
    whole = sgdsde.linearize(problem)
    for part in with_budgets(lambda memory: sgdsde.linearize(problem, memory=memory)):
        for name in ("kernel", "cross_kernel", "outputs", "test_outputs", "weight_outputs", "test_weight_outputs"):
            torch.testing.assert_close(getattr(part, name), getattr(whole, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("words", [{}, {"momentum": 0.9, "sampling": "shuffled"}], ids=str)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
@pytest.mark.parametrize("build", [mlp_problem, conv_problem])
def test_the_ensemble(build, linearized: bool, words: dict) -> None:
    """70 runs: beyond one block of the random streams."""
    problem = build()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.2, 3, **words)
    whole = sgdsde.run_ensemble(source, sgd, 2, 70, seed=1, record=[2])
    for part in with_budgets(lambda memory: sgdsde.run_ensemble(source, sgd, 2, 70, seed=1, record=[2], memory=memory)):
        torch.testing.assert_close(part.train_loss.samples, whole.train_loss.samples, rtol=1e-12, atol=0)
        torch.testing.assert_close(part.test_loss.samples, whole.test_loss.samples, rtol=1e-12, atol=0)


@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_label_noise_is_drawn_alike(linearized: bool) -> None:
    problem = mlp_problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.2, 3, label_noise_std=0.5)
    whole = sgdsde.run_ensemble(source, sgd, 2, 70, seed=1, record=[2])
    for part in with_budgets(lambda memory: sgdsde.run_ensemble(source, sgd, 2, 70, seed=1, record=[2], memory=memory)):
        torch.testing.assert_close(part.train_loss.samples, whole.train_loss.samples, rtol=1e-12, atol=0)


@pytest.mark.parametrize("variant", [sgdsde.SVAG(2), sgdsde.NoisyGradient()], ids=["svag", "noisy gradient"])
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_variants_of_the_ensemble(linearized: bool, variant: object) -> None:
    problem = conv_problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.2, 3)

    def ensemble(memory: int | None, n_runs: int = 70) -> sgdsde.Trajectory:
        return sgdsde.run_ensemble(source, sgd, 2, n_runs, seed=1, record=[2], memory=memory, variant=variant)

    whole = ensemble(None)
    assert len(whole.train_loss.samples.unique()) == 70
    for part in with_budgets(ensemble):
        torch.testing.assert_close(part.train_loss.samples, whole.train_loss.samples, rtol=1e-12, atol=0)
    few = ensemble(None, 3)
    torch.testing.assert_close(few.train_loss.samples, whole.train_loss.samples[:3], rtol=1e-12, atol=0)


def test_a_variant_pays_for_all_of_its_examples() -> None:
    """The smallest budget that one run is given grows with the examples of a step: B, 2 B, n."""
    problem, sgd, needed = conv_problem(), sgdsde.SGD(0.2, 3), []
    for variant in (None, sgdsde.SVAG(1), sgdsde.SVAG(2), sgdsde.NoisyGradient()):
        with pytest.raises(MemoryError) as error:
            sgdsde.run_ensemble(problem, sgd, 1, 1, variant=variant, memory=1)
        needed.append(int(str(error.value).split("at least ")[1].split(" bytes")[0].replace(",", "")))
    plain, one, svag, noisy = needed
    assert plain == one
    assert (noisy - plain) * 3 == (svag - plain) * 4 > 0


def two_outputs() -> sgdsde.Linearization:
    return sgdsde.linearize(LARGER.problem())


@pytest.mark.parametrize(("name", "size", "dynamics", "words"), [
    ("moments.epochs.PAIRS_AT_ONCE", 1, MomentRecursion(epoch_starts=4), {"sampling": "shuffled"}),
    ("continuous.momentum_flow._PAIRS_AT_ONCE", 60, MomentEquations(2), {"momentum": 0.5}),
    ("moments.variance_jumps.EXAMPLES", 5, ModalMoments(), {}),
    ("moving_kernel.noise_induced_drift.NETWORKS_AT_ONCE", 3, MovingKernel(), {}),
    ("paths.integrators.frozen_noise.PANEL", 4, SDEPaths(3, FrozenNoise()), {}),
    ("paths.integrators.integrator.NUMBERS_AT_ONCE", 1, SDEPaths(3), {}),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_dynamics_work_on_any_number_of_pairs_examples_and_networks(name, size, dynamics, words, monkeypatch) -> None:
    linearization = two_outputs()
    lr = 0.4 * sgdsde.stability.max_lr(linearization, 4) * (1 - words.get("momentum", 0.0))
    sgd, n_steps = sgdsde.SGD(lr, 4, **words), 4000 if isinstance(dynamics, ModalMoments) else 9

    def predicted() -> sgdsde.Trajectory:
        return sgdsde.predict(linearization, sgd, n_steps, record=[0, 3, n_steps], dynamics=dynamics)

    whole = predicted()
    monkeypatch.setattr(f"sgdsde.dynamics.{name}", size)
    part = predicted()
    assert float(whole.train_loss.std[-1]) > 0
    for side in ("train_loss", "test_loss"):
        for kind in ("mean", "std"):
            one, other = (getattr(getattr(found, side), kind) for found in (whole, part))
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
