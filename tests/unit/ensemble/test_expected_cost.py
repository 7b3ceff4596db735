"""What an ensemble is said to cost: by runs and steps, by the products of a step, and the bytes that it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import machine
from sgdsde._progress import StageCost
from sgdsde.ensemble.training import Ensemble
from sgdsde.machine import EVERYDAY, Machine
from tests.live_memory import live_peak
from tests.problems import conv_problem, digits_problem, mlp_problem

SGD = sgdsde.SGD(0.01, 4)


def cost_of(
    trained: Any, *sgds: sgdsde.SGD, n_steps: int = 10, n_runs: int = 8, memory: int | None = None
) -> StageCost:
    ensemble = Ensemble.of(trained, sgds or [SGD], torch.tensor([n_steps]), n_steps=n_steps, memory=memory)
    return ensemble.expected_cost(n_steps, n_runs)


@pytest.fixture(autouse=True)
def _nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "step_seconds", lambda problem, batch_size, n_steps: 1e-3 * batch_size)
    monkeypatch.setattr(Machine, "worth", classmethod(lambda cls, seconds: EVERYDAY))


@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_time_goes_with_steps_and_runs_however_they_are_dealt_to_sgds(linearized: bool) -> None:
    problem = mlp_problem()
    trained = sgdsde.linearize(problem) if linearized else problem
    once = cost_of(trained)
    assert cost_of(trained, n_steps=30).seconds == pytest.approx(3 * once.seconds)
    assert cost_of(trained, SGD, SGD) == cost_of(trained, n_runs=16)
    few, more, most = (cost_of(trained, n_runs=n).seconds for n in (8, 16, 24))
    assert most - more == pytest.approx(more - few)
    assert more > few
    assert linearized or cost_of(trained, sgdsde.SGD(0.01, 6)).seconds > once.seconds
    assert once.name.startswith("8 ")


def test_runs_that_do_not_fit_together_pay_for_the_calls_of_each_group() -> None:
    problem = mlp_problem()
    alone = Ensemble.of(problem, [SGD], torch.tensor([1]), n_steps=1).learner.needs(SGD, 4)
    little = 3 * (alone.held + alone.moved)  # two runs at once, beside their draws
    together, apart = cost_of(problem), cost_of(problem, memory=little)
    assert (apart.seconds - together.seconds) / machine.CALL_OVERHEAD == pytest.approx(2 * 10 * (4 - 1))


def test_a_step_of_the_linearized_model_sums_the_columns_of_its_batch() -> None:
    """Rows of both sets, columns of one: entries by hand; of a large batch the product with the whole kernel."""
    problem = digits_problem(60, n_test=20, width=8)
    steps, runs, (n, m) = 10, 8, (60, 20)

    def beyond_the_calls(batch_size: int) -> float:
        seconds = cost_of(sgdsde.linearize(problem), sgdsde.SGD(0.01, batch_size)).seconds
        return (seconds - steps * machine.CALL_OVERHEAD) / (steps * runs)

    moves = 6 * (n + m) / EVERYDAY.entries
    assert beyond_the_calls(4) == pytest.approx(4 * (n + m) / machine.COLUMN_ENTRIES + moves)
    assert beyond_the_calls(60) == pytest.approx(2 * n * (n + m) / EVERYDAY.products + moves)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("name", ["dense", "convolutional", "linearized"])
def test_the_bytes_that_are_said_are_about_those_that_it_holds(name: str, momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, dtype=torch.float64, generator=generator)
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).double()
    trained: Any = {
        "dense": lambda: sgdsde.Problem(dense, x, x[:, :2], loss=nn.MSELoss()),
        "convolutional": conv_problem,
        "linearized": lambda: sgdsde.linearize(digits_problem(64, n_test=32, width=8)),
    }[name]()
    sgd = sgdsde.SGD(0.01, 4, momentum=momentum)
    peak = live_peak(lambda: sgdsde.run_ensemble(trained, sgd, 3, 64, record=[3]))
    assert 0.15 * cost_of(trained, sgd, n_runs=64).bytes < peak
    kernel = 8 * 64 * 96 if name == "linearized" else 0
    assert peak <= cost_of(trained, sgd, n_runs=64).bytes + kernel + 2**17


def test_bytes_grow_with_the_runs_up_to_those_that_are_held_at_once() -> None:
    problem = mlp_problem()
    one, ten = (cost_of(problem, n_runs=n).bytes for n in (1, 10))
    assert ten == 10 * one
    assert cost_of(problem, n_runs=10**6, memory=10**7).bytes <= 10**7
