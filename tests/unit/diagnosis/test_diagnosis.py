"""Diagnoses: the numbers against their definitions, the intervals, the advice, and what is said where a check fails."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import dynamics
from sgdsde._progress import SharedBar
from sgdsde.diagnosis import Advice, Diagnosis, Grade, calibration, diagnose, expected_errors
from sgdsde.diagnosis.expected_errors import ExpectedError
from sgdsde.diagnosis.linear_twin import linear_twin
from sgdsde.diagnosis.options import Costs, advised, batched_cost, options, runs_for
from sgdsde.diagnosis.pilot import SEED, Pilot, fly
from sgdsde.diagnosis.sample import Sample
from tests.problems import LARGER, classification_problem, digits_problem, mlp_problem

CHECKS = ["stability", "kernel_drift", "laziness", "noise_scale", "confusion", "spread", "linearization", "sde"]


def pilot_of(real: torch.Tensor, linear: torch.Tensor, drift: float = 0.1) -> Pilot:
    return Pilot([0, 1, 2], real, linear, {2: drift}, {0: 0.1}, run_seconds=1.0, batch_seconds=2.0)


def flown(problem: sgdsde.Problem | sgdsde.Linearization, sgd: sgdsde.SGD, steps: list[int], seed: int = 0) -> Pilot:
    bar = SharedBar(None, {"network": 1.0, "linearized model": 1.0}, "pilot")
    whole = problem.problem if isinstance(problem, sgdsde.Linearization) else problem
    return fly(problem, Sample.of(whole), sgd, steps, seed=seed, bar=bar)


@pytest.fixture(scope="module")
def linearization() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(24, width=64))


@pytest.fixture(scope="module")
def sgd(linearization: sgdsde.Linearization) -> sgdsde.SGD:
    return sgdsde.SGD(0.3 * sgdsde.stability.max_lr(linearization, 4), 4)


@pytest.fixture(scope="module")
def found(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> Diagnosis:
    return diagnose(linearization, sgd, 20)


# -------------------------------------------------------------------------------------------- the pilot


def test_pairs_are_runs_on_the_same_batches_and_share_none_with_ensembles(linearization, sgd) -> None:
    """The pilot's runs are those of ``run_ensemble`` with its own seed, of the network and of its linearization."""
    steps = [0, 3, 10]
    pilot = flown(linearization, sgd, steps)
    words = {"seed": SEED, "record": steps}
    for what, losses in ((linearization.problem, pilot.real), (linearization, pilot.linear)):
        runs = sgdsde.run_ensemble(what, sgd, 10, len(losses), **words).train_loss.samples
        torch.testing.assert_close(losses, runs, rtol=1e-9, atol=0)
    plain = sgdsde.run_ensemble(linearization.problem, sgd, 10, len(pilot.real), record=steps).train_loss.samples
    assert not torch.isclose(plain[:, -1], pilot.real[:, -1], rtol=1e-6).any()


def test_the_linear_twin_is_the_linearized_model_in_the_weights() -> None:
    """Also with momentum and decay: its runs are those of the linearization, made by the kernel."""
    problem = digits_problem(12, width=16)
    sgd = sgdsde.SGD(0.1, 3, momentum=0.5, weight_decay=0.01, sampling="shuffled")
    twin = sgdsde.run_ensemble(linear_twin(problem), sgd, 12, 3).train_loss.samples
    kernel = sgdsde.run_ensemble(sgdsde.linearize(problem), sgd, 12, 3).train_loss.samples
    network = sgdsde.run_ensemble(problem, sgd, 12, 3).train_loss.samples
    torch.testing.assert_close(twin, kernel, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(network, kernel, rtol=1e-4)


def test_the_drift_is_that_of_one_run_of_torchs_own_optimizer() -> None:
    """Twin: a loop over the batches of that run, kernels by one backward pass an output."""
    problem, n_steps = mlp_problem(), 8
    sgd = sgdsde.SGD(0.05, 3, momentum=0.8, nesterov=True, weight_decay=0.01)
    pilot = flown(problem, sgd, [0, n_steps])
    from sgdsde.sampling import block_batches
    from sgdsde.stability.sampled_path import PURPOSE

    batches = block_batches(sgd.plan(problem.n_train, n_steps), 0, 0, purpose=PURPOSE)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01)
    start = jacobian_kernel(model, problem.x_train)
    drifts = {}
    for step in range(1, n_steps + 1):
        rows = torch.from_numpy(next(batches)[0])
        optimizer.zero_grad()
        problem.loss(model(problem.x_train[rows]), problem.y_train[rows]).backward()
        optimizer.step()
        drifts[step] = float((jacobian_kernel(model, problem.x_train) - start).norm() / start.norm())
    assert pilot.drifts == pytest.approx({step: drifts[step] for step in (2, 4, 8)}, rel=1e-9)
    assert max(drifts.values()) > 0.005


def jacobian_kernel(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    rows = []
    for output in model(x).flatten():
        grads = torch.autograd.grad(output, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.mT


# --------------------------------------------------------------------------------------- the errors


def test_the_frozen_error_is_that_of_many_pairs() -> None:
    """The interval of a few pairs holds what 512 pairs say in about eight of ten pilots; of 40 at least 26 do
    (probability of fewer at 0.8: 0.4 %)."""
    problem = digits_problem(24, width=24)
    linearization = sgdsde.linearize(problem)
    sgd = sgdsde.SGD(0.4 * sgdsde.stability.max_lr(linearization, 4), 4)
    record, runs = [0, 30], 40 * 6
    real, linear = (
        sgdsde.run_ensemble(what, sgd, 30, runs, record=record, seed=3).train_loss.samples
        for what in (problem, linearization)
    )
    truth = abs(float(linear[:, -1].mean() / real[:, -1].mean()) - 1)
    inside = 0
    for rows in torch.arange(runs).chunk(40):
        error = expected_errors.frozen_error(pilot_of(real[rows], linear[rows]))
        assert error.low <= error.value <= error.high
        inside += error.low <= truth <= error.high
    assert truth > 0.05
    assert 26 <= inside < 40


def test_a_constant_factor_is_found_without_any_width() -> None:
    real = torch.tensor([[1.0, 2.0, 4.0], [1.0, 3.0, 5.0], [1.0, 1.0, 6.0]], dtype=torch.float64)
    error = expected_errors.frozen_error(pilot_of(real, 1.25 * real))
    assert (error.value, error.low, error.high) == pytest.approx((0.25, 0.25, 0.25))


def test_noise_alone_is_no_error() -> None:
    """Pairs without a common mean: the value is far below the width, whose lower end is zero more often than not."""
    generator = torch.Generator().manual_seed(0)
    lows = []
    for _ in range(40):
        real, linear = (1 + 0.1 * torch.randn(16, 2, generator=generator, dtype=torch.float64) for _ in range(2))
        start = torch.ones(16, 1, dtype=torch.float64)
        error = expected_errors.frozen_error(pilot_of(torch.cat([start, real], 1), torch.cat([start, linear], 1)))
        lows.append(error.low)
        assert error.high > 0.01
    assert sum(low > 0 for low in lows) < 24


def test_a_run_that_diverged_leaves_no_bound() -> None:
    real = torch.tensor([[1.0, 2.0, torch.inf], [1.0, 1.0, 1.0]], dtype=torch.float64)
    pilot = pilot_of(real, torch.ones_like(real))
    frozen = expected_errors.frozen_error(pilot)
    assert frozen.value == frozen.high == math.inf
    assert expected_errors.moving_error(pilot, frozen).value == math.inf
    assert pilot.spread == math.inf
    assert pilot.n_diverged == 1


def test_a_drift_that_was_never_measured_gives_no_moving_error() -> None:
    steady = torch.ones(4, 3, dtype=torch.float64)
    far = pilot_of(steady, steady, drift=1.01 * calibration.DRIFT_MEASURED)
    assert expected_errors.moving_error(far, ExpectedError(0.1, 0.1, 0.1)).value == math.inf
    near = pilot_of(steady, steady, drift=0.99 * calibration.DRIFT_MEASURED)
    assert math.isfinite(expected_errors.moving_error(near, ExpectedError(0.1, 0.1, 0.1)).value)


# ------------------------------------------------------------------------------------------ the checks


def test_the_checks_are_those_and_in_this_order(found: Diagnosis) -> None:
    assert list(found.checks) == CHECKS
    assert all(name == check.name and check.source and check.sentence for name, check in found.checks.items())


def test_the_share_of_the_limit_is_at_least_that_of_the_start(found: Diagnosis) -> None:
    assert 0.3 * 0.98 <= found.checks["stability"].value < 0.5


# ------------------------------------------------------------------------------------------- the advice


def test_a_linear_model_is_known_to_be_linear() -> None:
    problem = LARGER.problem()
    found = diagnose(problem, sgdsde.SGD(0.2 * sgdsde.stability.max_lr(problem, 4), 4), 30)
    frozen = found.option(Advice.FROZEN_KERNEL)
    assert frozen.error.high < 1e-6
    assert frozen.dynamics == dynamics.MomentRecursion()
    assert found.frozen_error == frozen.error.value
    assert found.checks["kernel_drift"].value < 1e-12
    assert found.checks["laziness"].value < 1e-12
    assert found.moving_error <= found.frozen_error


def test_whole_batches_give_no_noise_and_no_spread() -> None:
    found = diagnose(mlp_problem(), sgdsde.SGD(0.05, 7, sampling="without_replacement"), 10)
    assert found.checks["noise_scale"].value == 0
    assert found.spread < 1e-12
    assert found.option(Advice.MEASURE).n_runs == 4


def test_the_cheapest_way_within_the_tolerance_is_advised() -> None:
    """Every combination of errors within or beyond the tolerance, and of costs."""
    steady = torch.ones(8, 3, dtype=torch.float64) * torch.linspace(0.9, 1.1, 8, dtype=torch.float64)[:, None]
    pilot = pilot_of(steady, steady)
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    good, bad = ExpectedError(0.01, 0.0, 0.02), ExpectedError(0.04, 0.01, 0.06)
    cases = {
        (good, good, 0.5, 0.9): Advice.FROZEN_KERNEL,
        (good, good, 0.9, 0.5): Advice.MOVING_KERNEL,
        (bad, good, 0.1, 0.9): Advice.MOVING_KERNEL,
        (bad, bad, 0.1, 0.1): Advice.MEASURE,
        (good, good, 1e3, 1e3): Advice.MEASURE,
    }
    for (frozen, moving, cost, other), expected in cases.items():
        found = options(problem, sgd, pilot, (frozen, moving), Costs(cost, other), tolerance=0.05, n_settings=1)
        assert advised(found, 0.05).advice is expected
    many = options(problem, sgd, pilot, (bad, bad), Costs(1e3, 1e3), tolerance=0.07, n_settings=1000)
    assert advised(many, 0.07).advice is Advice.INTERPOLATE
    assert many[2].error.high == 0.05  # all that twelve fits showed
    strict = options(problem, sgd, pilot, (bad, bad), Costs(1e3, 1e3), tolerance=0.01, n_settings=1000)
    assert advised(strict, 0.01).advice is Advice.MEASURE  # a surface is not that good


def test_runs_are_counted_for_two_standard_errors() -> None:
    """Spread 10 %, tolerance 5 %: 16 runs have a standard error of 2.5 %."""
    losses = torch.tensor([0.9, 1.1], dtype=torch.float64).repeat(8)[:, None].expand(16, 3)
    pilot = pilot_of(losses * (15 / 16) ** 0.5 + 1 - (15 / 16) ** 0.5, losses)
    assert pilot.spread == pytest.approx(0.1)
    assert runs_for(pilot, 0.05) in (16, 17)
    assert runs_for(pilot, 1.0) == 4


def test_a_batch_costs_more_with_more_runs_and_the_pilot_s_own_number_what_it_took() -> None:
    for runs in (3, 8):
        losses = torch.ones(runs, 3, dtype=torch.float64)
        pilot = pilot_of(losses, losses)
        assert batched_cost(pilot, runs) == pytest.approx(2.0)  # batch_seconds / run_seconds
        costs = [batched_cost(pilot, n) for n in (1, 2, runs, 64, 512)]
        assert costs == sorted(costs)
        growth = batched_cost(pilot, 64 * runs) / batched_cost(pilot, runs)
        assert (growth > 64) == (runs == 8)  # three runs are those of a network that shares no products


def test_a_number_is_given_every_time(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> None:
    for tolerance in (1e-6, 0.02, 0.05, 10.0):
        found = diagnose(linearization, sgd, 20, tolerance=tolerance)
        assert found.best.error.high <= tolerance
        assert (found.dynamics is None) == (found.n_runs is not None)
        assert found.expected_error <= tolerance
        assert (found.checks["linearization"].grade is Grade.GOOD) == (found.checks["linearization"].value <= tolerance)
        assert "none given" not in str(found)


def test_past_the_limit_the_grade_is_bad() -> None:
    problem = digits_problem(24, width=64)
    found = diagnose(problem, sgdsde.SGD(1.3 * sgdsde.stability.max_lr(problem, 4), 4), 5)
    assert found.checks["stability"].grade is Grade.BAD
    assert found.checks["stability"].value > 1.2


def test_runs_that_diverge_are_said_first() -> None:
    problem = digits_problem(24, width=64)
    found = diagnose(problem, sgdsde.SGD(50 * sgdsde.stability.max_lr_full_batch(problem), 4), 60)
    assert found.checks["kernel_drift"].grade is Grade.BAD
    assert found.checks["spread"].grade is Grade.BAD
    assert found.advice is Advice.MEASURE
    assert found.sentence.startswith("Take a smaller learning rate: ")
    assert found.frozen_error == found.moving_error == math.inf


def test_past_the_quadratic_of_another_loss_is_a_caution_only() -> None:
    """Cross-entropy need not grow there, so the errors are still given."""
    problem = classification_problem()
    found = diagnose(problem, sgdsde.SGD(1.1 * sgdsde.stability.max_lr(problem, 3), 3), 2)
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
    assert found.frozen_error < 1e-6


@pytest.mark.parametrize("loss", ["squared error", "cross-entropy"])
@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "shuffled"])
@pytest.mark.parametrize("words", [{}, {"momentum": 0.9}, {"momentum": 0.5, "nesterov": True, "weight_decay": 1e-3}])
def test_every_training_is_diagnosed(loss, sampling, words) -> None:
    problem = mlp_problem() if loss == "squared error" else classification_problem()
    found = diagnose(problem, sgdsde.SGD(lambda k: 0.02 / (1 + k), 3, sampling=sampling, **words), 9)
    assert all(math.isfinite(option.error.value) for option in found.options)
    assert all(option.cost > 0 for option in found.options)
    assert found.measured[0] == pytest.approx(float(found.linearized[0]), rel=1e-5)
    assert found.steps[0] == 0


def test_the_cost_is_told_in_plain_runs(monkeypatch) -> None:
    """By a clock that stands at 10 before the first and at 17.5 after the last work, a plain run taking 2.5."""
    times = iter([10.0, 17.5])
    monkeypatch.setattr("sgdsde.diagnosis.assembly.clock", lambda device: next(times))
    monkeypatch.setattr("sgdsde.diagnosis.pilot.plain_seconds", lambda *_: 2.5)
    assert diagnose(mlp_problem(), sgdsde.SGD(0.01, 3), 4).cost == pytest.approx(3.0)


def test_the_words_name_the_numbers(found: Diagnosis) -> None:
    text = str(found)
    assert "Asked:" in text
    assert f"{found.n_pairs} pairs of runs" in text.replace("\n            ", " ")
    for option in found.options:
        assert option.advice.value in text
    assert list(found.to_dataframe()["name"]) == CHECKS


def test_what_is_not_asked_for_rightly_is_refused(linearization: sgdsde.Linearization) -> None:
    problem, sgd = linearization.problem, sgdsde.SGD(0.1, 3)
    with pytest.raises(ValueError, match="record must be with a step after 0"):
        diagnose(problem, sgd, 0)
    with pytest.raises(ValueError, match="tolerance"):
        diagnose(problem, sgd, 5, tolerance=-0.1)
    with pytest.raises(ValueError, match="n_settings"):
        diagnose(problem, sgd, 5, n_settings=0)
    with pytest.raises(ValueError, match="record must be with a step after 0"):
        diagnose(problem, sgd, 5, record=[0])
    with pytest.raises(TypeError, match="sgd must be"):
        diagnose(problem, 0.1, 5)
    with pytest.raises(TypeError, match="problem must be"):
        diagnose("problem", sgd, 5)
