"""Claim: the fraction of examples on the right side is measured as a loop would, and predicted from the Gaussian.

The outputs of SGD are not Gaussian, so predictions are held against runs at an error stated here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sgdsde
from tests.oracles import torch_run
from tests.problems import digits_problem, mlp_problem, seeded_module
from tests.statistics import EXACT, threshold

RECORD = (0, 1, 2, 5, 10, 20, 40)


def onehot_problem() -> sgdsde.Problem:
    """Three classes under squared error."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(size=(36, 3)))
    classes = (x @ torch.from_numpy(rng.normal(size=(3, 3))) + 0.5 * torch.from_numpy(rng.normal(size=(36, 3)))).argmax(
        1
    )
    y = torch.nn.functional.one_hot(classes, 3).double()
    model = seeded_module(
        lambda: torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)), 4
    )
    return sgdsde.Problem(model, x[:24], y[:24], loss=torch.nn.MSELoss(), x_test=x[24:], y_test=y[24:])


@pytest.mark.parametrize(
    "make", [lambda: digits_problem(12, width=32, n_test=8), onehot_problem], ids=["sign", "argmax"]
)
def test_measured_accuracy_is_that_of_a_loop(make: Callable[[], sgdsde.Problem]) -> None:
    problem, sgd = make(), sgdsde.SGD(0.1, 3, momentum=0.5, sampling="shuffled")
    measured = sgdsde.run_ensemble(problem, sgd, 6, 5, seed=2, record=range(7), observe=("accuracy",))
    for run in range(5):
        outputs = torch_run(problem, sgd, 6, seed=2, run=run)
        for side, found, y in zip(("train", "test"), outputs, (problem.y_train, problem.y_test)):
            expected = []
            for step in range(7):
                pairs = zip(found[step].tolist(), y.tolist())
                right = [f[0] * t[0] > 0 if len(t) == 1 else np.argmax(f) == np.argmax(t) for f, t in pairs]
                expected.append(sum(right) / len(right))
            band = getattr(measured, f"{side}_accuracy")
            np.testing.assert_allclose(band.samples[run], expected, atol=1e-12)
    assert float(measured.train_accuracy.std.max()) > 0


@pytest.mark.parametrize(
    ("make", "closure_error"),
    [(lambda: digits_problem(48, n_test=32), 0.01), (onehot_problem, 0.025)],
    ids=["sign", "argmax"],
)
def test_predicted_accuracy_of_the_linearized_model(make: Callable[[], sgdsde.Problem], closure_error: float) -> None:
    """Within the error of the Gaussian law and chance; the outputs of the mean path, which forget the noise, are not.

    Chance: 1e-4 over all steps and both sets, from the standard errors of 2000 runs and of the draws that predict. The
    error of the Gaussian law was 0.007 and 0.025 at most. The control must miss by twice what is allowed it, chance
    aside.
    """
    linearization = sgdsde.linearize(make())
    sgd = sgdsde.SGD(0.4 * sgdsde.stability.max_lr(linearization, 4), 4)
    asked = {"record": RECORD, "observe": ("accuracy",)}
    measured = sgdsde.run_ensemble(linearization, sgd, RECORD[-1], 2000, **asked)
    predicted = sgdsde.predict(linearization, sgd, RECORD[-1], **asked)
    descent = sgdsde.predict(linearization, sgd, RECORD[-1], dynamics=sgdsde.dynamics.GradientDescent(), **asked)
    z, missed = threshold(2 * len(RECORD)), []
    for side in ("train_accuracy", "test_accuracy"):
        seen, found, control = (getattr(each, side) for each in (measured, predicted, descent))
        chance = z * (seen.standard_error.square() + found.standard_error.square()).sqrt()
        error = (found.mean - seen.mean).abs()
        assert (error <= closure_error + chance + EXACT).all(), (side, error, chance)
        missed.append(((control.mean - seen.mean).abs() - z * seen.standard_error).max())
    assert max(missed) > 2 * closure_error


def test_the_spread_of_accuracy_is_predicted() -> None:
    """Within 15 and 20 %: the standard deviation over 2000 runs is known to 1.6 %, so chance alone is eight sigma."""
    linearization = sgdsde.linearize(digits_problem(48, n_test=32))
    sgd = sgdsde.SGD(0.4 * sgdsde.stability.max_lr(linearization, 4), 4)
    asked = {"record": (5, 20), "observe": ("accuracy",)}
    measured = sgdsde.run_ensemble(linearization, sgd, 20, 2000, **asked)
    predicted = sgdsde.predict(linearization, sgd, 20, **asked)
    ratio = predicted.train_accuracy.std / measured.train_accuracy.std
    assert float(ratio.min()) > 0.85
    assert float(ratio.max()) < 1.2


def test_accuracy_survives_saving(tmp_path: Path) -> None:
    problem = mlp_problem()
    measured = sgdsde.run_ensemble(problem, sgdsde.SGD(0.1, 2), 3, 4, observe=("accuracy",))
    measured.save(tmp_path / "run.npz")
    loaded = sgdsde.Trajectory.load(tmp_path / "run.npz")
    assert torch.equal(loaded.test_accuracy.samples, measured.test_accuracy.samples)
