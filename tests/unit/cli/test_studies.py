"""The commands that look at a problem before it is trained: they write and print what the library finds."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import sgdsde
from sgdsde.cli import OK
from tests.command_line import SMALL, SYNTHETIC, call


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_diagnose_writes_and_prints_what_the_library_finds(tmp_path, capsys):
    assert call("diagnose", SMALL, "--lr 0.3 --steps 12 --tolerance 0.2 --out d") == OK
    data = sgdsde.datasets.digits(16, 8)
    model = sgdsde.networks.MLP(64, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    found = sgdsde.diagnose(problem, sgdsde.SGD(0.3, 4), 12, tolerance=0.2)
    said = capsys.readouterr().out  # costs, and what is advised for them, depend on how busy the machine is
    assert all(check.sentence in said for check in found.checks.values())
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert manifest["sentence"] in " ".join(said.split())
    assert manifest["frozen_error"] == found.frozen_error
    with (tmp_path / "d" / "diagnosis.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(found.checks)
    assert float(rows[1]["value"]) == found.checks["kernel_drift"].value
    assert rows[0]["grade"] == found.checks["stability"].grade.value


def test_sweep_predicts_every_cell_and_marks_what_is_unstable(tmp_path, capsys):
    assert call("sweep", SYNTHETIC, "--steps 6 --lrs 0.5x 1.5x 0.05 --batch-sizes 2 8 --out s") == OK
    data = sgdsde.datasets.synthetic(16, 8, 5)
    model = sgdsde.networks.MLP(5, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    with (tmp_path / "s" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["batch_size"]) for row in rows] == [2, 2, 2, 8, 8, 8]
    limit = sgdsde.stability.max_lr(problem, 8)
    assert [float(row["lr"]) for row in rows[3:]] == pytest.approx([0.5 * limit, 1.5 * limit, 0.05], rel=1e-6)
    assert [row["past_mean_square_limit"] for row in rows] == ["False", "True", "False"] * 2
    expected = sgdsde.predict(problem, sgdsde.SGD(0.05, 8), 6)
    assert float(rows[5]["test_loss"]) == pytest.approx(float(expected.test_loss.mean[-1]), rel=1e-9)
    assert float(rows[4]["train_loss"]) == float("inf")
    said = capsys.readouterr().out
    assert said.count("unstable (lr ") == 4
    best = min(float(row["test_loss"]) for row in rows)
    assert f"smallest test loss: {best:.5g} with batch size " in said


def test_prune_writes_the_masks_and_the_ranking_that_the_library_finds(tmp_path, capsys):
    words = "--criteria snip random --sparsities 0.5 0.7 --rescale neuron --lr 0.01 --steps 5 --out p"
    assert call("prune", SMALL, words) == OK
    data = sgdsde.datasets.digits(16, 8)
    model = sgdsde.networks.MLP(64, 16, 1, generator=torch.Generator().manual_seed(0))
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    masks = sgdsde.pruning.prune(problem, sgdsde.pruning.SNIP(), 0.7)
    assert sgdsde.pruning.Masks.load(tmp_path / "p" / "masks-snip-0.7.npz") == masks
    with (tmp_path / "p" / "ranking.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"snip-0.5", "snip-0.7", "random-0.5", "random-0.7", "dense"}
    pruned = sgdsde.pruning.rescale_to_edge_of_chaos(masks.apply(problem))
    expected = sgdsde.predict(sgdsde.linearize(pruned), sgdsde.SGD(0.01, 4), 5)
    assert float(rows["snip-0.7"]["train_loss"]) == pytest.approx(float(expected.train_loss.mean[-1]), rel=1e-9)
    assert "smallest train loss first" in capsys.readouterr().out
