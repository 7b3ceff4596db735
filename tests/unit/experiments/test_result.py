"""A result file comes back as it was, or is refused."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import result

MANIFEST = {"experiment": "fig01_a", "scale": "smoke", "sources": {"library": "x"}}


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 2)),
        "bad": np.array([np.nan, np.inf]),
        "w": np.array("é"),
    }
    result.save(tmp_path / "r.npz", arrays, MANIFEST)
    back = result.load(tmp_path / "r.npz")
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert back.manifest["scale"] == "smoke"
    with np.load(tmp_path / "r.npz") as plain:
        np.testing.assert_array_equal(plain["x"], arrays["x"])
    with pytest.raises(KeyError, match="must hold an array 'y', got bad, empty, w, x"):
        back["y"]


def test_no_changed_or_missing_byte_alters_an_array_unnoticed(tmp_path: Path) -> None:
    """A changed byte is refused, or belongs to the zip's bookkeeping (a date, a stream's end) and changes nothing."""
    path = tmp_path / "r.npz"
    result.save(path, {"x": np.arange(3.0)}, MANIFEST)
    original = result.load(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = {place for member in archive.infolist() for place in _content_of(member, content)}
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
        try:
            back = result.load(path)
            np.testing.assert_array_equal(back["x"], np.arange(3.0))
            assert back.manifest == original.manifest
            assert position not in inside
        except result.DamagedResultError:
            pass
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(result.DamagedResultError, match="delete it and run make again"):
            result.load(path)


def _content_of(member: zipfile.ZipInfo, content: bytes) -> range:
    """Where the compressed bytes of a member lie: after 30 bytes, its name and its extra field, up to the end mark."""
    name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    return range(start, start + member.compress_size - 2)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x": np.arange(3.0) + 1}, "array 'x' whose hash differs from the manifest's"),
        ({"x": np.arange(3)}, "array 'x' whose hash differs from the manifest's"),
        ({"x": np.arange(3.0), "y": np.ones(1)}, r"members \['manifest.json', 'x.npy', 'y.npy'\] instead of \['x'\]"),
        ({}, r"members \['manifest.json'\] instead of \['x'\]"),
    ],
)
def test_arrays_exchanged_in_a_sound_file_are_refused(
    tmp_path: Path, members: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "r.npz"
    result.save(path, {"x": np.arange(3.0)}, MANIFEST)
    with zipfile.ZipFile(path) as archive:
        header = archive.read("manifest.json")
    np.savez(path, **members)  # type: ignore[arg-type]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("manifest.json", header)
    with pytest.raises(result.DamagedResultError, match=message):
        result.load(path)


def test_a_failed_save_keeps_the_old_result(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    result.save(path, {"x": np.arange(3.0)}, MANIFEST)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        result.save(path, {"x": np.arange(4.0), "y": np.array([object()])}, MANIFEST)
    assert len(result.load(path)["x"]) == 3
    assert list(tmp_path.iterdir()) == [path]
