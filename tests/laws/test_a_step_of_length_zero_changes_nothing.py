"""A schedule may return 0, as a warm-up does at its first step: every dynamics stays where it is and goes on."""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.dynamics import (
    FrozenNoise,
    GradientDescent,
    GradientFlow,
    MomentEquations,
    MomentRecursion,
    MovingKernel,
    OrnsteinUhlenbeck,
    SDEPaths,
    WeakOrder2,
)
from tests.problems import LINEAR

DYNAMICS = [
    GradientFlow(),
    GradientDescent(),
    MomentRecursion(),
    MomentEquations(order=1),
    MomentEquations(order=2),
    OrnsteinUhlenbeck(freeze="init"),
    OrnsteinUhlenbeck(freeze="mean_path"),
    SDEPaths(n_paths=4),
    SDEPaths(4, WeakOrder2()),
    SDEPaths(4, FrozenNoise()),
    MovingKernel(),
]


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=repr)
def test_prediction(dynamics):
    linearization = sgdsde.linearize(LINEAR[2].problem())
    lr = 0.1 * sgdsde.stability.max_lr(linearization, 2)
    paused = sgdsde.predict(
        linearization, sgdsde.SGD(lambda k: lr * (k > 0), 2), 5, dynamics=dynamics, record=[0, 1, 2, 5]
    )
    band = paused.train_loss
    assert paused.times[1] == 0.0
    assert band.mean[1] == band.mean[0]
    assert torch.isfinite(band.mean).all()
    assert (band.mean[2:] != band.mean[0]).all()
    if not isinstance(dynamics, SDEPaths):
        plain = sgdsde.predict(linearization, sgdsde.SGD(lr, 2), 4, dynamics=dynamics, record=[0, 1, 4])
        torch.testing.assert_close(band.mean[1:], plain.train_loss.mean, rtol=1e-7, atol=0)


def test_measurement():
    problem = LINEAR[2].problem()
    measured = sgdsde.run_ensemble(problem, sgdsde.SGD(lambda k: 0.05 * (k > 0), 2), 3, 4, record=[0, 1, 3])
    assert (measured.train_loss.samples[:, 1] == measured.train_loss.samples[:, 0]).all()
    assert (measured.train_loss.samples[:, 2] != measured.train_loss.samples[:, 0]).all()
