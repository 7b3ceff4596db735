"""Batches: what they hold, which stream they come from, and that a run does not depend on the others."""

from __future__ import annotations

import re

import pytest
import torch

from sgdsde import SGD
from sgdsde.sampling import PADDING, batch_indices


def drawn(sgd: SGD, n: int = 10, n_steps: int = 40, *, seed: int = 0, run: int = 0) -> torch.Tensor:
    return batch_indices(sgd, n, n_steps, seed=seed, run=run)


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "shuffled"])
def test_indices_are_int64_of_the_training_set(sampling):
    batches = drawn(SGD(0.1, 5, sampling=sampling))
    assert batches.dtype == torch.int64
    assert batches.shape == (40, 5)
    assert set(batches.flatten().tolist()) == set(range(10))


def test_without_replacement_no_batch_repeats_an_example_and_steps_are_fresh():
    batches = drawn(SGD(0.1, 6, sampling="without_replacement"))
    assert all(len(set(row)) == 6 for row in batches.tolist())
    assert any(set(first) & set(second) for first, second in zip(batches.tolist(), batches.tolist()[1:]))
    full = drawn(SGD(0.1, 10, sampling="without_replacement"), n_steps=3)
    assert all(sorted(row) == list(range(10)) for row in full.tolist())


def test_with_replacement_batches_may_exceed_the_training_set_and_repeat_examples():
    batches = drawn(SGD(0.1, 12))
    assert all(len(set(row)) < 12 for row in batches.tolist())


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    batches = drawn(SGD(0.1, 4, sampling="shuffled"), n_steps=6)
    epochs = batches.view(2, 12)
    assert (epochs == PADDING).sum(1).tolist() == [2, 2]
    assert batches[2, 2:].tolist() == [PADDING] * 2
    orders = [[i for i in epoch if i != PADDING] for epoch in epochs.tolist()]
    assert [sorted(order) for order in orders] == [list(range(10))] * 2
    assert orders[0] != orders[1]
    shortened = drawn(SGD(0.1, 4, sampling="shuffled", drop_last=True), n_steps=6)
    assert (shortened != PADDING).all()
    assert all(len(set(epoch)) == 8 for epoch in shortened.view(3, 8).tolist())


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement", "shuffled"])
def test_seed_and_run_name_the_stream(sampling):
    sgd = SGD(0.1, 3, sampling=sampling)
    first = drawn(sgd, seed=3, run=5)
    assert torch.equal(first, drawn(sgd, seed=3, run=5))
    others = [drawn(sgd, seed=4, run=5), drawn(sgd, seed=3, run=6), drawn(sgd, seed=3, run=5 + 64)]
    assert not any(torch.equal(first, other) for other in others)
    assert torch.equal(first[:15], drawn(sgd, n_steps=15, seed=3, run=5))


def test_batch_size_schedules_are_padded_to_the_largest():
    batches = drawn(SGD(0.1, lambda k: 1 + k), n_steps=3)
    assert (batches != PADDING).sum(1).tolist() == [1, 2, 3]
    assert drawn(SGD(0.1, 3), n_steps=0).shape == (0, 0)


def test_every_example_is_drawn_equally_often():
    # 40000 draws of 10 examples: chi-square with 9 degrees of freedom exceeds 33.7 with probability 1e-4.
    for run, sampling in ((0, "with_replacement"), (1, "without_replacement")):
        counts = drawn(SGD(0.1, 4, sampling=sampling), n_steps=10_000, run=run).flatten().bincount(minlength=10)
        chi_square = float(((counts - 4000) ** 2 / 4000).sum())
        assert chi_square < 33.7, (sampling, counts)
        # Without replacement counts vary less: each step's has variance B/n (1 - B/n) and sums to B.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n_steps": -1}, "n_steps must be at least 0, got -1"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"run": -1}, "run must be at least 0, got -1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
    ],
)
def test_bad_numbers_are_refused(words, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        drawn(SGD(0.1, 3), **words)
