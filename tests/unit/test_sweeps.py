"""Sweeps: every row is what ``predict`` and ``run_ensemble`` give for its setting, at one limit a group."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import LimitFraction, _sweep_cells
from sgdsde.dynamics import MomentRecursion
from sgdsde.stability import max_lr
from tests.problems import LARGER, mlp_problem, seeded_module


@pytest.fixture(scope="module")
def linearization() -> sgdsde.Linearization:
    return sgdsde.linearize(mlp_problem())


def test_every_row_is_the_prediction_of_its_setting(linearization: sgdsde.Linearization) -> None:
    grid = {"momentum": [0.0, 0.8], "weight_decay": [0.0, 0.1], "batch_size": [2, 3], "lr": [0.01, 0.02]}
    found = sgdsde.sweep(linearization, n_steps=5, record=[0, 2, 5], **grid)
    settings = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    assert len(found) == 3 * len(settings)
    for number, words in enumerate(settings):
        expected = sgdsde.predict(linearization, sgdsde.SGD(**words), 5, record=[0, 2, 5])
        for i, row in enumerate(found.rows[3 * number : 3 * number + 3]):
            assert {name: row[name] for name in words} == words
            assert (row["kind"], row["step"], row["examples"]) == (
                "predicted",
                [0, 2, 5][i],
                row["step"] * row["batch_size"],
            )
            assert row["time"] == pytest.approx(row["step"] * row["lr"], rel=1e-12)
            for side in ("train_loss", "test_loss"):
                band = getattr(expected, side)
                parts = (band.mean[i], band.std[i], band.standard_error[i])
                assert [row[side + part] for part in ("", "_std", "_standard_error")] == [float(x) for x in parts]
            assert not row["past_mean_square_limit"]


def test_a_fraction_is_of_the_limit_of_its_group_found_once(
    linearization: sgdsde.Linearization, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def counted(linearization: sgdsde.Linearization, sgd: sgdsde.SGD) -> float:
        asked.append((sgd.batch_size, sgd.momentum))
        return sgdsde.stability.max_lr_of(linearization, sgd)

    monkeypatch.setattr(_sweep_cells, "max_lr_of", counted)
    rates = [LimitFraction(0.1), LimitFraction(0.7), 1e-3]
    found = sgdsde.sweep(linearization, lr=rates, batch_size=[1, 4], momentum=[0.0, 0.5], n_steps=2)
    assert asked == [(1, 0.0), (4, 0.0), (1, 0.5), (4, 0.5)]
    assert [row["batch_size"] for row in found.rows] == [1, 1, 1, 4, 4, 4] * 2
    for row in found.rows:
        assert row["mean_square_limit"] == max_lr(linearization, row["batch_size"], momentum=row["momentum"])
    shares = [row["lr"] / row["mean_square_limit"] for row in found.rows]
    assert shares[0::3] + shares[1::3] == pytest.approx([0.1] * 4 + [0.7] * 4)
    assert {row["lr"] for row in found.rows[2::3]} == {1e-3}


def test_past_the_limit_no_finite_loss_is_named_and_none_warned_of(linearization: sgdsde.Linearization) -> None:
    """Warnings are errors here. The loss at step 0 is known all the same."""
    rates = [LimitFraction(0.5), LimitFraction(1.01)]
    below, past = sgdsde.sweep(linearization, lr=rates, batch_size=2, n_steps=3).rows
    assert (below["past_mean_square_limit"], past["past_mean_square_limit"]) == (False, True)
    assert below["train_loss"] < math.inf == past["train_loss"] == past["test_loss"]
    start = sgdsde.sweep(linearization, lr=rates, batch_size=2, n_steps=3, record=[0, 3]).rows
    assert start[2]["train_loss"] == start[0]["train_loss"] < math.inf
    assert start[3]["train_loss"] == math.inf


def test_measured_rows_are_the_runs_of_the_problem_or_of_the_linearized_model() -> None:
    problem = mlp_problem()
    words = {"lr": [0.05, 0.1], "batch_size": 3, "sampling": "shuffled", "n_steps": 4, "n_runs": 3, "seed": 5}
    for trained in (problem, sgdsde.linearize(problem)):
        rows = sgdsde.sweep(trained, measured=True, **words).rows
        assert [row["kind"] for row in rows] == ["predicted", "measured"] * 2
        for row in rows[1::2]:
            sgd = sgdsde.SGD(row["lr"], 3, sampling="shuffled")
            expected = sgdsde.run_ensemble(trained, sgd, 4, 3, seed=5, record=[4])
            assert row["train_loss"] == float(expected.train_loss.mean[0])
            assert row["test_loss_standard_error"] == float(expected.test_loss.standard_error[0])
            assert row["examples"] == int(sgd.plan(problem.n_train, 4).batch_size.sum())


def test_the_limit_of_another_loss_is_used_only_where_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    model = seeded_module(lambda: nn.Linear(3, 3), 0)
    problem = sgdsde.Problem(model, x, torch.tensor([0, 1, 2, 0, 1, 2]), loss=nn.CrossEntropyLoss())
    words = {"batch_size": 2, "n_steps": 2, "dynamics": sgdsde.dynamics.LinearizedSGD(8)}
    (row,) = sgdsde.sweep(problem, lr=0.1, **words).rows
    assert math.isnan(row["mean_square_limit"])
    assert "test_loss" not in row
    (row,) = sgdsde.sweep(problem, lr=LimitFraction(1.05), **words).rows
    assert row["lr"] == pytest.approx(1.05 * max_lr(problem, 2))
    assert not row["past_mean_square_limit"], "the loss need not diverge there"
    assert row["train_loss"] < math.inf


def test_the_best_setting_is_an_sgd(linearization: sgdsde.Linearization) -> None:
    found = sgdsde.sweep(
        linearization, lr=[0.01, 0.05, 1e6], batch_size=[2, 4], momentum=0.5, n_steps=10, record=[1, 10]
    )
    best = found.best("train_loss")
    last = [row for row in found.rows if row["step"] == 10]
    assert isinstance(best, sgdsde.SGD)
    predicted = sgdsde.predict(linearization, best, 10, record=[10]).train_loss.mean
    assert float(predicted) == min(row["train_loss"] for row in last) < math.inf
    with pytest.raises(ValueError, match="finite for one measured setting at least"):
        found.best(kind="measured")


def test_the_data_frame_is_the_rows(linearization: sgdsde.Linearization) -> None:
    found = sgdsde.sweep(linearization, lr=[0.01, 0.02], batch_size=[2, 4], n_steps=2)
    frame = found.to_dataframe()
    assert frame.to_dict("records") == [dict(row) for row in found.rows]
    assert frame.pivot(index="batch_size", columns="lr", values="train_loss").shape == (2, 2)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"lr": [0.1, -1.0]}, ValueError, "lr must be positive, got -1.0"),
        ({"lr": []}, ValueError, "lr must be one value at least, got none"),
        ({"lr": lambda step: 0.1}, TypeError, "lr must be a value or several, got a schedule; use predict"),
        ({"batch_size": [2, 0]}, ValueError, "batch_size must be at least 1, got 0"),
        ({"momentum": [0.5, 0.0], "nesterov": True}, ValueError, "nesterov must be used with momentum"),
        ({"sampling": "epochs"}, ValueError, "sampling must be one of"),
        ({"n_steps": 0}, ValueError, "n_steps must be at least 1, got 0"),
        ({"record": [7]}, ValueError, "record must be within 0 ... n_steps=4, got step 7"),
        ({"measured": True, "n_runs": 0}, ValueError, "n_runs must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_computed(words: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        sgdsde.sweep("no problem", **{"lr": 0.1, "batch_size": 2, "n_steps": 4, **words})


def test_a_fraction_is_positive() -> None:
    with pytest.raises(ValueError, match="fraction must be positive, got 0"):
        LimitFraction(0)


def test_many_settings_over_a_long_run_share_a_basis_and_keep_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    linearization = sgdsde.linearize(LARGER.problem())
    rates = [share * max_lr(linearization, 2) for share in (0.1, 0.3, 0.5, 5.0)]
    grid = {"batch_size": [2, 3, 6], "lr": rates, "n_steps": 700}
    alone = []

    def counted(linearization: sgdsde.Linearization, sgd: sgdsde.SGD, *rest: object, **words: object):
        alone.append(sgd)
        return sgdsde.predict(linearization, sgd, *rest, **words)

    monkeypatch.setattr(_sweep_cells, "predict", counted)
    found = sgdsde.sweep(linearization, **grid)
    assert not alone
    assert [row["past_mean_square_limit"] for row in found.rows] == [False, False, False, True] * 3
    assert [row["train_loss"] == math.inf for row in found.rows] == [False, False, False, True] * 3
    for row in (found.rows[1], found.rows[10]):
        sgd = sgdsde.SGD(row["lr"], row["batch_size"])
        expected = sgdsde.predict(linearization, sgd, 700, dynamics=MomentRecursion(), record=[700])
        for name in ("train_loss", "test_loss"):
            assert row[name] == pytest.approx(float(getattr(expected, name).mean), rel=3e-3)
        assert row["time"] == pytest.approx(700 * sgd.lr, rel=1e-12)
