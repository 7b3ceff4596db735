"""Results: what a file gives back, what a damaged one says, and the tables of a result."""

from __future__ import annotations

import io
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sgdsde import LossBand, OutputBand, Trajectory
from sgdsde.bands import AccuracyBand
from sgdsde.trajectory import FORMAT_VERSION

GENERATOR = torch.Generator().manual_seed(0)


def draws(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=GENERATOR, dtype=torch.float64)


def full() -> Trajectory:
    """Every part present, one run diverged."""
    losses = draws(3, 4)
    losses[1, 2:] = math.inf
    return Trajectory(
        steps=torch.tensor([0, 1, 3, 7]),
        times=torch.tensor([0.0, 0.1, 0.3, 0.7], dtype=torch.float64),
        train_loss=LossBand.from_samples(losses),
        test_loss=LossBand.from_samples(draws(3, 4)),
        train_outputs=OutputBand.from_samples(draws(3, 4, 5, 2)),
        test_outputs=OutputBand(draws(4, 6, 2), draws(4, 6, 2)),
        n_runs=3,
        dynamics="measured: SGD with »quotes« and \n lines",
        problem_digest="0123456789abcdef",
        diverged_at=torch.tensor([8, 3, 8]),
        mean_square_limit=0.25,
        train_accuracy=AccuracyBand.from_samples(draws(3, 4)),
    )


def bare() -> Trajectory:
    """What a moment predictor gives without a test set."""
    zero = torch.zeros(2, dtype=torch.float64)
    return Trajectory(
        steps=torch.tensor([0, 1]),
        times=zero,
        train_loss=LossBand(zero + 1, zero + 0.5, zero),
        test_loss=None,
        train_outputs=None,
        test_outputs=None,
        n_runs=0,
        dynamics="GradientFlow()",
        problem_digest="f",
        diverged_at=torch.zeros(0, dtype=torch.int64),
    )


def assert_same(first: object, second: object) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    elif hasattr(first, "__dataclass_fields__"):
        for field in fields(first):
            assert_same(getattr(first, field.name), getattr(second, field.name))
    else:
        assert first == second


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("make", [full, bare])
def test_a_file_gives_back_what_was_saved(make, tmp_path):
    trajectory = make()
    path = tmp_path / "result.npz"
    trajectory.save(path)
    assert_same(Trajectory.load(path), trajectory)
    trajectory.save(str(path))
    assert_same(Trajectory.load(str(path)), trajectory)
    assert [file.name for file in tmp_path.iterdir()] == ["result.npz"]


def test_the_name_is_kept_whatever_its_suffix(tmp_path):
    full().save(tmp_path / "result.of.a.run")
    assert [file.name for file in tmp_path.iterdir()] == ["result.of.a.run"]
    assert_same(Trajectory.load(tmp_path / "result.of.a.run").steps, full().steps)


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "result.npz"
    bare().save(path)

    def half(file: io.BufferedWriter, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="no space left"):
        full().save(path)
    monkeypatch.undo()
    assert_same(Trajectory.load(path), bare())
    assert [file.name for file in tmp_path.iterdir()] == ["result.npz"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full().save(tmp_path / "result.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bare().save(tmp_path / "nowhere" / "result.npz")
    with pytest.raises(FileNotFoundError):
        Trajectory.load(tmp_path / "result.npz")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(kept, tmp_path):
    path = tmp_path / "result.npz"
    full().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(
        ValueError, match=r"result.npz must be a complete file written by Trajectory.save, .* save again"
    ):
        Trajectory.load(path)


def flipped(whole: bytes, places: list[tuple[int, int]]) -> bytes:
    damaged = bytearray(whole)
    for byte, bit in places:
        damaged[byte] ^= 1 << bit
    return bytes(damaged)


def test_a_flipped_bit_is_refused_or_harmless(tmp_path):
    path = tmp_path / "result.npz"
    trajectory = bare()
    trajectory.save(path)
    whole, refused = path.read_bytes(), 0
    for byte in range(0, len(whole), 3):
        path.write_bytes(flipped(whole, [(byte, byte % 8)]))
        try:
            loaded = Trajectory.load(path)
        except ValueError as error:
            refused += "result.npz must be" in str(error)
        else:
            assert_same(loaded, trajectory)
    assert refused > len(whole) / 3 / 2


@pytest.mark.parametrize(
    "content",
    [b"", b"step,loss\n0,1.0\n", b"\x80\x04K\x01.", b"PK\x05\x06" + bytes(18)],
    ids=["empty", "text", "pickle", "zip of nothing"],
)
def test_a_foreign_file_is_refused(content, tmp_path):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a complete file written by"):
        Trajectory.load(path)


def with_header(path: Path, header: object, **changes: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    if isinstance(header, dict):
        header = {"arrays": sorted(set(arrays) - {"header"})} | header
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


HEADER = {"n_runs": 0, "dynamics": "d", "problem_digest": "f", "mean_square_limit": None}


@pytest.mark.parametrize(
    ("header", "changes", "message"),
    [
        (
            HEADER | {"format_version": FORMAT_VERSION + 1},
            {},
            "must be of format version 1, got format version 2; update",
        ),
        (HEADER, {}, "got format version None"),
        ([1, 2], {}, "got format version None"),
        (HEADER | {"format_version": 1}, {"times": None}, "must be a complete file written by Trajectory.save"),
        (HEADER | {"format_version": 1, "arrays": ["steps", "times"]}, {}, "an array is missing, or one too many"),
        ({"format_version": 1}, {}, "must be a complete file written by Trajectory.save"),
        (HEADER | {"format_version": 1, "more": 1}, {}, "must be a complete file written by Trajectory.save"),
    ],
)
def test_another_format_is_refused(header, changes, message, tmp_path):
    path = tmp_path / "result.npz"
    bare().save(path)
    with_header(path, header, **changes)
    with pytest.raises(ValueError, match=message):
        Trajectory.load(path)


def test_pickled_objects_are_not_loaded(tmp_path):
    path = tmp_path / "result.npz"
    bare().save(path)
    with_header(path, HEADER | {"format_version": 1}, times=np.array([{"a": 1}, None]))
    with pytest.raises(ValueError, match="must be a complete file"):
        Trajectory.load(path)


# -------------------------------------------------------------------------------------------------- tables


def test_the_data_frame_has_a_row_a_step():
    trajectory = full()
    frame = trajectory.to_dataframe()
    assert list(frame.columns[:5]) == ["step", "time", "train_loss_mean", "train_loss_std", "train_loss_standard_error"]
    assert {"test_loss_mean", "train_accuracy_mean"} <= set(frame.columns)
    assert frame["step"].tolist() == [0, 1, 3, 7]
    np.testing.assert_array_equal(frame["test_loss_std"], trajectory.test_loss.std)
    assert list(bare().to_dataframe().columns) == [
        *("step", "time", "train_loss_mean", "train_loss_std", "train_loss_standard_error"),
    ]


def test_the_data_set_names_its_dimensions():
    trajectory = full()
    data = trajectory.to_xarray()
    assert data["train_outputs_samples"].dims == ("run", "step", "train_example", "output")
    assert data["test_outputs_mean"].dims == ("step", "test_example", "output")
    assert data["train_loss_samples"].dims == ("run", "step")
    assert data.attrs["mean_square_limit"] == 0.25
    np.testing.assert_array_equal(data["train_loss_mean"].sel(step=3), trajectory.train_loss.mean[2])
    np.testing.assert_array_equal(data["time"], trajectory.times)
    assert "mean_square_limit" not in bare().to_xarray().attrs


def test_past_the_limit_is_said():
    assert full().is_past_limit
    assert not replace(full(), mean_square_limit=None).is_past_limit


# ------------------------------------------------------------------------------------------------- origins


def test_the_origin_is_what_the_words_say_unless_it_is_given():
    assert full().origin == "measured"
    assert bare().origin == "predicted"
    assert replace(bare(), origin="", dynamics="interpolated between 5 ensembles").origin == "interpolated"
    assert replace(bare(), origin="measured").origin == "measured"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"origin": "predicted", "dynamics": "measured: SGD"}, "origin must be what dynamics says, 'measured'"),
        ({"origin": "measured", "dynamics": "interpolated"}, "origin must be what dynamics says, 'interpolated'"),
        ({"origin": "simulated"}, "origin must be one of 'predicted', 'interpolated', 'measured', got 'simulated'"),
    ],
)
def test_an_origin_that_contradicts_the_words_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        replace(bare(), **words)


def test_origin_words_and_effort_are_saved(tmp_path):
    made = replace(bare(), origin="measured", obtained="measured by »hand«", effort={"n_runs": 3.0, "cost": 0.25})
    made.save(tmp_path / "result.npz")
    assert_same(Trajectory.load(tmp_path / "result.npz"), made)
    assert made.to_xarray().attrs["effort_cost"] == 0.25


@pytest.mark.parametrize(("make", "origin"), [(full, "measured"), (bare, "predicted")])
def test_a_file_from_before_origins_is_read(make, origin, tmp_path):
    path = tmp_path / "result.npz"
    made = make()
    made.save(path)
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
        arrays = {name: file[name] for name in file.files if name != "header"}
    for name in ("origin", "obtained", "effort"):
        header.pop(name)
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    loaded = Trajectory.load(path)
    assert_same(loaded, made)
    assert loaded.origin == origin


@pytest.mark.parametrize("words", [{"origin": 3}, {"origin": "guessed"}, {"effort": [1]}, {"effort": {"a": "b"}}])
def test_a_damaged_origin_is_refused(words, tmp_path):
    path = tmp_path / "result.npz"
    bare().save(path)
    with_header(path, HEADER | {"format_version": 1} | words)
    with pytest.raises(ValueError, match="must be a complete file"):
        Trajectory.load(path)
