"""Images and labels from the standard files of MNIST (IDX) and CIFAR-10 (binary), each checked before it is used."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from sgdsde._checks import complaint

MNIST_SIZE = 28
CIFAR_SHAPE = (3, 32, 32)
CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR_RECORDS = 10_000
"""Records in every one of the six binary files of CIFAR-10."""
N_CLASSES = 10


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, or else its gzipped form, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def read_content(path: Path) -> bytes:
    """The content of a file, decompressed if its name ends in .gz.

    Raises:
        ValueError: a .gz file that is no gzip data or that is cut or damaged; gzip data under another name.
    """
    content = path.read_bytes()
    gzipped = content[:2] == b"\x1f\x8b"
    if path.suffix != ".gz":
        if gzipped:
            raise ValueError(complaint(str(path), "plain data", "gzip data", f"rename it to {path.name}.gz"))
        return content
    if not gzipped:
        received = f"first bytes {content[:2].hex(' ')}" if content else "an empty file"
        remedy = f"download it again, or rename it to {path.stem} if it is not compressed"
        raise ValueError(complaint(str(path), "gzip data, which begins with 1f 8b", received, remedy))
    try:
        return gzip.decompress(content)
    except EOFError:
        received = f"{len(content)} bytes that end before the data do"
        raise ValueError(complaint(str(path), "complete gzip data", received, "download it again")) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(complaint(str(path), "undamaged gzip data", f"'{error}'", "download it again")) from None


def read_idx(path: Path, *, n_dimensions: int) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, of the shape that its header states.

    Header: two zero bytes, 08 for unsigned bytes, the number of dimensions, then each length as a big-endian uint32.

    Raises:
        ValueError: another magic number, or a length other than the header's shape asks for.
    """
    content = read_content(path)
    magic = bytes([0, 0, 8, n_dimensions])
    if content[:4] != magic:
        received = f"{content[:4].hex(' ')}" if content else "an empty file"
        expected = f"an IDX file of unsigned bytes in {n_dimensions} dimensions, magic number {magic.hex(' ')}"
        raise ValueError(complaint(str(path), expected, received, "put the standard MNIST file there"))
    start = 4 + 4 * n_dimensions
    if len(content) < start:
        received = f"{len(content)} bytes"
        raise ValueError(complaint(str(path), f"at least its header of {start} bytes", received, "download it again"))
    shape = struct.unpack(f">{n_dimensions}I", content[4:start])
    expected_bytes = start + int(np.prod(shape, dtype=object))
    if len(content) != expected_bytes:
        expected = f"{expected_bytes} bytes for its header's shape {list(shape)}"
        raise ValueError(complaint(str(path), expected, f"{len(content)} bytes", "download it again"))
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def check_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    """The labels as int64, each from 0 to 9."""
    if labels.size and labels.max() >= N_CLASSES:
        first = int(np.argmax(labels >= N_CLASSES))
        expected = f"a file of labels from 0 to {N_CLASSES - 1}"
        raise ValueError(complaint(str(path), expected, f"label {labels[first]} at example {first}"))
    return labels.astype(np.int64)


def read_mnist_part(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 1, 28, 28] and labels int64 [n] of one half of MNIST.

    Raises:
        ValueError: a damaged or foreign file, images of another size, or different numbers of images and labels.
    """
    pixels = read_idx(images, n_dimensions=3)
    classes = check_labels(labels, read_idx(labels, n_dimensions=1))
    if pixels.shape[1:] != (MNIST_SIZE, MNIST_SIZE):
        received = f"images of {pixels.shape[1]} x {pixels.shape[2]}"
        raise ValueError(complaint(str(images), f"images of {MNIST_SIZE} x {MNIST_SIZE} pixels", received))
    if len(pixels) != len(classes):
        remedy = "take both files from one copy of MNIST"
        expected = f"as many labels as {images.name} has images, {len(pixels)}"
        raise ValueError(complaint(str(labels), expected, f"{len(classes)} labels", remedy))
    return pixels[:, None], classes


def read_cifar_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [10000, 3, 32, 32] and labels int64 [10000] of one binary file of CIFAR-10.

    A record is one label byte, then the red, green and blue planes row by row.

    Raises:
        ValueError: a damaged or foreign file.
    """
    content = read_content(path)
    expected_bytes = CIFAR_RECORDS * CIFAR_RECORD
    if len(content) != expected_bytes:
        expected = f"{expected_bytes} bytes, {CIFAR_RECORDS} records of {CIFAR_RECORD}"
        remedy = "download the binary version of CIFAR-10 again"
        raise ValueError(complaint(str(path), expected, f"{len(content)} bytes", remedy))
    records = np.frombuffer(content, dtype=np.uint8).reshape(CIFAR_RECORDS, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, *CIFAR_SHAPE), check_labels(path, records[:, 0])
