"""Surfaces between real ensembles: against runs where they answer, and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from sgdsde import SGD, EnsembleSurface, SurfaceWarning, compare, run_ensemble
from sgdsde.surface.anchors import PLACES, at_place
from sgdsde.surface.effective_time import effective_time, step_at
from tests.problems import mlp_problem

BASE, STEPS = SGD(0.06, 2, momentum=0.5), 24


@pytest.fixture(scope="module")
def surface():
    return EnsembleSurface.fit(mlp_problem(n_train=16), BASE, STEPS, n_runs=16)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_effective_time_is_the_way_down_a_constant_slope(momentum):
    way = buffer = 0.0
    for k in range(1, 30):
        buffer = momentum * buffer + 1
        way += 0.1 * buffer
        assert effective_time(k, 0.1, momentum) == pytest.approx(way, rel=1e-12)
        assert step_at(way, 0.1, momentum) == pytest.approx(k, rel=1e-9)
    assert step_at(0.0, 0.1, momentum) == 0.0


def test_it_is_the_mean_of_runs_that_it_never_saw(surface):
    """20 numbers within 4 of their combined standard errors: chance 1.3e-3 if the surface and its errors are right."""
    for sgd in (replace(BASE, lr=0.052, batch_size=3), replace(BASE, lr=0.04, batch_size=6)):
        found = surface.at(sgd)
        record = found.steps.tolist()
        assert record[0] == 0
        truth = run_ensemble(surface.problem, sgd, record[-1], 256, record=record, seed=99)
        for side, band in found.losses.items():
            other = truth.losses[side]
            error = torch.hypot(band.standard_error, other.standard_error)
            assert bool(((band.mean - other.mean).abs()[1:] < 4 * error[1:]).all()), side
            assert float((band.mean / other.mean - 1).abs().max()) < 0.05
            assert bool(((band.std / other.std)[1:] - 1).abs().mean() < 0.4)
        torch.testing.assert_close(found.train_loss.mean[0], truth.train_loss.mean[0])
        assert found.origin == "interpolated"
        assert compare(found, truth).train.max_relative_error < 0.05
        torch.testing.assert_close(found.times, truth.times)


def test_it_reaches_as_far_in_effective_time_as_the_base(surface):
    for x in (0.65, 0.9, 1.15):
        found = surface.at(replace(BASE, lr=x * BASE.lr))
        last = int(found.steps[-1])
        reach = [effective_time(k, x * BASE.lr, BASE.momentum) for k in (last, last + 1)]
        assert reach[0] <= surface.times[-1] * (1 + 1e-9) < reach[1] + x * BASE.lr / (1 - BASE.momentum)
        assert surface.times[-1] == pytest.approx(effective_time(STEPS, BASE.lr, BASE.momentum))


def test_an_anchor_is_its_own_measurement(surface):
    for place, anchor in zip(PLACES, surface.anchors):
        found = surface.at(at_place(BASE, place))
        assert found.origin == "measured"
        assert found is anchor.measured


def test_words_and_numbers_say_how_it_was_obtained(surface):
    found = surface.at(replace(BASE, batch_size=3))
    assert re.match(r"interpolated between 80 real runs at 5 other .* misfit at the check [\d.]+ %", found.obtained)
    assert found.effort["cost_in_runs"] == surface.cost_in_runs > 0
    assert found.n_runs == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.073}, r"lr must be within 0.036 ... 0.072, the box of the surface at batch_size=2, got 0.073; fit"),
        ({"lr": 0.033}, "lr must be within"),
        ({"batch_size": 1}, "batch_size must be within 2 ... 8, the box of the surface, got 1"),
        ({"batch_size": 9}, "batch_size must be within 2 ... 8"),
        ({"momentum": 0.9}, "momentum must be 0.5, that of the surface's anchors, got 0.9; fit another surface with"),
        ({"weight_decay": 0.1}, "weight_decay must be 0.0"),
        ({"sampling": "shuffled"}, "sampling must be 'with_replacement'"),
        ({"lr": lambda k: 0.06}, "sgd must be of constant lr and batch_size, got a schedule; use sgdsde.measure"),
    ],
)
def test_what_lies_outside_is_refused(change, message, surface):
    with pytest.raises(ValueError, match=message):
        surface.at(replace(BASE, **change))


def test_the_lower_edge_slopes_with_the_batch(surface):
    assert surface.at(replace(BASE, lr=0.51 * BASE.lr, batch_size=7)).origin == "interpolated"
    with pytest.raises(ValueError, match="lr must be within"):
        surface.at(replace(BASE, lr=0.51 * BASE.lr, batch_size=3))


def changed(surface: EnsembleSurface, number: int, factor: torch.Tensor | dict[str, torch.Tensor]) -> EnsembleSurface:
    """A surface one of whose ensembles has other losses."""
    anchors = list(surface.anchors)
    factors = factor if isinstance(factor, dict) else dict.fromkeys(anchors[number].losses, factor)
    losses = {side: values * factors[side] for side, values in anchors[number].losses.items()}
    anchors[number] = replace(anchors[number], losses=losses)
    return replace(surface, anchors=tuple(anchors))


def test_a_check_off_the_surface_refuses(surface):
    assert surface.refusal == ""
    off = changed(surface, 4, torch.tensor(1.2))
    with pytest.raises(ValueError, match=r"is off by [12]\d % of the train loss, more than 3 % and 3 standard errors"):
        off.at(replace(BASE, batch_size=3))


def test_a_misfit_below_refusal_widens_the_error(surface):
    sgd = replace(BASE, batch_size=3)
    fits = changed(surface, 4, {side: (-misfit).exp() for side, misfit in surface.misfit.items()})
    assert max(float(misfit.abs().max()) for misfit in fits.misfit.values()) < 1e-12
    errors = [
        changed(fits, 4, torch.tensor(factor)).at(sgd).train_loss.standard_error for factor in (1.0, 1.015, 1.029)
    ]
    assert bool((errors[1] > errors[0])[1:].all())
    assert bool((errors[2] > errors[1])[1:].all())


def test_runs_that_spread_too_far_refuse(surface):
    wild = torch.linspace(0.2, 1.8, 16, dtype=torch.float64)[:, None]
    with pytest.raises(ValueError, match=r"one run spreads by \d+ % of the mean loss at lr=0.036, batch_size=2"):
        changed(surface, 1, wild).at(replace(BASE, batch_size=3))


def test_a_surface_that_will_not_answer_warns_when_fitted():
    problem = mlp_problem(n_train=16)
    with pytest.warns(SurfaceWarning, match="this surface answers nothing: one run spreads by"):
        made = EnsembleSurface.fit(problem, SGD(30.0, 2), 60, n_runs=4)
    with pytest.raises(ValueError, match="the surface must be one that its own checks allow"):
        made.at(SGD(29.0, 3))


@pytest.mark.parametrize(
    ("sgd", "message"),
    [
        (SGD(lambda k: 0.1, 2), "sgd must be of constant lr and batch_size, got a schedule"),
        (SGD(0.1, 5, sampling="shuffled"), "batch_size must be at most n_train"),
    ],
)
def test_a_base_without_a_box_is_refused(sgd, message):
    with pytest.raises(ValueError, match=message):
        EnsembleSurface.fit(mlp_problem(n_train=16), sgd, 10)
