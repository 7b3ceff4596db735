"""One tile of a kernel in one file: a header of fixed size, then the numbers.

The header names the kernel that the tile belongs to (a digest of its manifest), its place, and a checksum of the
numbers, so that a tile that was cut, changed, moved or copied from elsewhere is distinguished from a good one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._files import replacing

try:
    import fcntl
except ImportError:  # not on Windows, where two writers are the caller's to avoid
    fcntl = None  # type: ignore[assignment]

HEADER_BYTES = 4096
"""One page, so that the numbers behind it are aligned when the file is mapped into memory."""

NUMPY_TYPES: dict[torch.dtype, np.dtype[Any]] = {torch.float32: np.dtype("<f4"), torch.float64: np.dtype("<f8")}


LOCK = "lock"


class StoredKernelError(ValueError):
    """A kernel on disk that is not what it should be; the message names the file and what to do."""


def write_tile(path: Path, numbers: Tensor, described: dict[str, Any]) -> None:
    """The tile with its description and checksum, written whole or not at all.

    Raises:
        OSError: the disk is full, ENOSPC with the bytes needed and free; whatever else the system refuses, as it is.
    """
    array = np.ascontiguousarray(numbers.cpu().numpy(), dtype=NUMPY_TYPES[numbers.dtype])
    header = described | {"shape": list(array.shape), "dtype": array.dtype.str, "checksum": _checksum(array)}
    page = json.dumps(header, sort_keys=True).encode().ljust(HEADER_BYTES)
    assert len(page) == HEADER_BYTES
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(page)
            file.write(array.data.cast("B"))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        received = f"{free:,} free"
        remedy = "free some and call create again with the same arguments: the tiles that are there are kept"
        expected = f"on a disk with {array.nbytes + HEADER_BYTES:,} bytes for its next tile"
        raise OSError(errno.ENOSPC, complaint(str(path), expected, received, remedy)) from error


def check_tile(path: Path, described: dict[str, Any]) -> None:
    """Read the whole tile and compare it with its description and its checksum.

    Raises:
        StoredKernelError: missing, cut, changed, or the tile of another kernel or place.
    """
    again = "delete it and call TiledKernel.create with the same arguments, which makes it anew"
    if not path.is_file():
        remedy = "call TiledKernel.create with the same arguments, which makes what is missing"
        raise StoredKernelError(complaint(f"tile {path}", "there", "no such file", remedy))
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(HEADER_BYTES))
            expected = described | {"checksum": header["checksum"]}
            different = sorted(key for key in expected if header.get(key) != expected[key])
            if different:
                received = f"another {different[0]}: {header.get(different[0])}"
                raise StoredKernelError(complaint(f"tile {path}", "a tile of this kernel and place", received, again))
            hasher = _hasher(described)
            size = 0
            while chunk := file.read(1 << 22):
                hasher.update(chunk)
                size += len(chunk)
    except (
        OSError,
        KeyError,
        TypeError,
        UnicodeDecodeError,
        AttributeError,
        RecursionError,
        json.JSONDecodeError,
    ) as error:
        received = f"{type(error).__name__}: {error}"
        raise StoredKernelError(complaint(f"tile {path}", "a readable tile", received, again)) from error
    needed = int(np.prod(described["shape"])) * np.dtype(described["dtype"]).itemsize
    if size != needed:
        raise StoredKernelError(complaint(f"tile {path}", f"of {needed:,} bytes", f"{size:,}", again))
    if hasher.hexdigest() != header["checksum"]:
        raise StoredKernelError(complaint(f"tile {path}", "what its checksum says", "other numbers", again))


def map_tile(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The numbers, mapped into memory and not read; changes to them never reach the file."""
    try:
        array = np.memmap(path, dtype=NUMPY_TYPES[dtype], mode="c", offset=HEADER_BYTES, shape=shape)
    except (OSError, ValueError) as error:
        remedy = "call TiledKernel.create with the same arguments, which names what is damaged"
        received = f"{type(error).__name__}: {error}"
        raise StoredKernelError(complaint(f"tile {path}", "there and whole", received, remedy)) from error
    return torch.from_numpy(array)


def tile_description(kernel: str, place: tuple[int, int], shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """Header of the tile at this place, but for the checksum."""
    return {"kernel": kernel, "place": list(place), "shape": list(shape), "dtype": NUMPY_TYPES[dtype].str}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer of the folder at a time; what writers that were killed left half-written is deleted.

    Raises:
        BlockingIOError: another process is writing.
    """
    with (folder / LOCK).open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                remedy = "wait for it, or choose another folder"
                raise BlockingIOError(
                    complaint(str(folder), "written by one process", "another one", remedy)
                ) from error
        for leftover in folder.glob(".*.tmp*"):
            leftover.unlink(missing_ok=True)
        yield


def check_disk(folder: Path, needed: int) -> None:
    """Refuse to begin a kernel that the disk cannot hold.

    Raises:
        OSError: fewer bytes are free than the missing tiles take.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        remedy = 'free some, choose another folder, dtype=torch.float32, or outputs="trace"'
        raise OSError(
            errno.ENOSPC, complaint(str(folder), f"on a disk with {needed:,} bytes free", f"{free:,}", remedy)
        )


def sync_folder(folder: Path) -> None:
    """Make renames in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum(array: np.ndarray) -> str:
    hasher = _hasher({"shape": list(array.shape), "dtype": array.dtype.str})
    hasher.update(array.data.cast("B"))
    return hasher.hexdigest()


def _hasher(described: dict[str, Any]) -> Any:
    return hashlib.blake2b(f"{described['shape']} {described['dtype']}".encode(), digest_size=16)
