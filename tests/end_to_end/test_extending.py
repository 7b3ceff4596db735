"""The criterion, the data set and the figure that docs/extend.md writes out, used as the page says."""

from __future__ import annotations

import json

import pytest
import torch

import sgdsde
from paper_figs.frame import complaints, expectation
from sgdsde import pruning
from tests.pages import ROOT, blocks

PAGE = ROOT / "docs" / "extend.md"


def written(marker: str) -> dict:
    """The names that the one block with this marker defines."""
    (block,) = (each for each in blocks(PAGE, "python") if marker in each.text)
    names: dict = {"__name__": "extension"}
    exec(block.text, names)
    return names


def test_the_criterion_keeps_the_rows_of_largest_norm() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(6, 8, bias=False), torch.nn.ReLU(), torch.nn.Linear(8, 1, bias=False)
        )
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(8, 6) * torch.arange(1.0, 9.0)[:, None])
        model[2].weight.fill_(1e-6)
    problem = sgdsde.Problem(model, torch.randn(10, 6), torch.randn(10, 1), loss=torch.nn.MSELoss())
    with pytest.warns(pruning.PruningWarning):
        masks = pruning.prune(problem, written("class RowNorm")["RowNorm"](), 1 - 18 / 56)
    kept = masks["0.weight"].sum(1)
    largest = model[0].weight.norm(dim=1).topk(3).indices
    assert sorted(kept.tolist()) == [0, 0, 0, 0, 0, 6, 6, 6]
    assert (kept[largest] == 6).all()


def test_the_data_set_makes_a_problem_and_leaves_the_global_stream_alone() -> None:
    two_moons = written("def two_moons")["two_moons"]
    before = torch.random.get_rng_state()
    data = two_moons(40, 20, noise_std=0.0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert data.x_train.shape == (40, 2)
    assert data.y_test.shape == (20, 1)
    assert set(data.y_train.flatten().tolist()) == {-1.0, 1.0}
    again = two_moons(40, 20, noise_std=0.0)
    assert torch.equal(data.x_train, again.x_train)
    model = sgdsde.networks.MLP(2, 16, 1)
    problem = sgdsde.Problem(model, **data.tensors(), loss=torch.nn.MSELoss())
    assert (problem.n_train, problem.n_test) == (40, 20)


def test_the_figure_computes_claims_what_it_says_and_draws(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    arrays = written("fig99_twice.py\n\nimport numpy")["run"]("smoke", lambda label: None)
    drawing = written("from paper_figs import style")
    (block,) = blocks(PAGE, "json")
    (tmp_path / "expected.json").write_text(block.text)
    claims = drawing["claims"](arrays)
    for scale in ("smoke", "laptop"):
        assert complaints(claims, expectation(tmp_path / "expected.json", "fig99_twice", scale)) == []
    assert complaints({"start": 2.0}, expectation(tmp_path / "expected.json", "fig99_twice", "smoke"))
    assert "Refuted by:" in drawing["__doc__"]
    assert list(json.loads(block.text)) == ["fig99_twice"]
    (axis,) = drawing["draw"](arrays).axes
    assert len(axis.lines) == 2
