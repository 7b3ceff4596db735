"""What ``predict`` accepts, refuses, records and observes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.recording import recorded_steps

GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 3, generator=GENERATOR), torch.randn(6, 2, generator=GENERATOR)


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    return sgdsde.Problem(model, X[:4], Y[:4], loss=nn.MSELoss(), x_test=X[4:], y_test=Y[4:])


@pytest.fixture(scope="module")
def linearization(problem) -> sgdsde.Linearization:
    return sgdsde.linearize(problem)


SGD = sgdsde.SGD(lr=0.02, batch_size=2)


def predict(linearization, n_steps=3, sgd=SGD, **words):
    return sgdsde.predict(linearization, sgd, n_steps, **words)


def measure(linearization, n_steps=3, sgd=SGD, **words):
    return sgdsde.run_ensemble(linearization, sgd, n_steps, **({"n_runs": 2} | words))


# ------------------------------------------------------------------------------------------------- recording


@pytest.mark.parametrize("n_steps", [1, 2, 5, 49, 50, 51, 1000, 10**6])
def test_about_fifty_geometric_steps_with_the_first_two_and_the_last(n_steps):
    steps = recorded_steps(n_steps).tolist()
    assert steps == sorted(set(steps))
    assert steps[:2] == [0, 1]
    assert steps[-1] == n_steps
    assert len(steps) <= 52
    assert len(steps) >= 30 or n_steps < 100


def test_recorded_steps_grow_geometrically():
    steps = recorded_steps(10**6).double()[10:]
    assert (steps[1:] / steps[:-1]).max() < 1.5


def test_no_step_records_step_zero():
    assert recorded_steps(0).tolist() == [0]
    assert recorded_steps(0).dtype == torch.int64


@pytest.mark.parametrize("go", [predict, measure])
def test_zero_steps_give_the_loss_at_the_start(go, linearization):
    trajectory = go(linearization, n_steps=0)
    expected = nn.functional.mse_loss(linearization.outputs, Y[:4].double())
    assert trajectory.steps.tolist() == [0]
    assert trajectory.times.tolist() == [0.0]
    torch.testing.assert_close(trajectory.train_loss.mean[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("go", [predict, measure])
def test_record_is_sorted_without_repetition_and_may_leave_out_both_ends(go, linearization):
    whole, part = go(linearization, n_steps=6), go(linearization, n_steps=6, record=[4, 2, 4.0])
    assert part.steps.tolist() == [2, 4]
    assert part.steps.dtype == torch.int64
    rows = [whole.steps.tolist().index(step) for step in (2, 4)]
    torch.testing.assert_close(part.train_loss.mean, whole.train_loss.mean[rows], rtol=1e-12, atol=0)
    torch.testing.assert_close(part.times, torch.tensor([0.04, 0.08], dtype=torch.float64))


@pytest.mark.parametrize("go", [predict, measure])
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"n_steps": -1}, ValueError, "n_steps must be at least 0, got -1"),
        ({"n_steps": 2.5}, ValueError, "n_steps must be a whole number, got 2.5"),
        ({"n_steps": None}, TypeError, "n_steps must be a real number, got None"),
        ({"record": [0, 4]}, ValueError, "record must be within 0 ... n_steps=3, got step 4; raise n_steps"),
        ({"record": [-1, 2]}, ValueError, "record must be at least 0, got -1"),
        ({"record": [1.5]}, ValueError, "record must be a whole number, got 1.5"),
        ({"record": []}, ValueError, "record must be at least one step, got none; omit it"),
        ({"record": 3}, TypeError, "record must be a sequence of steps, got 3"),
        ({"observe": ("losses",)}, ValueError, "observe must be one of 'loss', "),
        (
            {"observe": "outputs"},
            TypeError,
            "observe must be a tuple of words, got 'outputs'; use observe=('outputs',)",
        ),
        ({"sgd": 0.1}, TypeError, "sgd must be an SGD, got float; use sgdsde.SGD(lr=..., batch_size=...)"),
        ({"sgd": sgdsde.SGD(0.01, 5, sampling="without_replacement")}, ValueError, "got batch_size=5, n_train=4"),
    ],
)
def test_bad_arguments_are_refused(go, words, error, message, linearization):
    with pytest.raises(error, match=re.escape(message)):
        go(linearization, **words)


@pytest.mark.parametrize("go", [predict, measure])
def test_something_else_than_a_problem_is_refused(go):
    with pytest.raises(
        TypeError, match=r"problem must be a Problem or a Linearization, got Linear; use sgdsde.Problem"
    ):
        go(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n_runs": 0}, "n_runs must be at least 1, got 0"),
        ({"n_runs": -3}, "n_runs must be at least 1, got -3"),
        ({"n_runs": 1.5}, "n_runs must be a whole number, got 1.5"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"memory": 0}, "memory must be at least 1, got 0; give a number of bytes"),
    ],
)
def test_bad_ensembles_are_refused(words, message, problem, linearization):
    for what in (problem, linearization):
        with pytest.raises(ValueError, match=re.escape(message)):
            measure(what, **words)


def test_an_ensemble_without_memory_for_one_run_is_refused_in_bytes(problem, linearization):
    for what in (problem, linearization):
        with pytest.raises(MemoryError, match=r"memory must be at least [\d,]+ bytes, got 10; one run"):
            measure(what, memory=10)


def test_dynamics_are_objects_of_the_library(linearization):
    for wrong in ("MomentRecursion", sgdsde.dynamics.MomentRecursion):
        with pytest.raises(TypeError, match=r"dynamics must be an instance of .*use dynamics.MomentRecursion\(\)"):
            predict(linearization, dynamics=wrong)


# --------------------------------------------------------------------------------------------------- contents


def test_a_prediction_in_closed_form_has_no_runs(problem):
    trajectory = sgdsde.predict(problem, SGD, 4)
    assert trajectory.n_runs == 0
    assert trajectory.diverged_at.shape == (0,)
    assert trajectory.train_loss.samples is None
    assert (trajectory.train_loss.standard_error == 0).all()
    assert trajectory.train_loss.std[0] == 0
    assert (trajectory.train_loss.std[1:] > 0).all()
    assert trajectory.problem_digest == problem.digest
    assert trajectory.dynamics == "MomentRecursion()"
    assert trajectory.train_outputs is None


@pytest.mark.parametrize("go", [predict, measure])
def test_outputs_are_observed_on_request(go, linearization):
    trajectory = go(linearization, observe=("loss", "outputs"), record=[0, 3])
    assert trajectory.train_outputs.mean.shape == (2, 4, 2)
    assert trajectory.test_outputs.std.shape == (2, 2, 2)
    torch.testing.assert_close(trajectory.train_outputs.mean[0], linearization.outputs)
    torch.testing.assert_close(trajectory.test_outputs.mean[0], linearization.test_outputs)
    assert trajectory.train_outputs.mean.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_recorded_is_float64(dtype):
    problem = sgdsde.Problem(nn.Linear(3, 2).to(dtype), X.to(dtype), Y.to(dtype), loss=nn.MSELoss())
    for trajectory in (predict(problem), measure(problem), measure(sgdsde.linearize(problem))):
        assert trajectory.steps.dtype == torch.int64
        tensors = [trajectory.times, trajectory.train_loss.mean, trajectory.train_loss.std]
        assert {tensor.dtype for tensor in tensors} == {torch.float64}


def test_weight_decay_needs_the_weight_outputs(problem, linearization):
    bare = sgdsde.Linearization(
        problem, linearization.kernel, linearization.cross_kernel, linearization.outputs, linearization.test_outputs
    )
    decayed = sgdsde.SGD(0.02, 2, weight_decay=0.1)
    refusals = {
        predict: r"cannot represent weight decay without weight_outputs; use weight_decay=0 \(or linearize\(problem\)",
        measure: r"weight_decay must be 0 where J theta_0 is unknown, .*; make it with linearize\(problem\), or",
    }
    for go, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            go(bare, sgd=decayed)
        go(bare)


def test_label_noise_needs_squared_error():
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    problem = sgdsde.Problem(nn.Linear(3, 2), X, labels, loss=nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match="label_noise_std must be 0 unless the loss is"):
        measure(problem, sgd=sgdsde.SGD(0.02, 2, label_noise_std=0.1))


def test_an_unstable_rate_is_warned_of_with_the_limit_and_remembered(linearization):
    limit = sgdsde.stability.max_lr(linearization, 2)
    with pytest.warns(sgdsde.UnstableWarning, match=re.escape(f"beyond the mean-square limit {limit:.6g}")):
        trajectory = predict(linearization, sgd=sgdsde.SGD(1.1 * limit, 2))
    assert trajectory.mean_square_limit == pytest.approx(limit)
    assert predict(linearization, sgd=sgdsde.SGD(0.9 * limit, 2)).mean_square_limit is None
