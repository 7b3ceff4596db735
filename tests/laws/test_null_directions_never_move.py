"""Claim: the outputs stay in f_0 + range(K), in every dynamics and every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import sgdsde
from sgdsde.dynamics import Dynamics, GradientDescent, GradientFlow, MomentRecursion, OrnsteinUhlenbeck
from tests.oracles import features
from tests.problems import AFFINE, LINEAR, Case, mlp_problem

SINGULAR = [case for case in LINEAR + AFFINE if case.rank < case.n_train * case.n_outputs]
RECORD = (0, 1, 3, 50)
DYNAMICS = (GradientFlow(), GradientDescent(), MomentRecursion(), OrnsteinUhlenbeck(freeze="init"))


def null_space(problem: sgdsde.Problem, rank: int) -> Tensor:
    """[n*c, n*c - rank], from the singular values of the features."""
    left, values, _ = np.linalg.svd(features(problem)[0])
    assert np.count_nonzero(values > 1e-10 * values[0]) == rank
    return torch.from_numpy(left[:, rank:])


def test_the_catalogue_has_singular_kernels() -> None:
    assert len(SINGULAR) >= 4
    assert any(case.duplicated for case in SINGULAR)


@pytest.mark.parametrize("case", LINEAR + AFFINE, ids=lambda case: case.name)
def test_the_rank_is_found(case: Case) -> None:
    """Eigenvalues of the size of rounding are no directions: they would be divided by."""
    basis = sgdsde.linearize(case.problem()).eigenbasis
    assert len(basis.values) == case.rank
    assert basis.vectors.shape == (case.n_train * case.n_outputs, case.rank)


@pytest.mark.parametrize("dynamics", DYNAMICS, ids=repr)
@pytest.mark.parametrize("case", SINGULAR, ids=lambda case: case.name)
def test_predicted(case: Case, dynamics: Dynamics) -> None:
    problem = case.problem()
    null = null_space(problem, case.rank)
    start = problem.forward(problem.params, problem.x_train)
    for law in dynamics.evolve(sgdsde.linearize(problem), sgdsde.SGD(0.15, 2), RECORD):
        assert float((null.mT @ (law.mean - start).flatten()).abs().max()) < 1e-13
        if law.covariance is not None:
            assert float((null.mT @ law.covariance.to_dense() @ null).abs().max()) < 1e-13


@pytest.mark.parametrize("words", [{}, {"momentum": 0.8, "nesterov": True}, {"label_noise_std": 0.3}], ids=str)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
@pytest.mark.parametrize("case", SINGULAR, ids=lambda case: case.name)
def test_measured(case: Case, linearized: bool, words: dict) -> None:
    problem = case.problem()
    null = null_space(problem, case.rank)
    source = sgdsde.linearize(problem) if linearized else problem
    runs = sgdsde.run_ensemble(source, sgdsde.SGD(0.05, 2, **words), 50, 3, record=RECORD, observe=("outputs",))
    moved = (runs.train_outputs.samples - problem.forward(problem.params, problem.x_train)).flatten(2)
    assert float((moved @ null).abs().max()) < 1e-12
    assert float(moved.abs().max()) > 1e-2


@pytest.mark.parametrize("case", SINGULAR, ids=lambda case: case.name)
def test_decay_leaves_them_too(case: Case) -> None:
    """It pulls J theta towards 0, and J theta lies in the range of K."""
    problem = case.problem()
    null = null_space(problem, case.rank)
    start = problem.forward(problem.params, problem.x_train)
    sgd = sgdsde.SGD(0.1, 2, weight_decay=0.5, momentum=0.3)
    for law in MomentRecursion().evolve(sgdsde.linearize(problem), sgd, RECORD):
        assert float((null.mT @ (law.mean - start).flatten()).abs().max()) < 1e-12
        assert float((null.mT @ law.covariance.to_dense() @ null).abs().max()) < 1e-12


def test_equal_inputs_move_as_one() -> None:
    """Whatever their targets are, predicted and measured on the network."""
    problem = mlp_problem()
    x = problem.x_train.clone()
    x[1] = x[0]
    twin = sgdsde.Problem(problem.model, x, problem.y_train, loss=problem.loss)
    predicted = sgdsde.predict(twin, sgdsde.SGD(0.05, 3), 60, observe=("loss", "outputs"))
    measured = sgdsde.run_ensemble(twin, sgdsde.SGD(0.05, 3), 60, 3, observe=("loss", "outputs"))
    for band in (predicted.train_outputs, measured.train_outputs):
        torch.testing.assert_close(band.mean[:, 0], band.mean[:, 1], rtol=1e-9, atol=1e-10)
