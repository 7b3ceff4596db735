"""A file that says something else than a trajectory or a kernel is refused, at once and in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde.kernel import StoredKernelError, TiledKernel
from sgdsde.kernel.tiles.manifest import MANIFEST, Manifest

RNG = torch.Generator().manual_seed(0)
X, Y = (torch.randn(6, k, generator=RNG, dtype=torch.float64) for k in (3, 2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("results") / "t.npz"
    problem = sgdsde.Problem(nn.Linear(3, 2).double(), X, Y, loss=nn.MSELoss(), x_test=X[:2], y_test=Y[:2])
    sgdsde.run_ensemble(problem, sgdsde.SGD(0.1, 2), 4, 3, observe=("loss", "outputs")).save(path)
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def header(saved: dict[str, np.ndarray], **changes: object) -> dict[str, np.ndarray]:
    words = json.loads(saved["header"].tobytes()) | changes
    return saved | {"header": np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)}


CHANGED: dict[str, tuple[Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], str]] = {
    "single precision": (
        lambda s: s | {"train.loss.mean": s["train.loss.mean"].astype(np.float32)},
        "train.loss.mean in torch.float32 in place of torch.float64",
    ),
    "steps in numbers": (lambda s: s | {"steps": s["steps"].astype(float)}, "steps in torch.float64 in place of"),
    "a step less": (lambda s: s | {"train.loss.mean": s["train.loss.mean"][1:]}, "train.loss.mean of shape"),
    "a run less": (lambda s: s | {"train.loss.samples": s["train.loss.samples"][1:]}, "train.loss.samples of shape"),
    "flat outputs": (
        lambda s: s | {"test.outputs.mean": s["test.outputs.mean"].reshape(len(s["steps"]), -1)},
        "test.outputs.mean of shape",
    ),
    "runs": (lambda s: header(s, n_runs=-3), "n_runs=-3"),
    "true runs": (lambda s: header(s, n_runs=True), "n_runs=True"),
    "dynamics": (lambda s: header(s, dynamics=7), "dynamics=7"),
    "limit": (lambda s: header(s, mean_square_limit="large"), "mean_square_limit='large'"),
    "another word": (lambda s: header(s, more=1), "TypeError"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_result_of_other_contents_is_refused(name: str, saved: dict[str, np.ndarray], tmp_path: Path) -> None:
    change, message = CHANGED[name]
    path = tmp_path / "t.npz"
    np.savez(path, **saved)
    assert sgdsde.Trajectory.load(path).n_runs == 3
    np.savez(path, **change(saved))
    with pytest.raises(ValueError, match=r"must be a complete file written by Trajectory.save") as caught:
        sgdsde.Trajectory.load(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("member", ["header", "train.loss.mean"])
def test_what_would_fill_the_memory_is_refused_before_it_is_unpacked(
    member: str, saved: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgdsde._memory.free_bytes", lambda device: 2**26)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in saved.items():
            array = np.zeros(2**25, dtype=np.uint8) if name == member else array
            with io.BytesIO() as file:
                np.save(file, array)
                archive.writestr(f"{name}.npy", file.getvalue())
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"(a header|arrays) of 33,5.* bytes"):
        sgdsde.Trajectory.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("path", [None, 3, True, [], 1.5])
def test_what_is_no_path_is_refused(path: object) -> None:
    with pytest.raises(TypeError, match="path must be a path"):
        sgdsde.Trajectory.load(path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": -1}, "got tile=-1"),
        ({"tile": 0}, "got tile=0"),
        ({"tile": 2.0}, "got tile=2.0"),
        ({"rows": 0}, "got rows=0"),
        ({"columns": -6}, "got columns=-6"),
        ({"n_outputs": True}, "got n_outputs=True"),
        ({"outputs": "some"}, "got outputs='some'"),
        ({"sources": []}, "sources or a fingerprint"),
        ({"fingerprint": ["a"]}, "sources or a fingerprint"),
    ],
)
def test_a_manifest_whose_digest_was_rewritten_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    TiledKernel.create(tmp_path / "k", nn.Linear(3, 2).double(), X)
    changed = dataclasses.replace(Manifest.read(tmp_path / "k"), **change)  # type: ignore[arg-type]
    changed.write(tmp_path / "k")
    with pytest.raises(StoredKernelError, match=r"delete .* and make the kernel again") as caught:
        TiledKernel.open(tmp_path / "k")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 50, "[]", "null", '{"kind": ' * 50_000, " " * 2**21, "\x00"])
def test_a_manifest_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "k"
    TiledKernel.create(folder, nn.Linear(3, 2).double(), X)
    (folder / MANIFEST).write_text(text)
    for ask in (TiledKernel.open, lambda f: TiledKernel.create(f, nn.Linear(3, 2).double(), X)):
        with pytest.raises(StoredKernelError, match="manifest"):
            ask(folder)


@pytest.mark.parametrize("start", ["[" * 4000, "[]", '"a"', "7"])
def test_a_tile_with_another_header_is_refused(start: str, tmp_path: Path) -> None:
    kernel = TiledKernel.create(tmp_path / "k", nn.Linear(3, 2).double(), X)
    (tile,) = (path for path in kernel.folder.iterdir() if path.name not in (MANIFEST, "lock"))
    content = tile.read_bytes()
    tile.write_bytes(start.encode().ljust(4096) + content[4096:])
    with pytest.raises(StoredKernelError, match="must be a readable tile"):
        TiledKernel.open(tmp_path / "k")
