"""The result file of an experiment: complete or absent, and never silently changed.

A result is one ``.npz``: the arrays, and ``manifest.json`` which says how they came about and holds their hashes. It is
written to a temporary file, flushed to the disk and renamed, so that a crashed or killed run leaves nothing that looks
done. ``numpy.load`` reads it, ``unzip -p NAME.npz manifest.json`` shows the manifest; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

FORMAT = 1
ROOT = Path(__file__).resolve().parents[1]
# What zipfile, zlib, json and numpy raise for bytes that are not what they should be.
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, ValueError, NotImplementedError)


class DamagedResultError(ValueError):
    """A result file that is not what its manifest says."""


@dataclass(frozen=True)
class Result:
    """The arrays of an experiment by name, with their manifest; made by ``load`` only."""

    arrays: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]
    path: Path

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise KeyError(f"{self.path} must hold an array {name!r}, got {', '.join(sorted(self.arrays))}")
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


def save(path: Path, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> None:
    """Write a result file in one step: it is there with all of its content, or it is not there.

    The file carries the time ``manifest["started"]``, so that a source edited while the experiment ran is newer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    hashes = {name: {"dtype": a.dtype.str, "shape": a.shape, "sha256": _digest(a)} for name, a in arrays.items()}
    header = json.dumps(dict(manifest) | {"format": FORMAT, "arrays": hashes}, indent=2)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("manifest.json", header)
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        if "started" in manifest:
            os.utime(temporary, (manifest["started"], manifest["started"]))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> Result:
    """The result in a file, every array checked against its hash.

    Raises:
        DamagedResultError: the file is cut, changed or not a result; the message names it and says how to redo it.
    """
    manifest = read_manifest(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sorted(archive.namelist()) != sorted(["manifest.json", *(f"{name}.npy" for name in manifest["arrays"])]):
                _refuse(path, f"members {sorted(archive.namelist())} instead of {sorted(manifest['arrays'])}")
            for name, expected in manifest["arrays"].items():
                array = np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                if _digest(array) != expected["sha256"]:
                    _refuse(path, f"array {name!r} whose hash differs from the manifest's")
                arrays[name] = array
    except DamagedResultError:
        raise
    except UNREADABLE as error:
        _refuse(path, str(error))
    return Result(arrays=arrays, manifest=manifest, path=path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a result file, arrays unread."""
    if not path.is_file():
        raise FileNotFoundError(f"result {path} must exist, got no such file; run its experiment, or make figures")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest: dict[str, Any] = json.loads(archive.read("manifest.json"))
    except UNREADABLE as error:
        _refuse(path, str(error))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        _refuse(path, f"format {manifest.get('format') if isinstance(manifest, dict) else manifest!r}")
    return manifest


def library_digest() -> str:
    """Hash of the library's sources, by which a result knows whether the library has changed since."""
    whole = hashlib.sha256()
    for file in sorted((ROOT / "sgdsde").rglob("*.py")):
        whole.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return whole.hexdigest()


def is_outdated(path: Path) -> bool:
    """Whether the result was computed with other sources of the library."""
    return bool(read_manifest(path)["sources"]["library"] != library_digest())


def _refuse(path: Path, received: str) -> NoReturn:
    raise DamagedResultError(
        f"result {path} must be a complete result file of format {FORMAT}, got {received}; delete it and run make again"
    )


def _digest(array: np.ndarray) -> str:
    content = f"{array.dtype.str} {array.shape}\0".encode() + np.ascontiguousarray(array).tobytes()
    return hashlib.sha256(content).hexdigest()


def _remove_leftovers(path: Path) -> None:
    """Delete what killed runs of the same experiment left: temporary files whose process is gone."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        process = leftover.name.split(".")[-2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            leftover.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue
