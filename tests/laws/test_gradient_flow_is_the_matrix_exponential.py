"""Claim: ``GradientFlow`` is the exact flow of the linear model, train and test, whatever the rank of the kernel.

Oracle: SciPy's expm in the space of the WEIGHTS; no kernel, no spectrum, no pseudo-inverse.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import GradientDescent, GradientFlow
from tests.oracles import constant_part, features, flow_weights
from tests.problems import AFFINE, LINEAR, Case

RECORD = (0, 1, 2, 7, 40, 300)


@pytest.mark.parametrize(
    "words",
    [{}, {"weight_decay": 0.3}, {"lr": lambda step: 0.2 / (1 + step)}],
    ids=["plain", "weight decay", "schedule"],
)
@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_outputs_equal_expm(case: Case, words: dict) -> None:
    problem = case.problem()
    sgd = sgdsde.SGD(**{"lr": 0.15, "batch_size": 2, **words})
    train, test = features(problem)
    times = np.concatenate([[0.0], np.cumsum([sgd.lr_at(k) for k in range(RECORD[-1])])])
    for law in GradientFlow().evolve(sgdsde.linearize(problem), sgd, RECORD):
        assert law.time == pytest.approx(times[law.step], rel=1e-13)
        theta = flow_weights(problem, times[law.step], sgd.weight_decay)
        constants = constant_part(problem).split([case.n_train, case.n_test])
        for mean, rows, constant in zip((law.mean, law.test_mean), (train, test), constants):
            oracle = torch.from_numpy(rows @ theta).view_as(mean) + constant
            torch.testing.assert_close(mean, oracle, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_losses_equal_those_of_expm(case: Case) -> None:
    problem = case.problem()
    sgd = sgdsde.SGD(0.15, 2)
    predicted = sgdsde.predict(problem, sgd, 40, dynamics=GradientFlow(), record=RECORD[:5])
    train, test = features(problem)
    for row, time in enumerate(predicted.times.tolist()):
        theta = flow_weights(problem, time)
        for band, rows, y in (
            (predicted.train_loss, train, problem.y_train),
            (predicted.test_loss, test, problem.y_test),
        ):
            loss = np.mean((rows @ theta - y.numpy().ravel()) ** 2)
            assert float(band.mean[row]) == pytest.approx(loss, rel=1e-10)
            assert float(band.std[row]) == 0.0


def test_the_comparison_notices_gradient_descent() -> None:
    """A factor of 2 in the drift or a discrete step in place of the flow is far beyond 1e-10."""
    problem = LINEAR[0].problem()
    flow, descent = (
        sgdsde.predict(problem, sgdsde.SGD(0.15, 2), 5, dynamics=dynamics).train_loss.mean
        for dynamics in (GradientFlow(), GradientDescent())
    )
    assert float(((flow - descent) / flow)[1:].abs().min()) > 1e-3


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.name)
def test_descent_tends_to_the_flow_in_first_order(case: Case) -> None:
    """Deterministic: at fixed time the gap halves with lr, on the last two halvings."""
    problem, total = case.problem(), 2.0
    gaps = []
    for n_steps in (128, 256, 512):
        ends = [
            sgdsde.predict(
                problem,
                sgdsde.SGD(total / n_steps, 1),
                n_steps,
                dynamics=dynamics,
                record=[n_steps],
                observe=("outputs",),
            ).test_outputs.mean
            for dynamics in (GradientFlow(), GradientDescent())
        ]
        gaps.append(float((ends[0] - ends[1]).norm()))
    slopes = np.log2([gaps[0] / gaps[1], gaps[1] / gaps[2]])
    np.testing.assert_allclose(slopes, 1.0, atol=0.1)
