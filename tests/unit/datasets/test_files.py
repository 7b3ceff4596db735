"""Files of MNIST and CIFAR-10: read as written, and every damaged, foreign or missing one named in a sentence."""

from __future__ import annotations

import gzip
import re
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sgdsde.datasets import cifar10, mnist

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
RAW = {"target": "class", "center": "none", "dtype": torch.float64}


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def bytes_array(*shape: int, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape, dtype=np.uint8)


def write_mnist(root: Path, *, gzipped: bool = True) -> dict[str, np.ndarray]:
    """Forty training and twenty test examples, as the real files are written."""
    arrays = {TRAIN_IMAGES: bytes_array(40, 28, 28), TRAIN_LABELS: bytes_array(40, high=10, seed=1)}
    arrays |= {TEST_IMAGES: bytes_array(20, 28, 28, seed=2), TEST_LABELS: bytes_array(20, high=10, seed=3)}
    (root / "mnist").mkdir()
    for name, array in arrays.items():
        path = root / "mnist" / (f"{name}.gz" if gzipped else name)
        path.write_bytes(gzip.compress(idx(array)) if gzipped else idx(array))
    return arrays


@pytest.fixture(scope="module")
def cifar_content() -> bytes:
    records = np.zeros((10000, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(10000) % 10
    records[:, 1:1025], records[:, 1025:2049], records[:, 2049:] = 10, 20, 40  # red, green, blue
    records[:, 1] = np.arange(10000) % 251  # the top left red pixel numbers the images
    return records.tobytes()


def write_cifar(root: Path, content: bytes, batches: tuple[int, ...] = (1, 3)) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for number in batches:
        (folder / f"data_batch_{number}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(content)
    return folder


@pytest.mark.parametrize("gzipped", [True, False])
def test_mnist_files_are_read_as_written(tmp_path, gzipped):
    arrays = write_mnist(tmp_path, gzipped=gzipped)
    data = mnist(40, 20, root=tmp_path, **RAW)
    scale = 255 / data.x_train.max()
    for part, images, labels in (("train", TRAIN_IMAGES, TRAIN_LABELS), ("test", TEST_IMAGES, TEST_LABELS)):
        written = {image.tobytes(): int(label) for image, label in zip(arrays[images], arrays[labels])}
        x = (getattr(data, f"x_{part}") * scale).round().numpy().astype(np.uint8)
        assert x.shape[1:] == (1, 28, 28)
        assert [written.pop(image.tobytes()) for image in x] == getattr(data, f"y_{part}").tolist()
        assert not written


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    monkeypatch.setenv("SGDSDE_DATA", str(tmp_path))
    assert torch.equal(mnist(10, 5).x_train, mnist(10, 5, root=tmp_path).x_train)


def test_cifar10_planes_are_red_green_blue_and_missing_batches_are_left_out(tmp_path, cifar_content):
    folder = write_cifar(tmp_path, cifar_content)
    (folder / "test_batch.bin").unlink()
    (folder / "test_batch.bin.gz").write_bytes(gzip.compress(cifar_content, 1))
    data = cifar10(20, 10, root=tmp_path, **RAW)
    scale = 40 / data.x_train[0, 2, 0, 0]
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert torch.allclose(x[:, :, 5, 7] * scale, torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64))
        numbers = (x[:, 0, 0, 0] * scale).round().long()
        assert all(any((n + 251 * k) % 10 == label for k in range(40)) for n, label in zip(numbers, y))
    message = f"n_train must be at most 20000, got 20001; {folder}, with 2 of 5 training batches, holds no more"
    with pytest.raises(ValueError, match=re.escape(message)):
        cifar10(20001, 10, root=tmp_path)


def damage(path: Path, change) -> Path:
    """The file with its uncompressed content changed."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    return path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (TRAIN_IMAGES, lambda c: b"\x89PNG" + c[4:], "magic number 00 00 08 03, got 89 50 4e 47"),
        (TRAIN_IMAGES, lambda c: c[:3] + b"\x01" + c[4:], "magic number 00 00 08 03, got 00 00 08 01"),
        (TEST_LABELS, lambda c: b"", "magic number 00 00 08 01, got an empty file"),
        (TRAIN_IMAGES, lambda c: c[:9], "must be at least its header of 16 bytes, got 9 bytes"),
        (TRAIN_IMAGES, lambda c: c[:-5], "must be 31376 bytes for its header's shape [40, 28, 28], got 31371 bytes"),
        (TRAIN_LABELS, lambda c: c + b"\0", "must be 48 bytes for its header's shape [40], got 49 bytes"),
        (TRAIN_LABELS, lambda c: c[:10] + b"\x0b" + c[11:], "labels from 0 to 9, got label 11 at example 2"),
        (TEST_LABELS, lambda c: idx(bytes_array(19, high=10)), "as many labels as t10k-images-idx3-ubyte.gz has"),
        (
            TEST_IMAGES,
            lambda c: idx(bytes_array(20, 32, 32)),
            "must be images of 28 x 28 pixels, got images of 32 x 32",
        ),
        (TRAIN_IMAGES, lambda c: c[:4] + b"\xff" * 12, f"must be {16 + (2**32 - 1) ** 3} bytes for its header"),
    ],
)
def test_damaged_mnist_content_is_named(tmp_path, name, change, message):
    write_mnist(tmp_path)
    path = damage(tmp_path / "mnist" / f"{name}.gz", change)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        mnist(10, 5, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: gzip.decompress(c), "must be gzip data, which begins with 1f 8b, got first bytes 00 00"),
        (lambda c: b"", "must be gzip data, which begins with 1f 8b, got an empty file"),
        (lambda c: c[:200], "must be complete gzip data, got 200 bytes that end before the data do"),
        (lambda c: c[:5], "must be complete gzip data, got 5 bytes"),
        (lambda c: c[:-8] + b"\0" * 8, "must be undamaged gzip data, got 'CRC check failed"),
        (lambda c: c + b"trailing", "must be undamaged gzip data, got 'Not a gzipped file"),
        (lambda c: c[:100] + bytes(100) + c[200:], "gzip data"),
    ],
)
def test_damaged_compression_is_named(tmp_path, change, message):
    write_mnist(tmp_path)
    path = tmp_path / "mnist" / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        mnist(10, 5, root=tmp_path)


def test_gzip_data_under_a_plain_name_is_named(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "mnist" / TRAIN_LABELS
    (tmp_path / "mnist" / f"{TRAIN_LABELS}.gz").rename(path)
    message = f"{path} must be plain data, got gzip data; rename it to {TRAIN_LABELS}.gz"
    with pytest.raises(ValueError, match=re.escape(message)):
        mnist(10, 5, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "must be 30730000 bytes, 10000 records of 3073, got 30729999 bytes"),
        (lambda c: c[: 3073 * 10], "must be 30730000 bytes, 10000 records of 3073, got 30730 bytes"),
        (lambda c: c[:3073] + b"\x0a" + c[3074:], "labels from 0 to 9, got label 10 at example 1"),
    ],
)
def test_damaged_cifar_batches_are_named(tmp_path, cifar_content, change, message):
    folder = write_cifar(tmp_path, change(cifar_content), batches=(2,))
    with pytest.raises(ValueError, match=re.escape(str(folder / "data_batch_2.bin")) + ".*" + re.escape(message)):
        cifar10(10, 5, root=tmp_path)


def test_missing_files_are_named_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # a download would need it
    remedy = "put the standard file there, or point root or the environment variable SGDSDE_DATA elsewhere"
    for load, folder, name in (
        (mnist, "mnist", TRAIN_IMAGES),
        (cifar10, "cifar-10-batches-bin", "data_batch_1.bin"),
    ):
        message = f"{tmp_path / folder} must be a folder with {name} or {name}.gz, got no such folder; {remedy}"
        with pytest.raises(FileNotFoundError, match=re.escape(message)):
            load(root=tmp_path)
    write_mnist(tmp_path)
    (tmp_path / "mnist" / f"{TEST_LABELS}.gz").unlink()
    monkeypatch.setenv("SGDSDE_DATA", str(tmp_path))
    for root in (tmp_path, None):  # some files are there, so the missing one is an error in either case
        with pytest.raises(FileNotFoundError, match=f"a folder with {TEST_LABELS} or .*, got a folder without it"):
            mnist(root=root)


def test_a_missing_cifar_test_file_is_named(tmp_path, cifar_content):
    (write_cifar(tmp_path, cifar_content, batches=(5,)) / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"a folder with test_batch.bin or test_batch.bin.gz, got a folder"):
        cifar10(root=tmp_path)


# ---- OpenML, stubbed


@pytest.mark.parametrize("environment", [None, "", "empty folder"])
@pytest.mark.parametrize(
    ("load", "layout"), [(mnist, f"mnist/ with {TRAIN_IMAGES}"), (cifar10, "cifar-10-batches-bin/")]
)
def test_without_files_and_network_one_error_says_what_to_do(tmp_path, monkeypatch, environment, load, layout):
    def fetch_openml(*arguments, **words):
        raise OSError("no route to host")

    if environment is None:
        monkeypatch.delenv("SGDSDE_DATA", raising=False)
    else:
        monkeypatch.setenv("SGDSDE_DATA", environment and str(tmp_path))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    looked = f"no files in {tmp_path}" if environment else "SGDSDE_DATA is not set"
    message = re.escape(looked) + ".*OSError: no route to host; set the environment variable SGDSDE_DATA to a folder "
    with pytest.raises(FileNotFoundError, match=message + f"that holds {layout}"):
        load()


def test_without_files_and_scikit_learn_the_same_error_comes(monkeypatch):
    monkeypatch.delenv("SGDSDE_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(FileNotFoundError, match="SGDSDE_DATA is not set, and the download failed with ModuleNotFound"):
        mnist()


def test_openml_rows_become_images_and_halves(monkeypatch):
    asked = []

    def fetch_openml(name, **words):
        asked.append((name, words["version"], words["as_frame"]))
        labels = np.array([str(i % 10) for i in range(60030)], dtype=object)
        return SimpleNamespace(data=np.arange(60030)[:, None] % 251 * np.ones(784, dtype=np.int64), target=labels)

    monkeypatch.delenv("SGDSDE_DATA", raising=False)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    data = mnist(12, 30, **RAW)
    assert asked == [("mnist_784", 1, False)]
    assert data.x_test.shape == (30, 1, 28, 28)
    assert sorted(data.y_test.tolist()) == sorted(i % 10 for i in range(60000, 60030))
    with pytest.raises(ValueError, match="n_test must be at most 30, got 31; OpenML holds no more examples"):
        mnist(12, 31)
