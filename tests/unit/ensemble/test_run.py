"""Ensembles of real networks of every kind, and of runs that diverge beside runs that do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde.sampling import PADDING, batch_indices
from tests.catalogue import CASES

KINDS = [
    *(
        "linear",
        "conv2d",
        "batch norm 2d",
        "layer norm",
        "embedding",
        "sparse embedding",
        "transformer encoder",
        "lstm",
    ),
    *("tied weights", "one layer under two names", "frozen tied parameter", "parameter without influence", "prelu"),
    *("pair of function and parameters", "own backward pass", "weight norm", "Mish", "bilinear"),
]


def loop(model: Any, x: Tensor, y: Tensor, sgd: sgdsde.SGD, batches: Tensor) -> Tensor:
    """Outputs after a plain torch.optim.SGD loop over these batches."""
    if isinstance(model, nn.Module):
        function: Callable[[Tensor], Tensor] = copy.deepcopy(model)
        leaves = [value for value in function.parameters() if value.requires_grad]
    else:
        named = {name: value.clone().requires_grad_() for name, value in model[1].items()}
        function, leaves = lambda x: model[0](named, x), list(named.values())
    optimizer = torch.optim.SGD(leaves, lr=sgd.lr, momentum=sgd.momentum)
    for batch in batches:
        rows = batch[batch != PADDING]
        optimizer.zero_grad()
        nn.functional.mse_loss(function(x[rows]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return function(x)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_every_kind_of_network_is_a_torch_loop(name):
    case = CASES[name]
    model, x = case.model(), case.inputs(4)
    with torch.no_grad():
        y = torch.zeros_like(model(x) if isinstance(model, nn.Module) else model[0](model[1], x))
    problem = sgdsde.Problem(model, x, y, loss=nn.MSELoss())
    sgd = sgdsde.SGD(lr=1e-2, batch_size=3, momentum=0.5, sampling="shuffled")
    measured = sgdsde.run_ensemble(problem, sgd, 3, 2, seed=1, observe=("outputs",), record=[3])
    expected = loop(model, x, y, sgd, batch_indices(sgd, 4, 3, seed=1, run=1))
    found = measured.train_outputs.samples[1, 0]
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


# -------------------------------------------------------------------------------------------------- divergence


def explosive(dtype: torch.dtype = torch.float64) -> sgdsde.Problem:
    """f = theta^3 x: runs that draw the first example, whose input is huge, diverge at once; the others never."""
    x = torch.tensor([[30.0]] + [[0.1]] * 15, dtype=dtype)
    params = {"theta": torch.ones(1, dtype=dtype)}
    return sgdsde.Problem((lambda p, x: p["theta"] ** 3 * x, params), x, 0 * x, loss=nn.MSELoss())


SGD = sgdsde.SGD(lr=0.1, batch_size=1)
N_STEPS, N_RUNS = 20, 24


@pytest.fixture(scope="module")
def measured() -> sgdsde.Trajectory:
    return sgdsde.run_ensemble(explosive(), SGD, N_STEPS, N_RUNS, seed=0, record=range(N_STEPS + 1))


@pytest.fixture(scope="module")
def first_draw() -> Tensor:
    """The step at which each run draws the first example; n_steps where it never does."""
    batches = [batch_indices(SGD, 16, N_STEPS, seed=0, run=run)[:, 0] for run in range(N_RUNS)]
    return torch.tensor([next((k for k, i in enumerate(batch) if i == 0), N_STEPS) for batch in batches])


def test_runs_that_diverge_are_recorded_and_the_others_go_on(measured, first_draw):
    diverged = measured.diverged_at <= N_STEPS
    assert 0 < diverged.sum() < N_RUNS
    assert (measured.diverged_at[diverged] > first_draw[diverged]).all()
    assert (measured.diverged_at[first_draw == N_STEPS] == N_STEPS + 1).all()
    losses, steps = measured.train_loss.samples, measured.steps
    assert torch.equal(torch.isfinite(losses), steps[None, :] < measured.diverged_at[:, None])


def test_a_diverged_run_makes_the_mean_infinite_and_leaves_the_quantiles(measured):
    band, first = measured.train_loss, int(measured.diverged_at.min())
    assert torch.isfinite(band.mean[:first]).all()
    assert (band.mean[first:] == torch.inf).all()
    assert not band.samples.isnan().any()
    share = (measured.diverged_at <= N_STEPS).double().mean()
    assert torch.isfinite(band.quantile(0.99 * (1 - float(share)))).all()
    assert band.quantile(1.0)[-1] == torch.inf


def test_the_others_are_bit_for_bit_the_same_without_the_example_that_explodes(measured, first_draw):
    # The first example made harmless: runs that never draw it must not notice, beside diverging neighbors or not.
    calm = explosive()
    calm.x_train[0] = 0.1
    quiet = sgdsde.run_ensemble(calm, SGD, N_STEPS, N_RUNS, seed=0, observe=("outputs",), record=[N_STEPS])
    loud = sgdsde.run_ensemble(explosive(), SGD, N_STEPS, N_RUNS, seed=0, observe=("outputs",), record=[N_STEPS])
    untouched = first_draw == N_STEPS
    assert 0 < untouched.sum() < N_RUNS
    assert (quiet.diverged_at == N_STEPS + 1).all()
    others = (loud.train_outputs.samples[untouched, 0, 1:], quiet.train_outputs.samples[untouched, 0, 1:])
    assert torch.equal(*others)


def test_a_prediction_is_out_of_the_range_of_runs_that_diverge(measured):
    problem = explosive()
    with pytest.warns(sgdsde.UnstableWarning):
        predicted = sgdsde.predict(problem, SGD, N_STEPS, record=range(N_STEPS + 1))
    assert sgdsde.compare(predicted, measured).verdict is sgdsde.Verdict.OUT_OF_RANGE


def test_linearized_runs_diverge_alone_too():
    x = torch.tensor([[1e155]] + [[1.0]] * 15, dtype=torch.float64)
    problem = sgdsde.Problem((lambda p, x: p["w"] * x, {"w": torch.ones(1).double()}), x[1:], x[1:], loss=nn.MSELoss())
    linearization = sgdsde.linearize(problem)
    wild = sgdsde.SGD(lr=1e160, batch_size=1)
    measured = sgdsde.run_ensemble(linearization, wild, 4, 3)
    assert (measured.diverged_at == 5).all(), "the start is a minimum: nothing moves"
    shifted = sgdsde.Problem(problem.model, x[1:], x[1:] + 1, loss=nn.MSELoss())
    measured = sgdsde.run_ensemble(sgdsde.linearize(shifted), wild, 4, 3)
    assert (measured.diverged_at <= 4).all()
    assert not measured.train_loss.samples.isnan().any()


def test_a_diverged_float32_run_ends_in_infinity_not_in_nan():
    measured = sgdsde.run_ensemble(explosive(torch.float32), SGD, N_STEPS, N_RUNS, seed=0)
    assert not measured.train_loss.samples.isnan().any()
    assert not measured.train_loss.mean.isnan().any()
    assert (measured.diverged_at <= N_STEPS).any()
