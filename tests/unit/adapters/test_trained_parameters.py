"""An optimizer that trains a part of a model never predicts the training of all of it."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sgdsde

pytestmark = pytest.mark.filterwarnings("ignore::sgdsde.frozen_kernel.FrozenKernelWarning")

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(12, k, generator=RNG, dtype=torch.float64) for k in (4, 2))
LOADER = DataLoader(TensorDataset(X, Y), 12)


def network() -> nn.Sequential:
    torch_state = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch_state, dtype=torch.float64) / 2)
    return model


def sgd_of(parameters: Any) -> sgdsde.SGD:
    return sgdsde.SGD.from_optimizer(torch.optim.SGD(parameters, lr=0.1), LOADER)


def problem(model: Any) -> sgdsde.Problem:
    return sgdsde.Problem(model, X, Y, loss=nn.MSELoss())


ASKED: dict[str, Callable[[sgdsde.Problem, sgdsde.SGD], object]] = {
    "predict": lambda p, s: sgdsde.predict(p, s, 3),
    "predict a linearization": lambda p, s: sgdsde.predict(sgdsde.linearize(p), s, 3),
    "run_ensemble": lambda p, s: sgdsde.run_ensemble(p, s, 3, 2),
    "linearized ensemble": lambda p, s: sgdsde.run_ensemble(sgdsde.linearize(p), s, 3, 2),
    "diagnose": lambda p, s: sgdsde.diagnose(p, s, n_steps=3),
    "error_budget": lambda p, s: sgdsde.error_budget(p, s, 3, 2),
    "radius": lambda p, s: sgdsde.stability.mean_square_radius(p, s),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_problem_that_trains_more_is_refused(name: str) -> None:
    model = network()
    message = r"optimizer of this SGD must be over exactly .*, got one without '0.weight', '0.bias'; freeze these with"
    with pytest.raises(ValueError, match=message):
        ASKED[name](problem(model), sgd_of(model[2].parameters()))


def test_freezing_as_told_gives_the_scripts_own_loss() -> None:
    model = network()
    sgd = sgd_of(model[2].parameters())
    model[0].requires_grad_(False)
    made = problem(model)
    predicted, measured = sgdsde.predict(made, sgd, 20), sgdsde.run_ensemble(made, sgd, 20, 1)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(model(X), Y).backward()
        optimizer.step()
    right = F.mse_loss(model(X), Y).item()
    assert float(predicted.train_loss.mean[-1]) == pytest.approx(right, rel=1e-9)
    assert float(measured.train_loss.mean[-1]) == pytest.approx(right, rel=1e-9)


def test_exactly_the_trained_parameters_are_accepted_in_any_grouping() -> None:
    model = network()
    groups = [{"params": list(model[2].parameters())}, {"params": list(model[0].parameters())}]
    for held in (model.parameters(), groups):
        sgdsde.predict(problem(model), sgd_of(held), 3)
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    sgdsde.predict(problem(frozen), sgd_of(frozen.parameters()), 3)  # torch skips what has no gradient
    function = (lambda p, x: x @ p["w"], {"w": torch.ones(4, 2, dtype=torch.float64, requires_grad=True)})
    sgdsde.predict(problem(function), sgd_of(function[1].values()), 3)


def test_what_the_optimizer_holds_besides_is_refused() -> None:
    model, other = network(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="got one that also holds 2 tensors of something else"):
        sgdsde.predict(problem(model), sgd_of([*model.parameters(), *other.parameters()]), 3)
    with pytest.raises(ValueError, match="got one of another model; make it with the parameters of"):
        sgdsde.predict(problem(model), sgd_of(other.parameters()), 3)


def test_a_copy_of_the_model_is_the_model_and_a_part_of_a_copy_is_not() -> None:
    model = network()
    sgdsde.predict(problem(copy.deepcopy(model)), sgd_of(model.parameters()), 3)
    with pytest.raises(ValueError, match="another model"):
        sgdsde.predict(problem(copy.deepcopy(model)), sgd_of(model[2].parameters()), 3)


def test_layers_that_share_memory_are_held_under_both_names() -> None:
    model = network()
    model[2].weight = nn.Parameter(model[0].weight[:2].detach().clone().repeat(1, 2))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    tied[1].weight.data = tied[0].weight.data
    sgdsde.predict(problem(tied), sgd_of(tied.parameters()), 3)
    alone = [value for name, value in tied.named_parameters() if name != "1.weight"]
    with pytest.raises(ValueError, match=r"one without '1.weight'"):
        sgdsde.predict(problem(tied), sgd_of(alone), 3)


def test_what_was_remembered_survives_replacing_and_copying_and_not_a_process() -> None:
    model = network()
    sgd = sgd_of(model[2].parameters())
    for kept in (dataclasses.replace(sgd, lr=0.2), copy.deepcopy(sgd)):
        with pytest.raises(ValueError, match="one without"):
            sgdsde.predict(problem(model), kept, 3)
    assert sgd == sgdsde.SGD(lr=0.1, batch_size=12, sampling="without_replacement")
    assert "trained" not in repr(sgd)
    sgdsde.predict(problem(model), pickle.loads(pickle.dumps(sgd)), 3)
