"""The dynamics that docs/extend.md writes out, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, MomentRecursion
from tests.problems import BY_NAME

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "extend.md").read_text()
WORDS = [{}, {"momentum": 0.6, "weight_decay": 0.1}]


@pytest.fixture(scope="module")
def isotropic() -> Dynamics:
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "class IsotropicNoise" in block
    )
    assert len(code.splitlines()) <= 80
    names: dict = {"__name__": "contributed"}
    exec(code, names)
    return names["IsotropicNoise"]()


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_the_first_step_has_the_noise_of_the_minibatch_in_the_weights_but_isotropic(isotropic, words):
    linearization = sgdsde.linearize(BY_NAME["two outputs, null space"].problem())
    sgd, basis = sgdsde.SGD(0.05, 2, **words), linearization.eigenbasis
    own, minibatch = (
        list(dynamics.evolve(linearization, sgd, [0, 1]))[1].covariance.to_dense()
        for dynamics in (isotropic, MomentRecursion())
    )
    own, minibatch = (basis.vectors.mT @ part @ basis.vectors / basis.values for part in (own, minibatch))
    torch.testing.assert_close(own.trace(), minibatch.trace())  # of the weights' covariance
    torch.testing.assert_close(own, own.diagonal().mean() * torch.eye(len(own)).to(own), rtol=1e-10, atol=1e-14)
    assert (minibatch.diagonal() / minibatch.diagonal().mean() - 1).abs().max() > 0.1


@pytest.mark.parametrize("words", WORDS, ids=str)
def test_it_predicts_with_the_mean_of_gradient_descent_and_a_loss_of_its_own(isotropic, words):
    problem, sgd = BY_NAME["one output"].problem(), sgdsde.SGD(0.05, 2, **words)
    found, descent, recursion = (
        sgdsde.predict(problem, sgd, 30, dynamics=dynamics, observe=("loss", "outputs"))
        for dynamics in (isotropic, GradientDescent(), MomentRecursion())
    )
    torch.testing.assert_close(found.train_outputs.mean, descent.train_outputs.mean, rtol=1e-12, atol=1e-13)
    assert (found.train_loss.mean[1:] > descent.train_loss.mean[1:]).all()
    assert (found.train_loss.mean / recursion.train_loss.mean - 1).abs().max() > 0.01
