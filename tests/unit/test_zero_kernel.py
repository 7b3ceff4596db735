"""A network that cannot move at initialization: a constant loss, no limit, and a warning that says so."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import dynamics

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(8, k, generator=RNG, dtype=torch.float64) for k in (4, 2))
SGDS = {
    "plain": sgdsde.SGD(0.1, 4),
    "momentum": sgdsde.SGD(0.1, 4, momentum=0.9),
    "decay": sgdsde.SGD(0.1, 4, weight_decay=0.01),
    "shuffled": sgdsde.SGD(0.1, 4, sampling="shuffled"),
}
warned = pytest.warns(UserWarning, match=r"the kernel is zero: .*dead units\?.*loss is constant, and no learning rate")


def dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2, bias=False)).double()
    nn.init.constant_(model[0].bias, -100.0)
    return model


def zeros() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def problem(build: Callable[[], nn.Module] = dead, loss: nn.Module | None = None) -> sgdsde.Problem:
    y = Y if not isinstance(loss, nn.CrossEntropyLoss) else Y.argmax(1)
    return sgdsde.Problem(build(), X, y, loss=loss or nn.MSELoss(), x_test=X[:3], y_test=y[:3])


THEORIES: dict[str, tuple[dynamics.Dynamics | None, tuple[str, ...]]] = {
    "default": (None, ("plain", "momentum", "decay", "shuffled")),
    "gradient flow": (dynamics.GradientFlow(), ("plain", "decay")),
    "gradient descent": (dynamics.GradientDescent(), ("plain", "momentum", "decay")),
    "mean path": (dynamics.OrnsteinUhlenbeck(), ("plain", "momentum", "decay")),
    "initial noise": (dynamics.OrnsteinUhlenbeck(freeze="init"), ("plain", "momentum", "decay")),
    "order 2": (dynamics.MomentEquations(), ("plain", "momentum", "decay")),
    "order 1": (dynamics.MomentEquations(order=1), ("plain", "decay")),
    "paths": (dynamics.SDEPaths(n_paths=4), ("plain", "momentum", "decay")),
    "second order": (dynamics.SDEPaths(4, dynamics.WeakOrder2()), ("plain",)),
    "frozen noise": (dynamics.SDEPaths(4, dynamics.FrozenNoise()), ("plain",)),
    "closure": (dynamics.GaussianClosure(), ("plain", "momentum", "shuffled")),
}


@pytest.mark.parametrize("build", [dead, zeros])
def test_every_theory_predicts_the_constant_that_is_measured(build: Callable[[], nn.Module]) -> None:
    made = problem(build)
    with warned:
        linearization = sgdsde.linearize(made)
    for name, (theory, settings) in THEORIES.items():
        for setting in settings:
            predicted = sgdsde.predict(linearization, SGDS[setting], 6, dynamics=theory)
            measured = sgdsde.run_ensemble(made, SGDS[setting], 6, 2)
            for side in ("train_loss", "test_loss"):
                found, right = (getattr(each, side) for each in (predicted, measured))
                torch.testing.assert_close(found.mean, right.mean, rtol=1e-12, atol=0, msg=f"{name}, {setting}")
                assert float(found.std.abs().max()) == 0, f"{name}, {setting}"


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss(), nn.HuberLoss()])
def test_no_learning_rate_is_too_large(loss: nn.Module) -> None:
    with warned:
        linearization = sgdsde.linearize(problem(loss=loss))
    assert sgdsde.stability.max_lr(linearization, 4) == math.inf
    assert sgdsde.stability.max_lr(linearization, 4, momentum=0.9) == math.inf
    assert sgdsde.stability.max_lr_full_batch(linearization) == math.inf
    assert sgdsde.stability.mean_square_radius(linearization, sgdsde.SGD(1e9, 4)) == 0
    assert sgdsde.stability.max_lr_full_batch(linearization, weight_decay=0.1) == pytest.approx(2 / 0.1)


def test_a_problem_warns_where_it_is_predicted() -> None:
    with warned:
        assert float(sgdsde.predict(problem(), SGDS["plain"], 5).train_loss.std.max()) == 0
    with warned:
        assert sgdsde.stability.max_lr(problem(), 4) == math.inf


@pytest.mark.filterwarnings("ignore:the kernel is zero")
def test_a_diagnosis_sees_that_nothing_moves() -> None:
    found = sgdsde.diagnose(sgdsde.linearize(problem()), SGDS["plain"], n_steps=4)
    assert (found.frozen_error, found.moving_error, found.spread) == (0, 0, 0)
    assert found.checks["kernel_drift"].value == found.checks["noise_scale"].value == 0
    assert found.checks["stability"].value == 0


@pytest.mark.filterwarnings("ignore:the kernel is zero")
def test_what_has_no_answer_says_why() -> None:
    linearization = sgdsde.linearize(problem())
    asks: list[Callable[[], object]] = [
        lambda: sgdsde.stability.critical_batch_size(linearization),
        lambda: sgdsde.stability.gradient_noise_scale(linearization),
        lambda: sgdsde.predict(problem(), SGDS["plain"], 4, dynamics=dynamics.MovingKernel()),
    ]
    for ask in asks:
        with pytest.raises(ValueError, match=r"dead units\?"):
            ask()


def test_parameters_without_entries_are_no_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    model.register_parameter("empty", nn.Parameter(torch.empty(0, 7, dtype=torch.float64)))
    made = sgdsde.Problem(model, X, Y, loss=nn.MSELoss())
    assert "empty" not in made.params
    assert torch.isfinite(sgdsde.predict(made, SGDS["plain"], 3).train_loss.mean).all()
    assert torch.isfinite(sgdsde.run_ensemble(made, SGDS["plain"], 3, 2).train_loss.mean).all()
    function = (
        lambda p, x: x @ p["w"] + p["none"].sum(),
        {"w": torch.eye(4, dtype=torch.float64), "none": torch.empty(0, dtype=torch.float64)},
    )
    torch.testing.assert_close(sgdsde.empirical_ntk(function, X[:2]).trace(), 4 * X[:2].square().sum())
