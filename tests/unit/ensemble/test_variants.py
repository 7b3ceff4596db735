"""SVAG in an ensemble: every substep has batches of its own, and the budget of memory counts what a run holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import SVAG
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from tests.problems import BY_NAME, linear_problem


def test_substeps_draw_batches_of_their_own():
    """At a tiny step the spread of the outputs is that of SGD; batches shared by four substeps would make it four times
    as large. 400 runs each: the quotient leaves [0.6, 1.7] with probability below 1e-6 (F of 399 and 399)."""
    problem, runs = BY_NAME["one output"].problem(), 400
    sgd = sgdsde.SGD(lr=1e-5, batch_size=1)
    spread = {}
    for variant in (None, SVAG(4)):
        found = sgdsde.run_ensemble(problem, sgd, 1, runs, variant=variant, seed=3, observe=("outputs",), record=[1])
        spread[variant] = found.train_outputs.samples[:, -1, 0, 0].var()
    plain, refined = spread.values()
    assert 0.6 < refined / plain < 1.7


def test_momentum_costs_one_more_copy_of_the_weights_of_every_run():
    """Weights, gradients, what the update makes of them, and the input of one example, as large as the weights here."""
    p = 1000
    x, zeros = torch.ones(3, 1, p).double().numpy(), torch.zeros(p).double().numpy()
    learner = RealLearner(linear_problem(x, zeros[:3, None], zeros))
    memory, per_run = 500 * p * 8, {}
    for momentum in (0.0, 0.9):
        found = learner.runs_at_once(sgdsde.SGD(0.1, 1, momentum=momentum), 1, memory, 1000)
        per_run[momentum] = memory / found / (p * 8)
    assert 5 <= per_run[0.0] <= 15
    assert per_run[0.9] - per_run[0.0] == pytest.approx(1, abs=0.35)  # whole numbers of some 50 runs
    with pytest.raises(MemoryError, match="one run"):
        learner.runs_at_once(sgdsde.SGD(0.1, 1), 1, 5 * p * 8, 1000)


def test_runs_at_once_fall_with_the_batch_and_the_sets_that_are_evaluated():
    model = nn.Linear(1, 1).double()
    x = torch.ones(20_000, 1, dtype=torch.float64)
    wide = RealLearner(sgdsde.Problem(model, x, x, loss=nn.MSELoss()))
    narrow = RealLearner(sgdsde.Problem(model, x[:10], x[:10], loss=nn.MSELoss()))
    sgd, memory = sgdsde.SGD(0.1, 1), 10**7
    assert wide.runs_at_once(sgd, 1, memory, 10**6) == pytest.approx(memory / (2 * 20_000 * 8), rel=0.05)
    one, ten = (narrow.runs_at_once(sgd, batch, memory, 10**6) for batch in (1000, 10_000))
    assert one == pytest.approx(10 * ten, rel=0.05)


def test_linearized_runs_hold_a_few_copies_of_all_outputs():
    """Outputs, residuals, moves and what is between them: bytes go with the outputs of both sets."""
    problem = BY_NAME["two outputs"].problem()
    learner, outputs = LinearizedLearner(sgdsde.linearize(problem)), (problem.n_train + problem.n_test) * 2
    found = learner.runs_at_once(sgdsde.SGD(0.1, 2), 2, 400 * outputs * 8, 1000)
    assert 4 <= 400 / found <= 16
    with pytest.raises(MemoryError, match="one run of the linearized model"):
        learner.runs_at_once(sgdsde.SGD(0.1, 2), 2, 4 * outputs * 8 - 1, 1000)
