"""How SGD may be described, what its plan of steps is, and what is refused."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import SGD
from sgdsde.sgd import sampling_factor


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"lr": 0.0}, ValueError, "lr must be positive, got 0.0"),
        ({"lr": -0.1}, ValueError, "lr must be positive, got -0.1"),
        ({"lr": math.nan}, ValueError, "lr must be finite, got nan"),
        ({"lr": math.inf}, ValueError, "lr must be finite, got inf"),
        ({"lr": "0.1"}, TypeError, "lr must be a real number, got '0.1' of type str"),
        ({"lr": 0.1j}, TypeError, "lr must be a real number, got 0.1j of type complex"),
        ({"lr": None}, TypeError, "lr must be a real number, got None"),
        ({"lr": True}, TypeError, "lr must be a real number, got True of type bool"),
        ({"batch_size": 2.5}, ValueError, "batch_size must be a whole number, got 2.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"batch_size": -4}, ValueError, "batch_size must be at least 1, got -4"),
        ({"batch_size": math.nan}, ValueError, "batch_size must be finite, got nan"),
        ({"momentum": 1.0}, ValueError, "momentum must be in [0, 1), got 1.0"),
        ({"momentum": -0.1}, ValueError, "momentum must be in [0, 1), got -0.1"),
        ({"momentum": math.nan}, ValueError, "momentum must be finite, got nan"),
        ({"dampening": math.inf}, ValueError, "dampening must be finite"),
        ({"weight_decay": -1e-4}, ValueError, "weight_decay must be zero or positive, got -0.0001"),
        ({"label_noise_std": -1}, ValueError, "label_noise_std must be zero or positive, got -1"),
        ({"nesterov": True}, ValueError, "nesterov must be used with momentum and without dampening, got momentum=0.0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "use momentum > 0 and dampening=0"),
        ({"sampling": "replacement"}, ValueError, "sampling must be one of 'with_replacement', 'without_replacement'"),
        ({"sampling": "replacement"}, ValueError, "got 'replacement'"),
        (
            {"drop_last": True},
            ValueError,
            "drop_last must be used with sampling='shuffled', got sampling='with_replace",
        ),
    ],
)
def test_bad_words_are_refused_by_name(words, error, message):
    with pytest.raises(error, match=re.escape(message)):
        SGD(**({"lr": 0.1, "batch_size": 4} | words))


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"lr": lambda k: 0.3 - 0.1 * k}, ValueError, "lr(3) must be zero or positive, got "),
        ({"lr": lambda k: -1.0}, ValueError, "lr(0) must be zero or positive, got -1.0"),
        ({"lr": lambda k: math.nan}, ValueError, "lr(0) must be finite, got nan"),
        ({"lr": lambda k: None}, TypeError, "lr(0) must be a real number, got None"),
        ({"batch_size": lambda k: 2 + k / 2}, ValueError, "batch_size(1) must be a whole number, got 2.5"),
        ({"batch_size": lambda k: 2 - k}, ValueError, "batch_size(2) must be at least 1, got 0"),
        (
            {"batch_size": 9, "sampling": "without_replacement"},
            ValueError,
            "got batch_size=9, n_train=8; use sampling=",
        ),
        (
            {"batch_size": 9, "sampling": "shuffled"},
            ValueError,
            "batch_size must be at most n_train when drawn without",
        ),
        ({"batch_size": lambda k: 7 + k, "sampling": "shuffled"}, ValueError, "got batch_size=11, n_train=8"),
    ],
)
def test_bad_schedules_are_refused_with_their_step(words, error, message):
    sgd = SGD(**({"lr": 0.1, "batch_size": 4} | words))
    with pytest.raises(error, match=re.escape(message)):
        sgd.plan(8, 5)


@pytest.mark.parametrize("words", [{"lr": lambda k: 0.1 - k}, {"batch_size": lambda k: 1.5}])
def test_predict_and_measure_refuse_a_bad_schedule(words):
    problem = sgdsde.Problem(nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 1), loss=nn.MSELoss())
    sgd = SGD(**({"lr": 0.1, "batch_size": 4} | words))
    for run in (lambda: sgdsde.predict(problem, sgd, 3), lambda: sgdsde.run_ensemble(problem, sgd, 3, 2)):
        with pytest.raises(ValueError, match=r"(lr|batch_size)\([01]\) must be (zero or positive|a whole number)"):
            run()


def test_schedules_are_functions_of_the_step():
    plan = SGD(lr=lambda k: 1 / (k + 1), batch_size=lambda k: 2 + 2 * (k >= 2)).plan(8, 4)
    np.testing.assert_array_equal(plan.lr, [1, 1 / 2, 1 / 3, 1 / 4])
    np.testing.assert_array_equal(plan.batch_size, [2, 2, 4, 4])
    np.testing.assert_allclose(plan.times, [0, 1, 3 / 2, 11 / 6, 25 / 12])
    assert plan.segments(0, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert SGD(0.1, 2).plan(8, 4).segments(1, 4) == [(1, 4)]
    assert SGD(0.1, 2).plan(8, 4).segments(2, 2) == []


def test_numbers_of_other_types_are_numbers():
    sgd = SGD(lr=torch.tensor(0.5), batch_size=np.int64(4))
    assert sgd.lr_at(0) == 0.5
    assert type(sgd.batch_size_at(0)) is int
    assert SGD(0.1, 8.0).batch_size == 8


def test_an_epoch_ends_with_a_smaller_batch_unless_it_is_dropped():
    kept, dropped = (SGD(0.1, 3, sampling="shuffled", drop_last=drop).plan(8, 7) for drop in (False, True))
    assert kept.batch_size.tolist() == [3, 3, 2, 3, 3, 2, 3]
    assert kept.used.tolist() == [0, 3, 6, 0, 3, 6, 0]
    assert dropped.batch_size.tolist() == [3] * 7
    assert dropped.used.tolist() == [0, 3, 0, 3, 0, 3, 0]


@pytest.mark.parametrize("sampling", ["with_replacement", "without_replacement"])
def test_the_sampling_factor_is_that_of_a_sample_mean(sampling):
    # Variance of the mean of B of n numbers over every equally likely batch, in units of variance / B.
    numbers, n, size = np.array([0.3, -1.2, 2.0, 0.7]), 4, 2
    grid = [(i, j) for i in range(n) for j in range(n) if sampling == "with_replacement" or i != j]
    variance = np.var([numbers[list(batch)].mean() for batch in grid])
    assert variance == pytest.approx(sampling_factor(n, size, sampling) / size * numbers.var(), rel=1e-12)
    assert sampling_factor(n, n, "without_replacement") == 0
    assert sampling_factor(1, 1, "without_replacement") == 0


def test_plain_means_neither_momentum_nor_decay_nor_label_noise():
    assert SGD(lambda k: 0.1, 2, sampling="shuffled").is_plain
    assert not any(SGD(0.1, 2, **{word: 0.1}).is_plain for word in ("momentum", "weight_decay", "label_noise_std"))


def test_it_is_frozen_and_compares_by_value():
    assert SGD(0.1, 2) == SGD(0.1, 2.0)
    with pytest.raises(AttributeError):
        SGD(0.1, 2).lr = 0.2  # type: ignore[misc]


def test_a_plan_that_does_not_fit_is_refused_and_constants_need_no_loop():
    plan = sgdsde.SGD(0.1, 4).plan(8, 100_000)
    assert (plan.lr == 0.1).all()
    assert (plan.batch_size == 4).all()
    with pytest.raises(MemoryError, match=r"n_steps must be at most .* steps that are followed one by one"):
        sgdsde.SGD(0.1, 4).plan(8, 10**13)
