"""Finished parts of a long computation in a folder, so that it goes on where it was killed.

The folder holds ``manifest.json``, which says what is computed, and one trajectory for each finished part. Every file
is written under a temporary name, brought to the disk and renamed, so that it is there whole or not at all. A part says
which manifest it belongs to; one that is damaged or of another computation is not used. Several processes may work
in one folder: what two of them finish is the same, and written twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._files import create_once
from sgdsde.provenance import versions
from sgdsde.trajectory import Trajectory

FORMAT_VERSION = 1
KIND = "sgdsde checkpoint"
MANIFEST = "manifest.json"
MANIFEST_BYTES = 2**24
"""A manifest is a few hundred bytes for each setting."""

ROUNDING = 1e-4
"""Relative difference that another number of threads may make in the numbers of a manifest."""

ABANDONED = 3600.0
"""Seconds after which a temporary file is taken for that of a process that was killed."""


class CheckpointWarning(UserWarning):
    """A part of a checkpoint that is damaged or belongs to another computation, and is computed again."""


@dataclass(frozen=True)
class Manifest:
    """What is computed, in words that must be the same when it goes on, and in numbers that must be so to rounding.

    Attributes:
        memory: bytes that the work was planned for; it goes on with the same, since other plans round differently.
    """

    words: dict[str, str]
    numbers: dict[str, list[float]]
    memory: int

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self) | {"format_version": FORMAT_VERSION}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def text(self) -> str:
        content = {"kind": KIND, "format_version": FORMAT_VERSION} | asdict(self) | {"digest": self.digest}
        return json.dumps(content, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """That of a folder; None where there is none.

        Raises: ValueError: damaged, foreign, or of another format.
        """
        path, remedy = folder / MANIFEST, f"delete {folder}, or choose another folder"
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > MANIFEST_BYTES:
                raise ValueError(f"{path.stat().st_size:,} bytes")
            content = json.loads(path.read_text())
            if (content.pop("kind"), content.pop("format_version")) != (KIND, FORMAT_VERSION):
                raise ValueError("of another kind or format version")
            digest, found = content.pop("digest"), cls(**content)
            if found.digest != digest or type(found.memory) is not int or found.memory < 1:
                raise ValueError("changed since it was written")
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            received = f"{type(error).__name__}: {error}"
            raise ValueError(complaint(str(path), "the manifest of a checkpoint", received, remedy)) from error
        return found

    def check_same(self, asked: Manifest, folder: Path) -> None:
        """Raises ValueError, with the first thing that differs, unless ``asked`` is this computation."""
        remedy = f"pass what it was begun with, or choose another folder (or delete {folder})"
        for key in sorted({*self.words, *asked.words}):
            before, now = self.words.get(key, "none"), asked.words.get(key, "none")
            if before != now:
                raise ValueError(complaint(f"{key} of the checkpoint in {folder}", before, now, remedy))
        for key in sorted({*self.numbers, *asked.numbers}):
            if not _close(self.numbers.get(key, []), asked.numbers.get(key, [])):
                raise ValueError(complaint(f"{key} of the checkpoint in {folder}", "the same", "another", remedy))


class Checkpoint:
    """The folder of one computation, to be begun or gone on with.

    Args:
        path: a folder that is new, empty, or that of this computation; the folder above must exist.
        device: where the work is done, for the memory that a new one is planned for. memory: bytes, if the caller said.
    Raises:
        ValueError: the folder of another computation, of another version of the library, or of none.
    """

    def __init__(self, path: str | os.PathLike[str], device: torch.device, memory: int | None = None) -> None:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(complaint("checkpoint", "the path of a folder", repr(path)))
        self.folder, self._digest = Path(path), ""
        _check_folder(self.folder)
        begun = Manifest.read(self.folder)
        self.memory = _memory.budget(memory, device)
        if begun is not None and memory in (None, begun.memory):
            self.memory = begun.memory
        elif begun is not None:
            remedy = "omit memory to go on with the same"
            expected = f"{begun.memory:,} bytes, which the checkpoint in {self.folder} was begun with"
            raise ValueError(complaint("memory", expected, f"{memory:,}", remedy))

    def begin(self, words: Mapping[str, str], numbers: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """Write what is computed, or compare it with what was begun. Returns the numbers that it was begun with."""
        made_by = {f"version of {name}": str(version) for name, version in versions().items()}
        asked = Manifest(made_by | dict(words), {key: list(value) for key, value in numbers.items()}, self.memory)
        self.folder.mkdir(exist_ok=True)
        begun = Manifest.read(self.folder)
        if begun is None and create_once(self.folder / MANIFEST, asked.text()):
            begun = asked
        begun = begun or Manifest.read(self.folder)
        assert begun is not None
        begun.check_same(asked, self.folder)
        self.memory, self._digest = begun.memory, begun.digest  # a process that began a moment ago may plan otherwise
        self._tidy()
        return begun.numbers

    def load(self, name: str) -> Trajectory | None:
        """A finished part; None where it is missing, or warned about because it is not what it should be."""
        path, found = self._file(name), None
        try:
            found = Trajectory.load(path)
        except FileNotFoundError:
            return None
        except ValueError as error:
            self._refuse(path, "a whole part", str(error))
            return None
        tag, _, obtained = found.obtained.partition("\n")
        if tag != self._tag(name):
            self._refuse(path, f"a part of the computation {self._digest}, {name}", tag or "no part")
            return None
        return replace(found, obtained=obtained)

    def save(self, name: str, part: Trajectory) -> None:
        """Keep a finished part."""
        replace(part, obtained=f"{self._tag(name)}\n{part.obtained}").save(self._file(name))

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def _tag(self, name: str) -> str:
        return f"part {name} of {self._digest}"

    def _refuse(self, path: Path, expected: str, received: str) -> None:
        text = complaint(str(path), expected, received, "it is computed again and replaced")
        warnings.warn(text, CheckpointWarning, stacklevel=3)

    def _tidy(self) -> None:
        """Delete what processes that were killed long ago left half-written."""
        for leftover in self.folder.glob(".*.tmp*"):
            try:
                if time.time() - leftover.stat().st_mtime > ABANDONED:
                    leftover.unlink()
            except FileNotFoundError:  # its process has finished it, or another one tidies
                continue


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(complaint(str(folder), "a folder", "a file", "choose another path"))
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the folder of {folder} must exist, got none; create {folder.parent} first")
    there = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if MANIFEST not in there and (there := [name for name in there if not name.startswith(".manifest.")]):
        received = f"a folder that holds {there[0]!r} and no {MANIFEST}"
        raise FileExistsError(complaint(str(folder), "new, empty, or a checkpoint", received, "choose an empty folder"))


def _close(before: Sequence[float], now: Sequence[float]) -> bool:
    scale = max((abs(value) for value in before if math.isfinite(value)), default=0.0)
    return len(before) == len(now) and all(
        abs(a - b) <= ROUNDING * scale if math.isfinite(a) and math.isfinite(b) else a == b or (a != a and b != b)
        for a, b in zip(before, now)
    )
