"""Runs held at once and stepped together: what they take is counted, and stays within the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.ensemble.batches import Draws
from sgdsde.ensemble.layout import Layout, Needs
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import SVAG, Minibatches, NoisyGradient, Variant
from tests.problems import BY_NAME, linear_problem

CPU = torch.device("cpu")


@pytest.mark.parametrize("memory", [10**4, 10**5, 10**7])
@pytest.mark.parametrize("together", [1, 5, None])
def test_what_is_held_moved_and_drawn_fits_and_one_byte_less_than_one_run_is_refused(memory: int, together: int | None):
    needs = Needs(held=800, moved=3000, together=together, what="one run")
    found = needs.layout(10**6, memory, CPU)
    assert 1 <= found.together <= found.held
    assert found.held * 800 + found.together * 3000 + found.ahead <= memory
    assert found.together <= (together or found.held)
    with pytest.raises(MemoryError, match="at least 3,800 bytes, got 3,799; one run needs 3,800 bytes"):
        needs.layout(10**6, 3799, CPU)
    assert needs.layout(10**6, 3800, CPU) == Layout(1, 1, 0), "what was asked for is enough"


@pytest.mark.parametrize("memory", [2 * 10**4, 10**5, 2 * 10**5])
@pytest.mark.parametrize("together", [1, 5, None])
def test_no_memory_is_left_for_one_run_more(memory: int, together: int | None) -> None:
    """Beside twice the draws: themselves, and copies of them or a piece of an evaluation."""
    needs = Needs(held=3000, moved=500, together=together, what="one run")
    found = needs.layout(10**6, memory, CPU)
    moved, spare = found.together * 500, memory - 2 * found.ahead
    assert found.held * 3000 + moved <= spare
    if found.held < 64:  # beyond it whole blocks of streams
        assert (found.held + 1) * 3000 + moved + (500 if together is None else 0) > spare
    assert memory // 16 <= found.ahead <= memory // 4


def test_draws_are_made_ahead_within_a_few_megabytes_however_much_is_free() -> None:
    needs = Needs(held=10, moved=10, together=4, what="one run")
    ahead = [needs.layout(100, 10**power, CPU).ahead for power in range(4, 12)]
    assert ahead == sorted(ahead)
    assert ahead[-1] == ahead[-2] <= 10**7


@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 5, 200])
def test_no_more_are_stepped_together_than_there_are(n_members: int) -> None:
    for together in (1, 4, None):
        found = Needs(held=10, moved=10, together=together, what="one run").layout(n_members, 10**6, CPU)
        assert found.together == min(n_members if together is None else together, n_members)
        assert found.held == (n_members if n_members < 64 or together is None else 192)


def test_as_many_are_held_as_there_are_or_whole_blocks_of_streams():
    needs = Needs(held=1, moved=1, together=4, what="one run")
    assert [needs.layout(n, 10**6, CPU).held for n in (1, 63, 64, 100, 130)] == [1, 63, 64, 64, 128]


def test_momentum_costs_one_more_copy_of_the_weights_of_every_run():
    p = 1000
    x, zeros = torch.ones(3, 1, p).double().numpy(), torch.zeros(p).double().numpy()
    learner = RealLearner(linear_problem(x, zeros[:3, None], zeros))
    plain, heavy = (learner.needs(sgdsde.SGD(0.1, 1, momentum=momentum), 1) for momentum in (0.0, 0.9))
    assert plain.held == p * 8 + 16
    assert heavy.held - plain.held == p * 8
    assert heavy.moved == plain.moved >= 2 * p * 8


def test_a_run_takes_more_with_the_batch_and_the_sets_that_are_evaluated():
    model = nn.Linear(1, 1).double()
    x = torch.ones(20_000, 1, dtype=torch.float64)
    wide = RealLearner(sgdsde.Problem(model, x, x, loss=nn.MSELoss()))
    narrow = RealLearner(sgdsde.Problem(model, x[:10], x[:10], loss=nn.MSELoss()))
    sgd = sgdsde.SGD(0.1, 1)
    assert wide.needs(sgd, 1).moved == pytest.approx(2 * 20_000 * 8, rel=0.05)
    one, ten = (narrow.needs(sgd, batch).moved for batch in (1000, 10_000))
    assert ten == pytest.approx(10 * one, rel=0.05)


def test_linearized_runs_hold_a_few_copies_of_all_outputs():
    """Outputs, residuals, moves and what is between them: bytes go with the outputs of both sets."""
    problem = BY_NAME["two outputs"].problem()
    learner, outputs = LinearizedLearner(sgdsde.linearize(problem)), (problem.n_train + problem.n_test) * 2
    needs, heavy = (learner.needs(sgdsde.SGD(0.1, 2, momentum=momentum), 2) for momentum in (0.0, 0.9))
    assert 4 * outputs * 8 <= needs.held + needs.moved <= 16 * outputs * 8
    assert needs.held == outputs * 8 + 2 * 2 * 8, "its outputs, and the places of a batch drawn and copied"
    assert heavy.held - needs.held == outputs * 8, "momentum is held from step to step"
    assert heavy.held + heavy.moved == needs.held + needs.moved, "and was made at every step before"


def test_runs_of_little_memory_are_the_runs_of_much():
    problem = BY_NAME["two outputs"].problem()
    sgd = sgdsde.SGD(0.1, 2, momentum=0.5)
    little, much = (sgdsde.run_ensemble(problem, sgd, 5, 70, memory=memory) for memory in (2**13, None))
    torch.testing.assert_close(little.train_loss.samples, much.train_loss.samples, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("variant", "noise"), [
    (Minibatches(), 0.0), (Minibatches(), 0.5), (SVAG(2), 0.0), (SVAG(3), 0.5), (NoisyGradient(), 0.0),
], ids=str)  # fmt: skip
def test_draws_ahead_and_a_copy_of_them_fill_the_bytes_allowed(variant: Variant, noise: float, dtype: torch.dtype):
    problem = BY_NAME["two outputs"].problem()
    sgd = sgdsde.SGD(0.1, 2, label_noise_std=noise)
    plan = variant.refined(sgd.plan(problem.n_train, 3000))
    draws = Draws(variant, plan, RunStreams(0, range(70), CPU, dtype), sgd, problem)
    for allowed in (30_000, 100_000):
        n_steps = draws.ahead(2000, allowed)
        taken = draws.take(n_steps)
        held = sum(part.nbytes for part in (taken.indices, taken.weights, taken.label_noise) if part is not None)
        assert 2 * held <= allowed < 2 * held * (n_steps + 1) / n_steps
    assert draws.ahead(3, 10**9) == 3
    assert draws.ahead(2000, 1) == 1, "one step at least"


def test_draws_ahead_end_where_the_batch_size_changes() -> None:
    problem, sizes = BY_NAME["two outputs"].problem(), [2, 2, 2, 1, 1, 3, 3, 3, 3]
    sgd = sgdsde.SGD(0.1, lambda k: sizes[k])
    streams = RunStreams(0, range(5), CPU, torch.float64)
    draws = Draws(Minibatches(), sgd.plan(problem.n_train, 9), streams, sgd, problem)
    found = []
    while sum(found) < 9:
        found.append(draws.ahead(9 - sum(found), 10**9))
        taken = draws.take(found[-1])
        assert taken.indices.shape[2] == sizes[sum(found) - 1]
    assert found == [3, 2, 4]
