"""Claim: ``LinearizedSGD`` samples SGD of the linearized model, under every loss and sampling, on batches of its own.

Runs are compared with ``run_ensemble(linearization, ...)`` where both draw the same batches, and the mean loss with
the exact recursion: the largest of 2 x 6 z-scores, family-wise error rate 1e-4.
"""

from __future__ import annotations

import pytest
import torch

import sgdsde
from sgdsde.dynamics import LinearizedSGD, MomentRecursion
from sgdsde.dynamics.linearized_sgd import PREDICTED
from tests.problems import BY_NAME, classification_problem
from tests.statistics import assert_mean_is

SETTINGS = [
    {},
    {"sampling": "shuffled", "momentum": 0.5, "weight_decay": 0.05},
    {"sampling": "without_replacement", "momentum": 0.6, "nesterov": True},
]


@pytest.mark.parametrize("words", SETTINGS, ids=str)
@pytest.mark.parametrize("build", [BY_NAME["two outputs, null space"].problem, classification_problem])
def test_a_path_is_a_run_of_the_linearized_model(build, words):
    linearization, sgd = sgdsde.linearize(build()), sgdsde.SGD(0.05, 3, **words)
    asked = {"record": [0, 1, 5, 9], "observe": ("loss", "outputs")}
    found = sgdsde.predict(linearization, sgd, 9, dynamics=LinearizedSGD(70, seed=3), **asked)
    runs = sgdsde.run_ensemble(linearization, sgd, 9, 70, seed=3 + PREDICTED, **asked)
    torch.testing.assert_close(found.train_loss.samples, runs.train_loss.samples, rtol=1e-13, atol=0)
    torch.testing.assert_close(found.test_outputs.mean, runs.test_outputs.mean, rtol=1e-12, atol=1e-14)
    others = sgdsde.run_ensemble(linearization, sgd, 9, 70, seed=3, **asked)
    assert not torch.equal(found.train_loss.samples[:, 1], others.train_loss.samples[:, 1])


@pytest.mark.parametrize("words", [{}, {"momentum": 0.5, "label_noise_std": 0.3}], ids=str)
def test_its_mean_loss_is_that_of_the_recursion(words):
    linearization = sgdsde.linearize(BY_NAME["one output"].problem())
    sgd, record = sgdsde.SGD(0.05, 2, **words), [1, 2, 5, 10, 20, 30]
    found = sgdsde.predict(linearization, sgd, 30, dynamics=LinearizedSGD(2000), record=record)
    exact = sgdsde.predict(linearization, sgd, 30, dynamics=MomentRecursion(), record=record)
    assert_mean_is(exact.train_loss.mean, found.train_loss.samples, n_claims=2)
    doubled = sgdsde.predict(linearization, sgdsde.SGD(0.05, 4, **words), 30, record=record)
    with pytest.raises(AssertionError, match="family-wise"):
        assert_mean_is(doubled.train_loss.mean, found.train_loss.samples, n_claims=2)
