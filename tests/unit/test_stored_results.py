"""Stored results open in one frame, equal to what was computed; what cannot be believed is named and left out."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import sgdsde
from sgdsde.cli import OK
from sgdsde.run_folder import MANIFEST, write_manifest
from tests.command_line import SYNTHETIC, call

LOSSES = {"train_loss", "test_loss"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every command, and a trajectory on its own."""
    root = tmp_path_factory.mktemp("stored")
    words = f"{SYNTHETIC} --out {root}"
    lines = [
        f"predict {words}/p --steps 6 --lr half",
        f"compare {words}/deep/c --steps 6 --lr 0.05 --runs 3 --momentum 0.5",
        f"sweep {words}/s --steps 6 --lrs 0.5x 2x --batch-sizes 2 4",
        f"ntk {words}/n",
        f"prune {words}/m --steps 6 --lr 0.01 --criteria snip --sparsities 0.5",
        f"diagnose {words}/d --steps 6",
        f"eoc --out {root}/e --activation erf --sigma-b 0.3",
    ]
    with warnings.catch_warnings():
        assert [call(line) for line in lines] == [OK] * len(lines)
    sgdsde.Trajectory.load(root / "p" / "predicted.npz").save(root / "mine.npz")
    (root / "notes.csv").write_text("mine")
    shutil.copytree(root / "p", root / ".p.1234.tmp")
    return root


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Path:
    """Two runs that a test may damage."""
    for name in ("p", "n"):
        shutil.copytree(stored / name, tmp_path / name)
    return tmp_path


def test_every_curve_is_there_as_it_was_saved(stored: Path) -> None:
    frame = sgdsde.open_results(stored)
    assert set(frame["run"]) == {"p", "deep/c", "s", "n", "m", "d", "e", "."}
    for run, file in (
        ("p", "predicted.npz"),
        ("deep/c", "predicted.npz"),
        ("deep/c", "measured.npz"),
        (".", "mine.npz"),
    ):
        saved = sgdsde.Trajectory.load(stored / run / file)
        rows = frame[(frame["run"] == run) & (frame["file"] == file)]
        assert set(rows["quantity"]) == LOSSES
        for side, band in saved.losses.items():
            curve = rows[rows["quantity"] == f"{side}_loss"]
            assert curve["step"].tolist() == saved.steps.tolist()
            for column, values in {"time": saved.times, "value": band.mean, "std": band.std}.items():
                assert torch.equal(torch.tensor(curve[column].to_numpy()), values)
        assert set(rows["origin"]) == {saved.origin}
        assert set(rows["n_runs"]) == {saved.n_runs}


def test_every_row_carries_the_settings_it_belongs_to(stored: Path) -> None:
    frame = sgdsde.open_results(stored).set_index("run")
    rate = json.loads((stored / "p" / MANIFEST).read_text())["lr"]
    assert set(frame.loc["p", "lr"]) == {rate}
    assert set(frame.loc["deep/c", "momentum"]) == {0.5}
    assert set(frame.loc["s", "batch_size"]) == {2, 4}
    assert pandas.isna(frame.loc["e", "width"]).all()
    assert frame.loc["e"].set_index("quantity").loc["sigma_w", "value"] == sgdsde.meanfield.edge_of_chaos("erf", 0.3)[0]
    limits = frame.loc["n"].set_index("quantity")["value"]
    assert limits["max_lr"] == json.loads((stored / "n" / MANIFEST).read_text())["max_lr"]
    assert "kernel_drift" in set(frame.loc["d", "quantity"])
    assert set(frame.loc["m", "setting"]) == {"snip-0.5", "dense"}


def test_losses_of_a_sweep_past_the_limit_are_infinite(stored: Path) -> None:
    frame = sgdsde.open_results(stored / "s")
    losses = frame[frame["quantity"] == "train_loss"].sort_values(["batch_size", "lr"])["value"]
    assert np.isfinite(losses).tolist() == [True, False, True, False]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [cut, flip, remove])
@pytest.mark.parametrize("name", ["predicted.npz", "prediction.png"])
def test_a_damaged_file_is_named_and_the_rest_opens(name: str, damage: Callable[[Path], None], copied: Path) -> None:
    damage(copied / "p" / name)
    with pytest.warns(sgdsde.ResultsWarning) as caught:
        frame = sgdsde.open_results(copied)
    assert [name in str(each.message) for each in caught] == [True]
    assert set(frame["run"]) == ({"n"} if name == "predicted.npz" else {"p", "n"})


def test_every_flipped_bit_of_a_manifest_is_seen(copied: Path) -> None:
    path = copied / "p" / MANIFEST
    content, seen = path.read_bytes(), 0
    expected = json.loads(content)
    for place in range(0, len(content), 17):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(bytes(changed))
        try:
            if json.loads(bytes(changed)) == expected:
                continue  # a blank for a line break
        except ValueError:
            pass
        seen += 1
        with pytest.warns(sgdsde.ResultsWarning, match=r"p/manifest\.json is left out: "):
            frame = sgdsde.open_results(copied)
        assert set(frame["run"]) == {"n"}, (place, changed[place - 20 : place + 20])
    assert seen > 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not the manifest of a run"),
        ('{"name": "app", "icons": []}', "not the manifest of a run"),
        ('{"format_version": 3, "command": "predict"}', "format version 3, newer than 2; update sgdsde"),
        ('{"format_version": 1, "command": "predict", "arguments": {}}', "its files or its configuration are missing"),
        ('{"format_version": 1, "command": "p", "arguments": {}, "files": {"../x": {"sha256": ""}}}', "its files or"),
        ('{"format_version": true, "command": "predict"}', "not the manifest of a run"),
    ],
)
def test_a_foreign_or_newer_manifest_is_named(text: str, message: str, copied: Path) -> None:
    (copied / "p" / MANIFEST).write_text(text)
    with pytest.warns(sgdsde.ResultsWarning) as caught:
        frame = sgdsde.open_results(copied)
    (said,) = [str(each.message) for each in caught]
    assert str(copied / "p" / MANIFEST) in said
    assert message in said
    assert set(frame["run"]) == {"n"}


def test_a_foreign_or_newer_array_on_its_own_is_named(copied: Path) -> None:
    np.savez(copied / "other.npz", a=np.zeros(3))
    with np.load(copied / "p" / "predicted.npz") as file:
        arrays = dict(file)
    header = json.loads(arrays["header"].tobytes()) | {"format_version": 99}
    np.savez(copied / "later.npz", **arrays | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    with pytest.warns(sgdsde.ResultsWarning) as caught:
        frame = sgdsde.open_results(copied)
    said = [str(each.message) for each in caught]
    assert ["later.npz" in said[0], "format version 99" in said[0], "other.npz" in said[1]] == [True] * 3
    assert set(frame["run"]) == {"p", "n"}


def test_runs_of_the_first_format_open(copied: Path) -> None:
    path = copied / "p" / MANIFEST
    content = json.loads(path.read_text())
    del content["digest"]
    content |= {"format_version": 1, "arguments": {"training": {"lr": "half", "momentum": 0.25}, "runs": 3}}
    del content["configuration"]
    path.write_text(json.dumps(content))
    frame = sgdsde.open_results(copied / "p")
    assert set(frame["momentum"]) == {0.25}
    assert set(frame["runs"]) == {3}


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"folder must be a folder with results, got .*nowhere"):
        sgdsde.open_results(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folder must be one that holds results"):
        sgdsde.open_results(tmp_path)
    (tmp_path / MANIFEST).write_text("{}")
    with pytest.warns(sgdsde.ResultsWarning), pytest.raises(ValueError, match="none that can be read, 1 refused"):
        sgdsde.open_results(tmp_path)


def test_numbers_that_are_not_finite_survive(tmp_path: Path) -> None:
    facts = {"command": "ntk", "configuration": {}, "max_lr": float("inf"), "condition": float("nan"), "trace": 1.0}
    write_manifest(tmp_path, (), facts)
    values = sgdsde.open_results(tmp_path).set_index("quantity")["value"]
    assert values["max_lr"] == float("inf")
    assert np.isnan(values["condition"])
