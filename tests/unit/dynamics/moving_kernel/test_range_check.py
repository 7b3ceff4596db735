"""A look at sampled runs before a prediction: what it lets pass, and what it refuses before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import prediction
from sgdsde.dynamics import MovingKernel
from sgdsde.dynamics.moving_kernel import range_check
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
