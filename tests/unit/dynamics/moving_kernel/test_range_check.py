"""A look at sampled runs before a prediction: what it lets pass, and what it refuses before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import prediction
from sgdsde.dynamics import MovingKernel
from sgdsde.dynamics.moving_kernel import range_check
from sgdsde.dynamics.moving_kernel.mean_path import MeanPath
from sgdsde.dynamics.moving_kernel.range_check import refuse_out_of_range


def classes(lr: float, n_steps: int = 60) -> tuple[sgdsde.Problem, sgdsde.SGD, int]:
    """A ReLU network on digits under cross-entropy."""
    data = sgdsde.datasets.digits(64, 16, target="class")
    generator = torch.Generator().manual_seed(0)
    model = sgdsde.networks.MLP(64, 32, 10, activation="relu", parametrization="standard", generator=generator)
    return sgdsde.Problem(model, **data.tensors(), loss=nn.CrossEntropyLoss()), sgdsde.SGD(lr, 4), n_steps


def test_a_refusal_comes_before_the_kernel(monkeypatch):
    """Runs whose losses differ, of a kernel that moves; a smaller step passes, and the switch lets it through."""
    problem, sgd, n_steps = classes(0.4)
    refuse_out_of_range(*classes(0.05))
    monkeypatch.setattr(prediction, "as_linearization", lambda *arguments, **words: pytest.fail("too late"))
    with pytest.raises(ValueError, match=r"losses differ by \d+% after 20 steps .* moves by .*; measure it: sgdsde"):
        sgdsde.predict(problem, sgd, n_steps, dynamics=MovingKernel())
    with pytest.raises(pytest.fail.Exception, match="too late"):
        sgdsde.predict(problem, sgd, n_steps, dynamics=MovingKernel(range_check=False))


@pytest.mark.parametrize(("spread", "drift"), [(1e9, 0.0), (0.0, 1e9)])
def test_both_the_spread_and_the_drift_must_be_large(spread, drift, monkeypatch):
    monkeypatch.setattr(range_check, "MOST_SPREAD", spread)
    monkeypatch.setattr(range_check, "MOST_DRIFT", drift)
    refuse_out_of_range(*classes(0.4))


def test_runs_that_diverge_where_the_prediction_does_not_are_refused():
    """Between the limits of single examples and of the full batch: descent stays, minibatches do not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    model = nn.Linear(6, 1).double()
    problem = sgdsde.Problem(model, x, x.sum(1, keepdim=True), loss=nn.MSELoss())
    low, high = sgdsde.stability.max_lr(problem, 1), sgdsde.stability.max_lr_full_batch(problem)
    sgd = sgdsde.SGD(0.95 * high, 1)
    assert 3 * low < sgd.lr_at(0) < high
    with pytest.raises(
        ValueError, match=r"must stay finite and near its size, got .* SGD diverges at this learning rate"
    ):
        sgdsde.predict(problem, sgd, 400, dynamics=MovingKernel())
    refuse_out_of_range(problem, sgdsde.SGD(0.5 * low, 1), 400)


def test_the_first_run_is_a_plain_loop():
    """Batches of the stream by hand: the weights of all runs are those of torch's optimizer."""
    problem, _, _ = classes(0.1)
    sgd = sgdsde.SGD(0.1, 4, momentum=0.5, weight_decay=0.01)
    seen = list(range_check._runs(problem, sgd, [0, 3, 5], 3))
    assert [len(runs) for runs in seen] == [range_check.N_RUNS] * 2 + [1]
    stream = range_check.torch_stream(0, "range", 0, torch.device("cpu"))
    keys = [torch.rand(range_check.N_RUNS if k < 3 else 1, 64, generator=stream) for k in range(5)]
    for run in (0, 5):
        model = sgdsde.networks.MLP(64, 32, 10, activation="relu", parametrization="standard")
        model.load_state_dict(problem.params)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
        for k in range(3 if run else 5):
            rows = keys[k][run].topk(4).indices
            optimizer.zero_grad()
            problem.loss(model(problem.x_train[rows]), problem.y_train[rows]).backward()
            optimizer.step()
        found = seen[1][run] if run else seen[2][0]
        for name, value in model.named_parameters():
            torch.testing.assert_close(found[name], value.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("alive", [True, False])
def test_outputs_whose_sum_is_constant_are_not_dead(alive):
    """Log-odds of both classes add up to zero; what counts is whether any output depends on any weight."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def model(params, x):
        odds = (x @ params["w"]).relu()
        return torch.stack([odds, -odds], 1)

    sign = 1.0 if alive else -1.0
    weights = {"w": sign * torch.ones(3, dtype=torch.float64)}
    problem = sgdsde.Problem((model, weights), x.abs(), torch.zeros(5, 2).double(), loss=nn.MSELoss())
    assert range_check._is_dead(problem, weights) is not alive


@pytest.mark.parametrize("squared", [True, False], ids=["squared error", "cross-entropy"])
def test_runs_are_the_same_whether_torch_vectorizes_the_network_or_not(squared, monkeypatch):
    """And one run under squared error, which is not compared; torch dampens from the second step on."""
    problem, _, _ = classes(0.1)
    if squared:
        targets = nn.functional.one_hot(problem.y_train, 10).float()
        problem = sgdsde.Problem(problem.model, problem.x_train, targets, loss=nn.MSELoss())
    sgd = sgdsde.SGD(0.1, 4, momentum=0.5, dampening=0.3)
    seen = [list(range_check._runs(problem, sgd, [0, 2, 4], 2))]
    monkeypatch.setattr(type(problem.functional), "vectorizes", False)
    seen.append(list(range_check._runs(problem, sgd, [0, 2, 4], 2)))
    assert [len(runs) for runs in seen[0]] == ([1, 1, 1] if squared else [range_check.N_RUNS] * 2 + [1])
    for one, other in zip(*seen):
        for run, same in zip(one, other):
            for name, value in run.items():
                torch.testing.assert_close(value, same[name], rtol=1e-4, atol=1e-6)


def test_whole_batches_are_the_path_of_descent():
    problem, _, _ = classes(0.1)
    sgd = sgdsde.SGD(0.1, 64, sampling="without_replacement", momentum=0.5, dampening=0.3)
    path = MeanPath.start(problem, sgd, sgd.plan(64, 4))
    for k in range(4):
        path = path.advanced(k)
    for run in list(range_check._runs(problem, sgd, [0, 4], 4))[1]:
        for name, value in path.params.items():
            torch.testing.assert_close(run[name], value, rtol=1e-4, atol=1e-5)


def test_runs_are_looked_at_after_a_third_of_the_steps_and_four_times_after_that(monkeypatch):
    """The spread of the losses once, where several runs are; trainings of fewer than sixteen steps not at all."""
    looked: list[tuple[list[int], int]] = []
    compared: list[tuple[int, int]] = []
    original = range_check._runs
    monkeypatch.setattr(range_check, "_runs", lambda problem, sgd, steps, at: (
        looked.append((steps, at)), original(problem, sgd, steps, at))[1])  # fmt: skip
    monkeypatch.setattr(
        range_check, "_refuse_wide", lambda problem, params, losses, step: compared.append((step, len(losses)))
    )
    refuse_out_of_range(*classes(0.01, 15))
    assert looked == []
    refuse_out_of_range(*classes(0.01, 16))
    refuse_out_of_range(*classes(0.01, 60))
    assert looked == [([0, 5, 7, 10, 13, 16], 5), ([0, 20, 30, 40, 50, 60], 20)]
    assert compared == [(5, range_check.N_RUNS), (20, range_check.N_RUNS)]


@pytest.mark.parametrize(("growth", "is_refused"), [(99.0, False), (101.0, True), (float("nan"), True)])
def test_one_run_that_grows_a_hundredfold_has_diverged(growth, is_refused, monkeypatch):
    """The largest loss of all runs, at any look, in units of the first."""
    problem, sgd, n_steps = classes(0.01)
    losses = iter([0.5] * 8 + [0.4] * 7 + [0.5 * growth] + [0.4] * 4)
    monkeypatch.setattr(range_check, "_loss", lambda problem, params: torch.tensor(next(losses)))
    monkeypatch.setattr(range_check, "_refuse_wide", lambda *words: None)
    if is_refused:
        with pytest.raises(ValueError, match=r"got .* at step 20 from 0\.5: minibatch SGD diverges"):
            refuse_out_of_range(problem, sgd, n_steps)
    else:
        refuse_out_of_range(problem, sgd, n_steps)


def test_the_drift_is_that_of_the_kernel_of_some_examples(monkeypatch):
    """Evenly spaced, with as many outputs together as are allowed, of one example at least."""
    problem, _, _ = classes(0.1)
    stream = torch.Generator().manual_seed(0)
    moved = {name: value + 0.05 * torch.randn(value.shape, generator=stream) for name, value in problem.params.items()}
    for outputs, rows in (
        (60, torch.linspace(0, 63, 6).round().long()),
        (5, torch.tensor([0])),
        (9999, torch.arange(64)),
    ):
        monkeypatch.setattr(range_check, "OUTPUTS", outputs)
        x = problem.x_train[rows]
        start, end = (sgdsde.empirical_ntk(problem.model, x, params=params) for params in (problem.params, moved))
        expected = float(torch.linalg.norm(end - start) / torch.linalg.norm(start))
        assert range_check._drift(problem, moved) == pytest.approx(expected, rel=1e-3)
