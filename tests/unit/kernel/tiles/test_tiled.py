"""A kernel on disk is whole or named: damage, a full disk, another model, another writer."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.kernel import StoredKernelError, TiledKernel
from sgdsde.kernel.tiles import tile_file
from sgdsde.kernel.tiles.tile_file import HEADER_BYTES


def network(activation: type[nn.Module] = nn.Tanh, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def inputs(n: int = 7, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}


@pytest.fixture
def folder(tmp_path) -> Path:
    TiledKernel.create(tmp_path / "kernel", network(), inputs(), tile=3)
    return tmp_path / "kernel"


@pytest.fixture
def again(folder):
    return lambda **words: TiledKernel.create(folder, network(), inputs(), **{"tile": 3} | words)


def test_only_the_lower_half_of_a_symmetric_kernel_is_made(folder):
    names = [name for name in contents(folder) if name.startswith("tile")]
    assert len(names) == 6  # of 3 x 3
    rectangular = TiledKernel.create(folder.parent / "other", network(), inputs(), inputs(seed=2), tile=3)
    assert len(list(rectangular.folder.glob("tile*"))) == 9


@pytest.mark.parametrize("outputs", ["full", "trace", "per_class"])
def test_a_kernel_made_in_pieces_has_the_same_bits(tmp_path, outputs):
    whole = TiledKernel.create(tmp_path / "whole", network(), inputs(), tile=2, outputs=outputs, memory=10**6)
    pieces = TiledKernel.create(tmp_path / "pieces", network(), inputs(), tile=2, outputs=outputs, memory=10**6)
    for name in list(contents(pieces.folder))[1::2]:
        if name.startswith("tile"):
            (pieces.folder / name).unlink()
    with pytest.raises(StoredKernelError, match=r"tile .*tile_\d+_\d+.bin must be there, got no such file; call"):
        TiledKernel.open(pieces.folder)
    TiledKernel.create(tmp_path / "pieces", network(), inputs(), outputs=outputs)  # tile and memory as begun
    assert contents(pieces.folder) == contents(whole.folder)
    torch.testing.assert_close(TiledKernel.open(pieces.folder).to_dense(), whole.to_dense(), rtol=0, atol=0)


def test_resuming_does_not_make_what_is_there(folder, again, monkeypatch):
    (folder / "tile_00002_00001.bin").unlink()
    made = []
    monkeypatch.setattr("sgdsde.kernel.tiles.tiled.write_tile", lambda path, *rest: made.append(path.name))
    again()
    assert made == ["tile_00002_00001.bin"]


def test_progress_counts_all_tiles(folder, again):
    (folder / "tile_00002_00001.bin").unlink()
    seen = []

    def progress(items):
        for item in items:
            seen.append(item)
            yield item

    again(progress=progress)
    assert seen == list(range(6))


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "one bit":
        content[HEADER_BYTES + 5] ^= 1
    elif kind == "cut":
        content = content[:-8]
    elif kind == "longer":
        content += b"01234567"
    elif kind == "no header":
        content[:HEADER_BYTES] = b"\0" * HEADER_BYTES
    elif kind == "empty":
        content = bytearray()
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["one bit", "cut", "longer", "no header", "empty"])
def test_a_damaged_tile_is_named_and_never_used(folder, again, kind):
    path = folder / "tile_00001_00000.bin"
    good = contents(folder)
    damage(path, kind)
    for attempt in (lambda: TiledKernel.open(folder), again):
        with pytest.raises(
            StoredKernelError, match=r"tile_00001_00000.bin must be .* delete it and call TiledKernel.create"
        ):
            attempt()
    path.unlink()
    again()
    assert contents(folder) == good


def test_a_tile_of_another_place_or_kernel_is_named(folder, again, tmp_path):
    path = folder / "tile_00001_00000.bin"
    good = path.read_bytes()
    path.write_bytes((folder / "tile_00002_00001.bin").read_bytes())
    with pytest.raises(StoredKernelError, match="must be a tile of this kernel and place, got another place"):
        again()
    other = TiledKernel.create(tmp_path / "other", network(seed=5), inputs(), tile=3)
    path.write_bytes((other.folder / path.name).read_bytes())
    with pytest.raises(StoredKernelError, match="must be a tile of this kernel and place, got another kernel"):
        TiledKernel.open(folder)
    path.write_bytes(good)
    TiledKernel.open(folder)


def test_a_tile_cut_after_it_was_verified_is_named_when_it_is_read(folder):
    kernel = TiledKernel.open(folder)
    damage(folder / "tile_00001_00000.bin", "empty")
    with pytest.raises(StoredKernelError, match=r"tile_00001_00000.bin must be there and whole"):
        kernel @ torch.ones(14, dtype=torch.float64)


CHANGES = {
    "the parameters": {"model": network(seed=9)},
    "the architecture": {"model": network(nn.ReLU)},
    "the inputs x1": {"x1": inputs(seed=4)},
    "rows": {"x1": inputs(8)},
    "columns": {"x2": inputs()},
    "outputs": {"outputs": "trace"},
    "dtype": {"dtype": torch.float32},
    "tile": {"tile": 2},
    "memory": {"memory": 123_456},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_under_a_half_made_kernel_is_named(folder, what):
    (folder / "tile_00002_00001.bin").unlink()
    before = contents(folder)
    words = {"model": network(), "x1": inputs(), "tile": 3} | CHANGES[what]
    with pytest.raises(StoredKernelError, match=f"{what} of the kernel in .* pass what it was begun with, or make the"):
        TiledKernel.create(folder, words.pop("model"), words.pop("x1"), **words)
    assert contents(folder) == before


def test_another_function_of_the_same_parameters_is_named(tmp_path):
    parameters = {"w": torch.ones(4, 2, dtype=torch.float64)}
    TiledKernel.create(tmp_path / "k", (lambda p, x: torch.tanh(x @ p["w"]), parameters), inputs())
    with pytest.raises(StoredKernelError, match="must be the same, got another function with the same parameters"):
        TiledKernel.create(tmp_path / "k", (lambda p, x: torch.sin(x @ p["w"]), parameters), inputs())
    TiledKernel.create(tmp_path / "k", (lambda p, x: torch.tanh(x @ p["w"]), parameters), inputs())


def test_a_full_disk_is_named_and_what_was_made_is_kept(tmp_path, monkeypatch):
    def filling(path, *rest, written=[]):  # noqa: B006
        written.append(path)
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest)

    real = tile_file.replacing
    with monkeypatch.context() as patch:
        patch.setattr(tile_file, "replacing", filling)
        with pytest.raises(
            OSError, match=r"must be on a disk with .* bytes for its next tile, got .* free; free some"
        ) as e:
            TiledKernel.create(tmp_path / "k", network(), inputs(), tile=3)
    assert e.value.errno == errno.ENOSPC
    assert len(list((tmp_path / "k").glob("tile*"))) == 3
    assert not list((tmp_path / "k").glob(".*tmp*"))
    whole = TiledKernel.create(tmp_path / "k", network(), inputs(), tile=3)
    torch.testing.assert_close(whole.to_dense(), sgdsde.empirical_ntk(network(), inputs()))


def test_a_disk_that_is_too_small_is_refused_before_it_is_filled(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(tile_file.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match="must be on a disk with 25,664 bytes free, got 1,000; free some, choose another"
    ) as e:
        TiledKernel.create(tmp_path / "k", network(), inputs(), tile=3)
    assert e.value.errno == errno.ENOSPC
    assert contents(tmp_path / "k") == {}


def test_one_writer_at_a_time(folder, again):
    with (
        tile_file.locked(folder),
        pytest.raises(BlockingIOError, match="must be written by one process, got another one"),
    ):
        again()
    again()


def test_leftovers_of_a_killed_writer_are_removed(folder, again):
    (folder / ".tile_00001_00000.1234abcd.tmp.bin").write_bytes(b"half")
    again()
    assert not list(folder.glob(".*tmp*"))


def test_foreign_folders_and_manifests_are_refused(folder, again, tmp_path):
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())
    for change, message in [
        ({"format_version": 99}, "of format version 1, got 'sgdsde tiled kernel' of version 99"),
        ({"tile": 2}, "must be what its digest says, got a changed manifest"),
        ({"kind": "other"}, "must be 'sgdsde tiled kernel' of format version 1, got 'other'"),
    ]:
        manifest.write_text(json.dumps(good | change))
        for attempt in (again, lambda: TiledKernel.open(folder)):
            with pytest.raises(StoredKernelError, match=re.escape(message)):
                attempt()
    manifest.write_text(json.dumps(good)[:-40])
    with pytest.raises(StoredKernelError, match=r"manifest.json must be a complete manifest, got JSONDecodeError"):
        again()
    manifest.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"must be the folder of a tiled kernel, got no manifest.json; make one"
    ):
        TiledKernel.open(folder)
    with pytest.raises(
        FileExistsError, match=r"must be new, empty, or the folder of a tiled kernel, got a folder that"
    ):
        again()
    with pytest.raises(FileNotFoundError, match=r"the folder of .* must exist"):
        TiledKernel.create(tmp_path / "no" / "k", network(), inputs())
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="must be a folder, got a file"):
        TiledKernel.create(tmp_path / "file", network(), inputs())


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
    x = inputs()
    x[3, 1] = torch.nan
    for words, kind, message in [
        ({"outputs": "sum"}, ValueError, "outputs must be one of 'full', 'trace', 'per_class', got 'sum'"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float64 or torch.float32, got torch.float16"),
        ({"tile": 0}, ValueError, "tile must be at least 1, got 0"),
        ({"memory": 10}, MemoryError, "memory must be at least"),
        ({"x1": x}, ValueError, "x1 must be finite everywhere"),
        ({"x1": inputs().float()}, TypeError, "x1 must be of the model's dtype torch.float64, got torch.float32"),
        ({"x2": inputs()[:, :3]}, ValueError, "x2 must be examples of shape [4] like x1, got [3]"),
    ]:
        with pytest.raises(kind, match=re.escape(message)):
            TiledKernel.create(tmp_path / "k", network(), **{"x1": inputs()} | words)
    assert not (tmp_path / "k").exists()


def test_kernels_of_one_output_are_asked_of_per_class_kernels(folder, tmp_path):
    with pytest.raises(ValueError, match="outputs must be 'per_class' for the kernel of one output, got 'full'"):
        TiledKernel.open(folder).output(0)
    kernel = TiledKernel.create(tmp_path / "k", network(), inputs(), outputs="per_class")
    with pytest.raises(ValueError, match="a must be below the number of outputs 2, got 2"):
        kernel.output(2)
