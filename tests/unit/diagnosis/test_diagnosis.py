"""Diagnoses: the numbers against their definitions, the grades, the advice, and what is said where a check fails."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import dynamics
from sgdsde.diagnosis import Advice, Diagnosis, Grade, calibration, diagnose, indicators
from sgdsde.dynamics.moving_kernel.mean_path import kernel_drift
from tests.problems import LARGER, classification_problem, digits_problem, mlp_problem

CHECKS = ["stability", "kernel_drift", "laziness", "noise_scale", "confusion", "feedback", "linearization", "sde"]


@pytest.fixture(scope="module")
def linearization() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(24, width=64))


@pytest.fixture(scope="module")
def sgd(linearization: sgdsde.Linearization) -> sgdsde.SGD:
    return sgdsde.SGD(0.3 * sgdsde.stability.max_lr(linearization, 4), 4)


@pytest.fixture(scope="module")
def found(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> Diagnosis:
    return diagnose(linearization, sgd, 20)


# ------------------------------------------------------------------------------------------- the numbers


def test_the_checks_are_those_and_in_this_order(found: Diagnosis) -> None:
    assert list(found.checks) == CHECKS
    assert all(name == check.name and check.source and check.sentence for name, check in found.checks.items())


def test_the_drift_is_that_of_the_mean_path(
    found: Diagnosis, linearization: sgdsde.Linearization, sgd: sgdsde.SGD
) -> None:
    drift = kernel_drift(linearization.problem, sgd, 20, record=[5, 10, 20])
    assert found.checks["kernel_drift"].value == pytest.approx(drift.largest, rel=1e-9)


def test_the_ratio_to_the_limit_is_at_least_that_of_the_start(
    found: Diagnosis, linearization: sgdsde.Linearization, sgd: sgdsde.SGD
) -> None:
    assert indicators.limit_ratio(linearization, sgd, 20) == pytest.approx(0.3, rel=1e-6)
    assert 0.3 * (1 - 1e-6) <= found.checks["stability"].value < 0.5


def test_the_limit_knows_every_word_of_the_training(linearization: sgdsde.Linearization) -> None:
    words = {"momentum": 0.8, "dampening": 0.5, "weight_decay": 0.3}
    limit = sgdsde.stability.max_lr(linearization, 4, **words)
    assert limit != pytest.approx(sgdsde.stability.max_lr(linearization, 4, momentum=0.8, weight_decay=0.3), rel=0.2)
    assert indicators.limit_ratio(linearization, sgdsde.SGD(0.3 * limit, 4, **words), 10) == pytest.approx(0.3)
    climbing = sgdsde.SGD(1e-3, 4, momentum=0.8, dampening=1.5)
    assert indicators.limit_ratio(linearization, climbing, 10) == float("inf")


def test_the_limit_of_a_schedule_is_that_of_its_worst_step(linearization: sgdsde.Linearization) -> None:
    limit = sgdsde.stability.max_lr(linearization, 2)
    schedule = sgdsde.SGD(lambda k: 0.5 * limit / (k + 1), lambda k: 2 + k)
    assert indicators.limit_ratio(linearization, schedule, 10) == pytest.approx(0.5, rel=1e-6)
    fresh = sgdsde.stability.max_lr(linearization, 5, sampling="without_replacement")
    shuffled = sgdsde.SGD(0.25 * fresh, 5, sampling="shuffled", drop_last=True)
    assert indicators.limit_ratio(linearization, shuffled, 10) == pytest.approx(0.25, rel=1e-6)


def test_laziness_is_the_curvature_of_the_outputs_along_the_first_step() -> None:
    """Twin: finite differences along J^T r."""
    problem = mlp_problem()
    linearization = sgdsde.linearize(problem)
    residual = linearization.outputs - problem.y_train
    leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    value = (problem.forward(leaves, problem.x_train) * residual).sum()
    direction = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()))))
    length = math.sqrt(sum(float(part.square().sum()) for part in direction.values()))

    def at(h: float) -> torch.Tensor:
        moved = {name: part + h * direction[name] / length for name, part in problem.params.items()}
        return problem.forward(moved, problem.x_train)

    h = 1e-3
    slope, bend = (at(h) - at(-h)) / (2 * h), (at(h) - 2 * at(0.0) + at(-h)) / h**2
    expected = float(residual.norm() * bend.norm() / slope.norm() ** 2)
    assert indicators.laziness(linearization) == pytest.approx(expected, rel=1e-4)


def test_laziness_falls_as_one_over_the_scale_of_centered_outputs() -> None:
    """alpha (f - f_0): f_0 = 0, so |f_0 - y| stays, D^2 f grows like alpha, |D f|^2 like its square."""
    base = mlp_problem()
    start = {name: value.clone() for name, value in base.params.items()}
    values = []
    for alpha in (1.0, 4.0, 16.0):

        def centered(params, x, alpha=alpha):
            return alpha * (base.forward(params, x) - base.forward(start, x))

        problem = sgdsde.Problem((centered, start), base.x_train, base.y_train, loss=nn.MSELoss())
        values.append(indicators.laziness(sgdsde.linearize(problem)))
    assert values[0] / values[1] == pytest.approx(4, rel=1e-9)
    assert values[1] / values[2] == pytest.approx(4, rel=1e-9)


def test_the_noise_ratio_is_variance_over_squared_mean() -> None:
    """From one backward pass an example; phi for batches without replacement."""
    problem = mlp_problem()
    n, each = problem.n_train, []
    for i in range(n):
        leaves = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
        loss = problem.loss(problem.forward(leaves, problem.x_train[i : i + 1]), problem.y_train[i : i + 1])
        each.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(leaves.values()))]))
    gradients = torch.stack(each)
    variance = float((gradients - gradients.mean(0)).square().sum() / n)
    squared = float(gradients.mean(0).square().sum())
    linearization = sgdsde.linearize(problem)
    for sampling, phi in (("with_replacement", 1.0), ("without_replacement", (n - 3) / (n - 1))):
        ratio = indicators.noise_ratio(linearization, sgdsde.SGD(0.1, 3, sampling=sampling))
        assert ratio == pytest.approx(phi * variance / (3 * squared), rel=1e-9)
    assert indicators.noise_ratio(linearization, sgdsde.SGD(0.1, n, sampling="without_replacement")) == 0


def test_the_sde_is_told_from_sgd_by_their_expected_losses(
    found: Diagnosis, linearization: sgdsde.Linearization, sgd: sgdsde.SGD
) -> None:
    words = {"record": None, "n_steps": 20}
    exact = sgdsde.predict(linearization, sgd, **words).train_loss.mean
    flow = sgdsde.predict(linearization, sgd, dynamics=dynamics.MomentEquations(1), **words).train_loss.mean
    expected = float((flow / exact - 1).abs().max())
    assert found.checks["sde"].value == pytest.approx(expected, rel=1e-2)
    tiny = diagnose(linearization, sgdsde.SGD(sgd.lr / 50, 4), 20)
    assert tiny.checks["sde"].grade is Grade.GOOD
    assert tiny.checks["sde"].value < expected / 20


def test_the_top_curvature_under_cross_entropy() -> None:
    linearization = sgdsde.linearize(classification_problem())
    problem = linearization.problem
    blocks = problem.criterion.hessian(linearization.outputs, linearization.targets)
    dense = linearization.kernel @ torch.block_diag(*blocks) / problem.n_train
    top = float(torch.linalg.eigvals(dense).real.max())
    sgd = sgdsde.SGD(0.1, 3)
    value = indicators.sde_error(torch.ones(2), linearization, sgd, [0, 5])
    assert value == pytest.approx(0.1 * top / 2, rel=1e-3)


# -------------------------------------------------------------------------------------------- the advice


def test_a_linear_model_is_predicted_with_a_frozen_kernel() -> None:
    problem = LARGER.problem()
    found = diagnose(problem, sgdsde.SGD(0.2 * sgdsde.stability.max_lr(problem, 4), 4), 30)
    assert found.advice is Advice.FROZEN_KERNEL
    assert found.predictor == dynamics.MomentRecursion()
    assert found.expected_error == found.frozen_error < 1e-6
    assert found.checks["kernel_drift"].value < 1e-12
    assert found.checks["laziness"].value < 1e-12


def test_whole_batches_give_no_noise_and_no_feedback() -> None:
    problem = mlp_problem()
    found = diagnose(problem, sgdsde.SGD(0.05, 7, sampling="without_replacement"), 10)
    assert found.checks["noise_scale"].value == 0
    assert found.checks["feedback"].value == 0
    assert found.moving_error == 0


def test_past_the_limit_nothing_is_advised() -> None:
    problem = digits_problem(24, width=64)
    found = diagnose(problem, sgdsde.SGD(1.3 * sgdsde.stability.max_lr(problem, 4), 4), 5)
    assert found.advice is Advice.MEASURE
    assert found.predictor is None
    assert found.expected_error == math.inf
    assert found.checks["stability"].grade is Grade.BAD
    assert found.checks["sde"].sentence == "not compared past the mean-square limit"
    assert "none given with a frozen kernel, none given with a moving one" in found.sentence


def test_a_mean_path_that_diverges_is_named() -> None:
    problem = digits_problem(24, width=64)
    found = diagnose(problem, sgdsde.SGD(50 * sgdsde.stability.max_lr_full_batch(problem), 4), 60)
    check = found.checks["kernel_drift"]
    assert check.grade is Grade.BAD
    assert "the mean path of the network must stay finite, got NaN or infinity at step" in check.sentence
    assert found.advice is Advice.MEASURE


def test_a_drift_that_was_never_measured_is_not_predicted(monkeypatch) -> None:
    problem, sgd = digits_problem(24, width=8), sgdsde.SGD(0.1, 8)
    within = diagnose(problem, sgd, 40)
    drift = within.checks["kernel_drift"].value
    assert math.isfinite(within.moving_error)
    monkeypatch.setattr(calibration, "DRIFT_MEASURED", 0.9 * drift)
    beyond = diagnose(problem, sgd, 40, tolerance=1e9)
    assert beyond.checks["kernel_drift"].grade is Grade.BAD
    assert "more than was ever measured" in beyond.checks["kernel_drift"].sentence
    assert beyond.frozen_error == beyond.moving_error == math.inf
    assert beyond.advice is Advice.MEASURE


def test_what_the_moving_kernel_warns_of_is_said_and_not_warned() -> None:
    """A step within which the kernel moves by more than the moving kernel can follow, below every limit."""
    problem = digits_problem(24, width=8)
    found = diagnose(problem, sgdsde.SGD(0.9 * sgdsde.stability.max_lr(problem, 24), 24), 4)
    assert "(the kernel moves by" in found.checks["linearization"].sentence
    assert found.moving_losses is not None


def test_what_the_moving_kernel_refuses_is_said_and_not_advised(monkeypatch) -> None:
    def refused(self, *_, **__):
        raise ValueError("MovingKernel cannot represent this")

    monkeypatch.setattr(dynamics.MovingKernel, "evolve", refused)
    found = diagnose(mlp_problem(), sgdsde.SGD(0.1, 3), 8)
    assert (
        found.checks["linearization"].sentence.split(" (of ")[1].startswith("full batches alone; MovingKernel cannot")
    )
    assert found.moving_error == math.inf
    assert found.moving_losses is None
    assert found.advice is not Advice.MOVING_KERNEL
    assert math.isfinite(found.frozen_error)


def test_the_advice_follows_the_errors_and_the_tolerance(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> None:
    for tolerance in (1e-6, 0.02, 0.05, 10.0):
        found = diagnose(linearization, sgd, 20, tolerance=tolerance)
        frozen, moving = found.frozen_error <= tolerance, found.moving_error <= tolerance
        expected = Advice.FROZEN_KERNEL if frozen else Advice.MOVING_KERNEL if moving else Advice.MEASURE
        assert found.advice is expected
        assert (found.checks["linearization"].grade is Grade.GOOD) == (found.checks["linearization"].value <= tolerance)
    assert diagnose(linearization, sgd, 20, tolerance=1e-6).advice is Advice.MEASURE
    assert found.advice is Advice.FROZEN_KERNEL


def test_the_errors_follow_the_calibration(found: Diagnosis) -> None:
    expected = calibration.moving_error(found.checks["feedback"].value)
    assert found.moving_error == pytest.approx(expected)
    assert found.frozen_error == pytest.approx(found.checks["linearization"].value + expected)
    assert calibration.moving_error(calibration.feedback_at(0.05)) == pytest.approx(0.05)


def test_shuffled_epochs_and_other_losses_are_diagnosed() -> None:
    shuffled = diagnose(mlp_problem(), sgdsde.SGD(0.05, 3, sampling="shuffled"), 10)
    assert math.isnan(shuffled.checks["sde"].value)
    assert shuffled.checks["sde"].sentence == "shuffled epochs have no SDE"
    entropy = diagnose(classification_problem(), sgdsde.SGD(0.1, 3), 10)
    quadratic = sgdsde.stability.max_lr(classification_problem(), 3)
    assert entropy.checks["stability"].value >= 0.1 / quadratic * (1 - 1e-6)
    assert math.isfinite(entropy.frozen_error)


def test_past_the_quadratic_of_another_loss_is_a_caution_only() -> None:
    """Cross-entropy need not grow there, so the errors are still given."""
    problem = classification_problem()
    found = diagnose(problem, sgdsde.SGD(1.1 * sgdsde.stability.max_lr(problem, 3), 3), 1)
    assert found.checks["stability"].value > 1
    assert found.checks["stability"].grade is Grade.CAUTION
    assert math.isfinite(found.frozen_error)


def test_a_linear_classifier_has_no_effect_of_the_kernel() -> None:
    """Sampled paths would show their sampling error here."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 5, generator=generator, dtype=torch.float64)
    model = (lambda params, x: x @ params["theta"], {"theta": torch.zeros(5, dtype=torch.float64)})
    problem = sgdsde.Problem(model, x, torch.tensor([0, 1, 2, 0, 1, 2]), loss=nn.CrossEntropyLoss())
    found = diagnose(problem, sgdsde.SGD(0.1, 2), 8)
    assert found.checks["linearization"].value < 1e-3
    assert found.advice is Advice.FROZEN_KERNEL


def test_momentum_and_decay() -> None:
    """Twins: a loop of torch.optim.SGD over the whole set, its kernels by one backward pass an output, the limits."""
    words = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01}
    problem, n_steps = mlp_problem(), 10
    linearization, record = sgdsde.linearize(problem), [0, 2, 5, 10]
    limit = sgdsde.stability.max_lr(linearization, 3, **words)
    sgd = sgdsde.SGD(0.2 * limit, 3, **words)
    found = {name: check.value for name, check in diagnose(problem, sgd, n_steps, record=record).checks.items()}

    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.lr, **words)
    kernels = [jacobian_kernel(model, problem.x_train)]
    for step in range(1, n_steps + 1):
        optimizer.zero_grad()
        problem.loss(model(problem.x_train), problem.y_train).backward()
        optimizer.step()
        if step in record[1:]:  # a quarter, rounded, half and all of the steps
            kernels.append(jacobian_kernel(model, problem.x_train))
    drift = max(float((kernel - kernels[0]).norm() / kernels[0].norm()) for kernel in kernels)
    assert found["kernel_drift"] == pytest.approx(drift, rel=1e-9)
    assert drift > 0.02
    moved = [dataclasses.replace(linearization, kernel=kernel) for kernel in kernels]
    ratios = [sgd.lr / sgdsde.stability.max_lr(each, 3, **words) for each in moved]
    assert found["stability"] == pytest.approx(max(ratios), rel=1e-6)
    assert max(ratios) > 1.02 * ratios[0]

    asked = {"n_steps": n_steps, "record": record}
    recursion, descent, flow = (
        sgdsde.predict(linearization, sgd, dynamics=each, **asked).train_loss.mean
        for each in (dynamics.MomentRecursion(), dynamics.GradientDescent(), dynamics.MomentEquations(order=1))
    )
    share = float((1 - descent / recursion).max())
    assert found["feedback"] == pytest.approx(drift * share / (1 - share), rel=1e-9)
    assert found["sde"] == pytest.approx(float((flow / recursion - 1).abs().max()), rel=1e-2)
    moving = sgdsde.predict(problem, sgd, dynamics=dynamics.MovingKernel(), **asked).train_loss.mean
    assert found["linearization"] == pytest.approx(float((recursion / moving - 1).abs().max()), rel=1e-6)
    # Neither momentum nor decay enters the first gradient.
    assert found["noise_scale"] == indicators.noise_ratio(linearization, sgdsde.SGD(1.0, 3))


def jacobian_kernel(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """J J^T, row by row of J."""
    rows = []
    for output in model(x).flatten():
        gradients = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows) @ torch.stack(rows).T


# ----------------------------------------------------------------------------------------------- the form


def test_the_table_and_the_data_frame(found: Diagnosis) -> None:
    text = str(found)
    assert found.sentence in " ".join(text.split())
    assert found.dynamics is found.predictor
    for check in found.checks.values():
        assert f"{check.name:>18} {check.value:>9.3g} {check.threshold:>9.3g}  {check.grade.value}" in text
        assert check.sentence in text
        assert f"threshold: {check.source}" in text
    frame = found.to_dataframe()
    assert frame["name"].tolist() == CHECKS
    assert frame["grade"].tolist() == [check.grade.value for check in found.checks.values()]


def test_arguments_are_checked() -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        diagnose(problem, sgd, 0)
    with pytest.raises(ValueError, match=r"tolerance must be positive, got -0\.1"):
        diagnose(problem, sgd, 5, tolerance=-0.1)
    with pytest.raises(ValueError, match=r"record must be with a step after 0, got \[0\]"):
        diagnose(problem, sgd, 5, record=[0])
    with pytest.raises(TypeError, match="sgd must be an SGD"):
        diagnose(problem, 0.1, 5)
    with pytest.raises(TypeError, match="problem must be a Problem or a Linearization"):
        diagnose("problem", sgd, 5)
