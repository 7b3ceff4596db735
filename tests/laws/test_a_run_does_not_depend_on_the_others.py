"""Claim: run j is the same run however many are asked for, whatever is recorded, and its batches can be had."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.sampling import PADDING, batch_indices
from tests.oracles import torch_run
from tests.problems import BY_NAME, mlp_problem

SAMPLINGS = ("with_replacement", "without_replacement", "shuffled")


@pytest.mark.parametrize("label_noise", [0.0, 0.4])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_run_seven_of_eight_is_run_seven_of_eight_hundred(linearized: bool, sampling: str, label_noise: float) -> None:
    problem = BY_NAME["two outputs"].problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.1, 3, sampling=sampling, label_noise_std=label_noise)
    few, many = (sgdsde.run_ensemble(source, sgd, 6, runs, seed=3, record=(0, 6)) for runs in (8, 800))
    torch.testing.assert_close(few.train_loss.samples, many.train_loss.samples[:8], rtol=1e-12, atol=0)
    assert len(torch.unique(many.train_loss.samples[:, -1])) > 50 or sampling != "with_replacement"


@pytest.mark.parametrize("run", [0, 7, 63, 64, 69])
def test_the_batches_of_a_run_are_those_of_batch_indices(run: int) -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3, sampling="shuffled", momentum=0.5)
    measured = sgdsde.run_ensemble(problem, sgd, 7, 70, seed=11, record=range(8), observe=("outputs",))
    train, test = torch_run(problem, sgd, 7, seed=11, run=run)
    torch.testing.assert_close(measured.train_outputs.samples[run], train, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(measured.test_outputs.samples[run], test, rtol=1e-10, atol=1e-10)
    other, _ = torch_run(problem, sgd, 7, seed=11, run=run + 1)
    assert float((other - train).abs().max()) > 1e-3


def test_what_is_recorded_changes_no_run() -> None:
    problem, sgd = mlp_problem(), sgdsde.SGD(0.1, 3)
    all_steps = sgdsde.run_ensemble(problem, sgd, 9, 5, seed=2, record=range(10))
    last = sgdsde.run_ensemble(problem, sgd, 9, 5, seed=2, record=[9])
    longer = sgdsde.run_ensemble(problem, sgd, 12, 5, seed=2, record=[9])
    assert torch.equal(all_steps.train_loss.samples[:, -1:], last.train_loss.samples)
    assert torch.equal(longer.train_loss.samples, last.train_loss.samples)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_batches_are_what_their_name_says(sampling: str) -> None:
    n, size, steps = 10, 4, 3 * 40
    sgd = sgdsde.SGD(0.1, size, sampling=sampling)
    batches = batch_indices(sgd, n, steps, seed=0, run=5)
    assert batches.shape == (steps, size)
    drawn = [batch[batch != PADDING].tolist() for batch in batches]
    assert all(0 <= i < n for batch in drawn for i in batch)
    if sampling == "with_replacement":
        assert any(len(set(batch)) < size for batch in drawn)
    if sampling == "without_replacement":
        assert all(len(set(batch)) == size for batch in drawn)
        assert len({tuple(sorted(batch)) for batch in drawn}) > 60
    if sampling == "shuffled":
        assert [len(batch) for batch in drawn[:6]] == [4, 4, 2, 4, 4, 2]
        epochs = [[i for batch in drawn[k : k + 3] for i in batch] for k in range(0, steps, 3)]
        assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_runs_and_seeds_are_all_different(sampling: str) -> None:
    """Also across the blocks of runs that share a stream, and the last step as well as the first."""
    sgd = sgdsde.SGD(0.1, 4, sampling=sampling)
    runs = [batch_indices(sgd, 40, 20, seed=seed, run=run) for seed in (0, 1) for run in (0, 1, 63, 64, 65, 128, 640)]
    for rows in (slice(0, 5), slice(15, 20)):
        assert len({tuple(batches[rows].flatten().tolist()) for batches in runs}) == len(runs)


@pytest.mark.parametrize("linearized", [False, True], ids=["real", "linearized"])
def test_label_noise_differs_between_all_runs_and_seeds(linearized: bool) -> None:
    """Full batches: the labels' noise is all that tells runs apart."""
    problem = BY_NAME["two outputs"].problem()
    source = sgdsde.linearize(problem) if linearized else problem
    sgd = sgdsde.SGD(0.1, 4, sampling="without_replacement", label_noise_std=0.4)
    losses = [sgdsde.run_ensemble(source, sgd, 3, 150, seed=seed, record=[1, 3]).train_loss.samples for seed in (0, 1)]
    for column in torch.cat(losses).mT:
        assert len(torch.unique(column)) == 300


def test_drop_last_skips_the_smaller_batch_and_reshuffles() -> None:
    sgd = sgdsde.SGD(0.1, 4, sampling="shuffled", drop_last=True)
    batches = batch_indices(sgd, 10, 60, seed=0, run=0)
    assert bool((batches != PADDING).all())
    for k in range(0, 60, 2):
        assert len(set(batches[k : k + 2].flatten().tolist())) == 8
    left_out = [set(range(10)) - set(batches[k : k + 2].flatten().tolist()) for k in range(0, 60, 2)]
    assert len({tuple(sorted(rest)) for rest in left_out}) > 10


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_example_is_drawn_as_often(sampling: str) -> None:
    """Chi-square over 64 runs of 60 steps: the counts of shuffled and without replacement spread less than i.i.d., so
    the i.i.d. threshold at a false-alarm rate of 1e-6 holds for all."""
    from scipy import stats

    n = 10
    sgd = sgdsde.SGD(0.1, 4, sampling=sampling)
    batches = torch.stack([batch_indices(sgd, n, 60, seed=1, run=run) for run in range(0, 64)])
    counts = np.bincount(batches[batches != PADDING].flatten().numpy(), minlength=n)
    statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert statistic < stats.chi2.isf(1e-6, n - 1)
