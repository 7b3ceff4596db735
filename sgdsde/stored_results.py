"""All results below a folder in one tidy frame; files that cannot be believed are named and left out."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgdsde._checks import complaint
from sgdsde.run_folder import MANIFEST, ManifestError, file_fault, read_manifest
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas

COLUMNS = ("run", "file", "command", "origin", "dynamics", "n_runs", "problem_digest", "setting")
NUMBERS = ("quantity", "step", "time", "value", "std", "standard_error")
"""The columns that every frame has; options of the commands stand between the two."""

OF_A_MANIFEST = {
    "ntk": ("trace", "rank", "condition", "max_lr", "max_lr_full_batch"),
    "diagnose": ("frozen_error", "moving_error"),
    "eoc": ("sigma_w", "q"),
}
OF_A_NETWORK = ("density", "live_density", "train_loss", "test_loss", "max_lr", "kernel_trace")


class ResultsWarning(UserWarning):
    """A stored result that cannot be believed and is left out."""


@dataclass(frozen=True)
class _Block:
    """Rows of one curve, or of one number: what they share, and what differs."""

    shared: Mapping[str, Any]
    numbers: Mapping[str, Sequence[Any]]


def open_results(folder: str | os.PathLike[str]) -> pandas.DataFrame:
    """Every number that was stored below a folder, one a row, with the settings that it belongs to (needs pandas).

    Read are the folders that ``sgdsde COMMAND --out`` writes and files of ``Trajectory.save`` on their own. Every file
    of a run is held against the hash in its manifest, the manifest against its own. Unfinished and hidden files are
    passed over, and beside runs everything but ``manifest.json`` and ``.npz``.

    Returns:
        Columns: ``run`` (the run's folder, relative), ``file``, ``command``, ``origin`` ("predicted", "measured",
        "interpolated"), ``dynamics``, ``n_runs``, ``problem_digest``, ``setting`` (the name of a pruned network), one
        column for each option of the commands that were run (``lr`` is the number that was used), and ``quantity``
        ("train_loss", "test_accuracy", "max_lr", ...), ``step``, ``time``, ``value``, ``std``, ``standard_error``.
        What a number does not have is missing. Losses are in the units of the loss module, ``time`` is the sum of the
        learning rates before the step.
    Warns:
        ResultsWarning: one for each file that is cut, changed, missing, of something else or of a newer format, by
            name; the other files of its run are read all the same, but none whose manifest is refused.
    Raises:
        NotADirectoryError: no such folder. ValueError: no result in it that can be read.
        ModuleNotFoundError: no pandas.
    Cost: reads every file of every run once.
    """
    import pandas

    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(complaint("folder", "a folder with results", root))
    blocks: list[_Block] = []
    refused = 0
    for place, names in _folders(root):
        for block, fault in _blocks(root, place, names):
            if block is None:
                refused += 1
                warnings.warn(fault, ResultsWarning, stacklevel=2)
            else:
                blocks.append(block)
    if not blocks:
        received = f"{root} with none" + (f" that can be read, {refused} refused" if refused else "")
        raise ValueError(complaint("folder", "one that holds results", received))
    frame = pandas.DataFrame(_columns(blocks))
    return frame.astype({"step": "Int64", "n_runs": "Int64"} | dict.fromkeys(NUMBERS[2:], "float64"))


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))  # unfinished runs are hidden
        yield Path(place), sorted(name for name in names if not name.startswith("."))


def _blocks(root: Path, place: Path, names: Sequence[str]) -> Iterator[tuple[_Block | None, str]]:
    """The rows of one folder, and what is refused in it."""
    run = place.relative_to(root).as_posix()
    shared: dict[str, Any] = {"run": run}
    files: Mapping[str, Any] = {}
    if MANIFEST in names:
        try:
            manifest = read_manifest(place / MANIFEST)
        except (ManifestError, OSError) as error:
            yield None, _refusal(place / MANIFEST, error)
            return
        files, command = manifest["files"], manifest["command"]
        options = {key: value for key, value in manifest["configuration"].items() if not isinstance(value, list | dict)}
        shared |= options | {"command": command, "problem_digest": manifest.get("problem_digest")}
        for name in OF_A_MANIFEST.get(command, ()):
            yield _Block(shared | {"file": MANIFEST}, _number(name, manifest.get(name))), ""
    for name in sorted({*files, *(name for name in names if name.endswith(".npz"))}):
        fault = file_fault(place, name, files[name]) if name in files else ""
        if fault:
            yield None, _refusal(place / name, fault)
            continue
        reader = TABLES.get(name) if name in files else _trajectory
        try:
            for block in reader(place / name, shared | {"file": name}) if reader else ():
                yield block, ""
        except (ValueError, KeyError, TypeError, OSError) as error:
            yield None, _refusal(place / name, error)


def _refusal(path: Path, fault: object) -> str:
    return f"{path} is left out: {fault}"


def _number(name: str, value: Any) -> dict[str, Sequence[Any]]:
    return {"quantity": [name], "value": [None if value is None else float(value)]}


def _trajectory(path: Path, shared: Mapping[str, Any]) -> Iterator[_Block]:
    found = Trajectory.load(path)
    shared = {
        **shared,
        "origin": found.origin,
        "dynamics": found.dynamics,
        "n_runs": found.n_runs,
        "problem_digest": found.problem_digest,
    }
    bands = {f"{side}_loss": band for side, band in found.losses.items()}
    bands |= {f"{side}_accuracy": getattr(found, f"{side}_accuracy") for side in ("train", "test")}
    for name, band in bands.items():
        if band is not None:
            parts = {"value": band.mean, "std": band.std, "standard_error": band.standard_error}
            parts |= {"step": found.steps, "time": found.times}
            columns = {key: values.tolist() for key, values in parts.items()}
            yield _Block(shared, {"quantity": [name] * len(found.steps), **columns})


def _settings(path: Path, shared: Mapping[str, Any]) -> Iterator[_Block]:
    for row in _rows(path):
        words = {key: _value(row[key]) for key in ("lr", "batch_size", "mean_square_limit")}
        for side in ("train_loss", "test_loss"):
            if side in row:
                numbers = {"value": side, "std": f"{side}_std", "standard_error": f"{side}_standard_error"}
                columns: dict[str, Any] = {key: [float(row[name])] for key, name in numbers.items()}
                columns |= {"step": [int(row["step"])], "time": [float(row["time"])], "quantity": [side]}
                yield _Block({**shared, **words, "origin": row["kind"]}, columns)


def _networks(path: Path, shared: Mapping[str, Any]) -> Iterator[_Block]:
    for row in _rows(path):
        for name in OF_A_NETWORK:
            if row[name]:
                columns = _number(name, row[name])
                if name.endswith("_loss"):
                    columns |= {"step": [shared.get("steps")]}
                yield _Block({**shared, "setting": row["name"], "origin": "predicted"}, columns)


def _checks(path: Path, shared: Mapping[str, Any]) -> Iterator[_Block]:
    for row in _rows(path):
        yield _Block(shared, _number(row["name"], row["value"]))


TABLES: dict[str, Callable[[Path, Mapping[str, Any]], Iterator[_Block]]] = {
    "predicted.npz": _trajectory,
    "measured.npz": _trajectory,
    "sweep.csv": _settings,
    "ranking.csv": _networks,
    "diagnosis.csv": _checks,
}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _value(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _columns(blocks: Sequence[_Block]) -> dict[str, list[Any]]:
    options = {key: None for block in blocks for key in block.shared if key not in COLUMNS}
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *options, *NUMBERS)}
    for block in blocks:
        count = len(block.numbers["quantity"])
        for name, values in columns.items():
            values += block.numbers.get(name, [block.shared.get(name)] * count)
    return columns
