"""Claims of dimension: no prediction depends on the unit of the weights or of the targets.

On a model linear in its weights, f = x theta under squared error,

- features a x, weights theta / a, lr / a^2, decay a^2: the same outputs step by step, so the same losses;
- targets, weights and label noise times a: the same training in another unit of f, so a^2 times the losses;
- limits on the learning rate go with the unit of the weights as 1 / a^2 and not at all with that of the targets.

A power, a factor or a term of the wrong dimension breaks one of them, a threshold that is not relative too. The control
leaves one unit out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import dynamics, stability
from tests.problems import linear_outputs
from tests.settings import SETTINGS

N, C, P, N_TEST, STEPS = 6, 2, 8, 3, [0, 1, 2, 7]
LR = 0.06
CLOSE, SOLVED = 1e-8, 1e-5
"""Of what is computed step by step, and by a solver with a tolerance."""

FRESH = ("plain", "without replacement", "decay", "momentum, decay", "nesterov", "label noise")
CLOSED: dict[str, tuple[dynamics.Dynamics, tuple[str, ...]]] = {
    "descent": (dynamics.GradientDescent(), ("decay", "nesterov, decay")),
    "recursion": (dynamics.MomentRecursion(), (*FRESH, "shuffled", "momentum, dampening, decay")),
    "closure": (dynamics.GaussianClosure(), (*FRESH, "shuffled")),
    "modes": (dynamics.ModalMoments(), FRESH),
    "Volterra": (dynamics.Volterra(), ("plain", "without replacement")),
    "reduced": (dynamics.ReducedMoments(), ("plain", "decay", "label noise", "shuffled")),
    "flow": (dynamics.GradientFlow(), ("plain", "decay")),
    "first order": (dynamics.MomentEquations(order=1), ("plain", "decay", "label noise")),
    "second order": (dynamics.MomentEquations(order=2), ("plain", "decay", "momentum, decay")),
    "frozen noise": (dynamics.OrnsteinUhlenbeck(), ("plain", "decay")),
    "noise of the start": (dynamics.OrnsteinUhlenbeck(freeze="init"), ("plain",)),
    "moving kernel": (dynamics.MovingKernel(), ("momentum, decay", "label noise")),
    "runs": (dynamics.LinearizedSGD(n_runs=4), ("momentum, decay", "label noise", "shuffled")),
    "paths": (dynamics.SDEPaths(n_paths=4), ("plain", "decay")),
}
EACH = [pytest.param(kind, name, id=f"{what}: {name}") for what, (kind, names) in CLOSED.items() for name in names]


def problem(*, weight_unit: float = 1.0, target_unit: float = 1.0) -> sgdsde.Problem:
    """Features [n, c, p] of many sizes, more targets than weights."""
    rng = np.random.default_rng(5)
    features = rng.normal(size=(N + N_TEST, C, P)) * rng.lognormal(sigma=0.4, size=P) / P**0.5
    targets, theta = rng.normal(size=(N + N_TEST, C)), rng.normal(size=P)
    x, y = torch.from_numpy(weight_unit * features), torch.from_numpy(target_unit * targets)
    start = torch.from_numpy(target_unit / weight_unit * theta)
    model = (linear_outputs, {"theta": start})
    return sgdsde.Problem(model, x[:N], y[:N], loss=nn.MSELoss(), x_test=x[N:], y_test=y[N:])


def words_of(name: str, *, weight_unit: float = 1.0, target_unit: float = 1.0) -> dict[str, Any]:
    words = dict(SETTINGS[name])
    if "weight_decay" in words:
        words["weight_decay"] *= weight_unit**2
    if "label_noise_std" in words:
        words["label_noise_std"] *= target_unit
    return words


def predicted(kind: dynamics.Dynamics, name: str, *, rank: int | None = None, tail: str = "frozen", **units: float):
    """The trajectory, on all eigenpairs or on the leading ones."""
    words = words_of(name, **units)
    lr = LR * (1 - words.get("momentum", 0)) / units.get("weight_unit", 1.0) ** 2
    linearization = sgdsde.linearize(problem(**units))
    if rank is not None:
        linearization = linearization.truncate(rank, tail=tail)
    return sgdsde.predict(linearization, sgdsde.SGD(lr, 2, **words), STEPS[-1], dynamics=kind, record=STEPS)


def numbers(found: sgdsde.Trajectory) -> list[Tensor]:
    losses = [found.train_loss, found.test_loss] if found.test_loss is not None else [found.train_loss]
    return [part for loss in losses for part in (loss.mean, loss.std) if part is not None]


@pytest.mark.parametrize(("kind", "name"), EACH)
def test_a_loss_has_the_unit_of_the_targets_squared_and_none_of_the_weights(kind: dynamics.Dynamics, name: str) -> None:
    found = (numbers(predicted(kind, name, **units)) for units in ({}, {"weight_unit": 8.0}, {"target_unit": 8.0}))
    tolerance = SOLVED if isinstance(kind, dynamics.MomentEquations) else CLOSE
    for one, same, scaled in zip(*found, strict=True):
        torch.testing.assert_close(same, one, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(scaled / 64, one, rtol=tolerance, atol=tolerance)


STATE, MEAN = dynamics.MomentRecursion(), dynamics.OrnsteinUhlenbeck()


@pytest.mark.parametrize("tail", ["frozen", "followed"])
@pytest.mark.parametrize(("kind", "name"), [(STATE, name) for name in FRESH] + [(MEAN, "plain")], ids=str)
def test_nor_has_what_leading_eigenpairs_say_or_how_wrong_they_may_be(kind: Any, name: str, tail: str) -> None:
    found, weights, targets = (
        predicted(kind, name, rank=4, tail=tail, **units) for units in ({}, {"weight_unit": 8.0}, {"target_unit": 8.0})
    )
    for one, same, scaled in zip(*map(numbers, (found, weights, targets)), strict=True):
        torch.testing.assert_close(same, one, rtol=CLOSE, atol=CLOSE)
        torch.testing.assert_close(scaled / 64, one, rtol=CLOSE, atol=CLOSE)
    assert found.truncation_error[1:].isfinite().all()
    torch.testing.assert_close(weights.truncation_error, found.truncation_error, rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(targets.truncation_error / 64, found.truncation_error, rtol=CLOSE, atol=CLOSE)


def test_limits_go_with_the_curvature_and_not_with_the_targets() -> None:
    plain, weights, targets = problem(), problem(weight_unit=8.0), problem(target_unit=8.0)
    for limit in (
        lambda one, decay: stability.max_lr(one, 2),
        lambda one, decay: stability.max_lr(one, 2, momentum=0.7, weight_decay=decay),
        lambda one, decay: stability.max_lr_full_batch(one, momentum=0.7, nesterov=True, weight_decay=decay),
        lambda one, decay: stability.sufficient_lr(sgdsde.linearize(one), 2, sampling="without_replacement"),
        lambda one, decay: stability.fastest_lr(one, 2),
    ):
        assert limit(weights, 64 * 0.2) * 64 == pytest.approx(limit(plain, 0.2), rel=1e-6)
        assert limit(targets, 0.2) == pytest.approx(limit(plain, 0.2), rel=1e-6)
    for scale in (stability.critical_batch_size, stability.gradient_noise_scale):
        assert scale(weights) == pytest.approx(scale(plain), rel=1e-5)
        assert scale(targets) == pytest.approx(scale(plain), rel=1e-5)


def test_a_unit_that_is_left_out_is_noticed() -> None:
    """The decay in the old unit of the weights, the noise of labels in the old unit of the targets."""
    for name, unit in (("decay", "weight_unit"), ("label noise", "target_unit")):
        linearization = sgdsde.linearize(problem(**{unit: 8.0}))
        lr = LR / 64 if unit == "weight_unit" else LR
        found = sgdsde.predict(linearization, sgdsde.SGD(lr, 2, **SETTINGS[name]), 7, record=STEPS)
        expected = predicted(dynamics.MomentRecursion(), name).train_loss.mean
        scale = 1 if unit == "weight_unit" else 64
        assert float((found.train_loss.mean / scale / expected - 1).abs().max()) > 1e-3
