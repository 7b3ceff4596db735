"""One basis from four settings predicts every other setting, its losses and its stability limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sgdsde
from sgdsde.dynamics import MomentRecursion
from sgdsde.dynamics.moments.modes import modes_of
from sgdsde.dynamics.moments.reduced.model import ReducedModel
from sgdsde.dynamics.moments.reduced.schedule import segments_between
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.prediction_sweep import predict_many, reduced_limit
from tests.problems import LARGER, digits_problem

N_STEPS = 400


@pytest.fixture(scope="module")
def digits() -> sgdsde.Linearization:
    return sgdsde.linearize(digits_problem(32, n_test=16))


@pytest.fixture(scope="module")
def limits(digits) -> dict[int, float]:
    return {size: sgdsde.stability.max_lr(digits, size) for size in (1, 4, 16)}


def settings(limits: dict[int, float]) -> list[sgdsde.SGD]:
    top = limits[4]
    grid = [sgdsde.SGD(share * limit, size) for size, limit in limits.items() for share in (0.1, 0.4, 0.8)]
    return [
        *grid,
        sgdsde.SGD(lambda k: 0.6 * top * (0.5 + 0.5 * np.cos(np.pi * k / N_STEPS)), 4),
        sgdsde.SGD(0.5 * top, 4, label_noise_std=0.2),
        sgdsde.SGD(0.5 * top, 4, weight_decay=1e-2),
        sgdsde.SGD(0.3 * top, 8, weight_decay=1e-2),
        sgdsde.SGD(0.5 * top, 8, sampling="without_replacement"),
    ]


def largest_error(ours: sgdsde.Trajectory, sgd: sgdsde.SGD, linearization: sgdsde.Linearization, side="train_loss"):
    theirs = sgdsde.predict(linearization, sgd, N_STEPS, dynamics=MomentRecursion())
    relevant = theirs.train_loss.mean > 1e-4 * theirs.train_loss.mean[0]
    return (getattr(ours, side).mean / getattr(theirs, side).mean - 1).abs()[relevant], theirs, relevant


def test_losses_are_those_of_the_recursion_setting_by_setting(digits, limits):
    sgds = settings(limits)
    for sgd, ours in zip(sgds, predict_many(digits, sgds, N_STEPS)):
        error, theirs, relevant = largest_error(ours, sgd, digits)
        assert ours.dynamics.endswith("shared")
        assert error.max() < 1e-3
        assert (error <= ours.estimated_error[relevant] + 2e-4).all()
        assert largest_error(ours, sgd, digits, "test_loss")[0].max() < 5e-3
        mean, std = theirs.train_loss.mean[relevant], theirs.train_loss.std[relevant]
        assert ((ours.train_loss.std[relevant] - std).abs() <= 0.02 * std + 5e-3 * mean).all()
        torch.testing.assert_close(ours.times, theirs.times, rtol=1e-12, atol=0)


def test_the_order_of_settings_is_kept_and_the_wrong_one_is_told_apart(digits, limits):
    sgds = settings(limits)[:3]
    first, second, _ = predict_many(digits, sgds, N_STEPS)
    assert largest_error(first, sgds[1], digits)[0].max() > 0.05
    assert largest_error(second, sgds[1], digits)[0].max() < 1e-3


@pytest.mark.parametrize("words", [{"momentum": 0.5}, {"sampling": "shuffled"}])
def test_what_the_basis_cannot_take_is_predicted_by_itself(digits, limits, words):
    sgds = [sgdsde.SGD(0.2 * limits[4], 4), sgdsde.SGD(0.2 * limits[4], 4, **words)]
    alone = sgdsde.predict(digits, sgds[1], 40)
    together = predict_many(digits, sgds, 40)
    torch.testing.assert_close(together[1].train_loss.mean, alone.train_loss.mean, rtol=0, atol=0)


def test_past_the_limit_there_is_a_warning_and_the_plain_recursion(digits, limits):
    sgds = [sgdsde.SGD(0.5 * limits[4], 4), sgdsde.SGD(1.2 * limits[4], 4)]
    with pytest.warns(sgdsde.UnstableWarning):
        below, past = predict_many(digits, sgds, 200)
    assert not below.is_past_limit
    assert past.is_past_limit


def test_null_space_and_several_outputs():
    linearization = sgdsde.linearize(LARGER.problem())
    limit = sgdsde.stability.max_lr(linearization, 2)
    sgds = [sgdsde.SGD(share * limit, size) for share, size in ((0.2, 2), (0.5, 2), (0.7, 4), (0.3, 6))]
    for sgd, ours in zip(sgds, predict_many(linearization, sgds, N_STEPS)):
        assert largest_error(ours, sgd, linearization)[0].max() < 1e-4


def test_a_batch_of_the_whole_set_has_no_sources_even_beside_a_null_space():
    linearization = sgdsde.linearize(LARGER.problem())
    limit = sgdsde.stability.max_lr(linearization, 24, sampling="without_replacement")
    sgds = [sgdsde.SGD(share * limit, 24, sampling="without_replacement") for share in (0.3, 0.6)]
    sgds.append(sgdsde.SGD(0.1 * limit, lambda k: 24 if k < 50 else 12, sampling="without_replacement"))
    for sgd, ours in zip(sgds, predict_many(linearization, sgds, N_STEPS)):
        assert largest_error(ours, sgd, linearization)[0].max() < 1e-4


def test_the_matrices_hold_the_limit_of_every_batch_size(digits, limits):
    modes = modes_of(digits)
    sgds = [sgdsde.SGD(0.8 * limits[1], 1), sgdsde.SGD(0.7 * limits[16], 16)]
    start = ReducedStart.of(modes, sgds[0], modes.start, None, time=1e3)
    model = ReducedModel(start.sources, [segments_between(sgd, 32, 0, 1000)[0] for sgd in sgds], 1000)
    system = model.build(4.0, 1e-4)
    for size in (1, 2, 4, 8, 16, 32):
        exact = sgdsde.stability.max_lr(digits, size)
        assert 0 <= reduced_limit(system, 1 / size) / exact - 1 < 5e-3


def test_bad_input_is_refused(digits):
    with pytest.raises(TypeError, match="sgds must be a sequence of SGD"):
        predict_many(digits, sgdsde.SGD(0.1, 4), 10)
    with pytest.raises(TypeError, match="sgd must be an SGD"):
        predict_many(digits, [0.1], 10)
    assert predict_many(digits, [], 10) == []
    assert predict_many(digits, [sgdsde.SGD(0.01, 4)], 0)[0].steps.tolist() == [0]
