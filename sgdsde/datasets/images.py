"""Labelled images: scikit-learn's digits, MNIST and CIFAR-10."""

from __future__ import annotations

import http.client
import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from sgdsde._checks import complaint
from sgdsde._streams import numpy_stream
from sgdsde.datasets.dataset import Center, Dataset, Preparation, Target
from sgdsde.datasets.files import find_file, read_cifar_batch, read_mnist_part

Examples = tuple[np.ndarray, np.ndarray]
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
CIFAR_TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR_TEST_FILE = "test_batch.bin"


def digits(
    n_train: int = 512,
    n_test: int = 256,
    *,
    target: Target = "sign",
    center: Center = "pixel",
    flatten: bool = True,
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Dataset:
    """Handwritten digits of 8 x 8 pixels, 1797 in all, shipped with scikit-learn: nothing is downloaded.

    The mean that ``center`` names is subtracted and one number divides everything, so that the mean squared feature
    of the chosen training examples is 1; the test examples are shifted and scaled by the same numbers.

    Args:
        n_train, n_test: examples, drawn without replacement by ``seed``. With one seed a smaller training set is the
            first part of a larger one and the test examples do not depend on n_train, up to shift and scale.
        target: ``"sign"`` [n, 1], +1 for digits 0 to 4 and -1 for 5 to 9; ``"onehot"`` [n, 10], zeros and ones;
            ``"class"`` int64 [n].
        center: ``"pixel"``, ``"global"`` or ``"none"``.
        flatten: inputs [n, features] if true, else images [n, channels, size, size].
        image_size: average patches so that the images have this size, which must divide the original one.
        dtype: of inputs and float targets.
        seed: decides the subset; no global generator is touched.
    Raises:
        ValueError: an unknown word, or more examples than there are.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    preparation = Preparation(n_train, n_test, target, center, flatten, image_size, dtype, seed)
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        message = "digits() needs scikit-learn; install it with: pip install 'sgdsde[data]'"
        raise ModuleNotFoundError(message) from error
    data = load_digits()
    images, labels = data.images[:, None], data.target
    if preparation.n_train + preparation.n_test > len(images):
        received = f"n_train={n_train}, n_test={n_test}"
        raise ValueError(complaint("n_train + n_test", f"at most {len(images)}, all the digits", received))
    order = numpy_stream(preparation.seed, "dataset examples", 0).permutation(len(images))
    train, test = order[: preparation.n_train], order[::-1][: preparation.n_test]
    return preparation.apply("digits", (images[train], labels[train]), (images[test], labels[test]))


def mnist(
    n_train: int = 512,
    n_test: int = 256,
    *,
    target: Target = "sign",
    center: Center = "pixel",
    flatten: bool = False,
    image_size: int | None = None,
    root: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Dataset:
    """MNIST, images [n, 1, 28, 28], its training and test halves kept apart.

    Args:
        image_size: 14, 7, 4, 2 or 1 for smaller images.
        root: a folder with ``mnist/train-images-idx3-ubyte`` and its three companions, gzipped or not. None: the
            folder named by the environment variable SGDSDE_DATA, and where that lacks them OpenML, by scikit-learn.
        The other arguments are those of ``digits``.
    Raises:
        FileNotFoundError: a file is missing, or none was found and OpenML could not be reached.
        ValueError: a damaged or foreign file; more examples than there are.
    """
    preparation = Preparation(n_train, n_test, target, center, flatten, image_size, dtype, seed)
    folder = data_folder(root, "mnist")
    paths = [find_file(folder, name) if folder else None for name in MNIST_FILES]
    if root is None and not any(paths):
        layout = "mnist/ with " + ", ".join(MNIST_FILES) + " (each gzipped or not)"
        train, test = from_openml("mnist_784", shape=(1, 28, 28), n_train=60_000, folder=folder, layout=layout)
        place = "OpenML"
    else:
        assert folder is not None
        files = [path or missing(folder, name) for path, name in zip(paths, MNIST_FILES)]
        train, test = read_mnist_part(files[0], files[1]), read_mnist_part(files[2], files[3])
        place = str(folder)
    return choose(preparation, "mnist", train, test, place)


def cifar10(
    n_train: int = 512,
    n_test: int = 256,
    *,
    target: Target = "sign",
    center: Center = "pixel",
    flatten: bool = False,
    image_size: int | None = None,
    root: str | os.PathLike[str] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Dataset:
    """CIFAR-10, images [n, 3, 32, 32], its training and test halves kept apart.

    Args:
        image_size: 16, 8, 4, 2 or 1 for smaller images.
        root: a folder with ``cifar-10-batches-bin/test_batch.bin`` and at least one of ``data_batch_1.bin`` to
            ``data_batch_5.bin`` beside it, gzipped or not. None: as for ``mnist``. Training examples are drawn from the
            batches that are there, so the same seed draws others when there are more.
        The other arguments are those of ``digits``; ``"sign"`` is +1 for classes 0 to 4.
    Raises:
        FileNotFoundError: a file is missing, or none was found and OpenML could not be reached.
        ValueError: a damaged or foreign file; more examples than there are.
    """
    preparation = Preparation(n_train, n_test, target, center, flatten, image_size, dtype, seed)
    folder = data_folder(root, "cifar-10-batches-bin")
    batches = [path for name in CIFAR_TRAIN_FILES if folder and (path := find_file(folder, name))]
    test_file = find_file(folder, CIFAR_TEST_FILE) if folder else None
    if root is None and not batches and test_file is None:
        layout = f"cifar-10-batches-bin/ with data_batch_1.bin to data_batch_5.bin and {CIFAR_TEST_FILE}"
        layout += " (each gzipped or not)"
        train, test = from_openml("CIFAR_10", shape=(3, 32, 32), n_train=50_000, folder=folder, layout=layout)
        place = "OpenML"
    else:
        assert folder is not None
        if not batches:
            missing(folder, CIFAR_TRAIN_FILES[0])
        parts = [read_cifar_batch(path) for path in batches]
        train = (np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts]))
        test = read_cifar_batch(test_file or missing(folder, CIFAR_TEST_FILE))
        place = f"{folder}, with {len(batches)} of 5 training batches,"
    return choose(preparation, "cifar10", train, test, place)


def data_folder(root: str | os.PathLike[str] | None, name: str) -> Path | None:
    """The folder of one data set below ``root`` or $SGDSDE_DATA; None if neither is given."""
    parent = (os.environ.get("SGDSDE_DATA") or None) if root is None else root
    return None if parent is None else Path(parent).expanduser() / name


def missing(folder: Path, name: str) -> Path:
    """Never returns: the file is not there."""
    received = "a folder without it" if folder.is_dir() else "no such folder"
    remedy = "put the standard file there, or point root or the environment variable SGDSDE_DATA elsewhere"
    raise FileNotFoundError(complaint(str(folder), f"a folder with {name} or {name}.gz", received, remedy))


def choose(preparation: Preparation, name: str, train: Examples, test: Examples, place: str) -> Dataset:
    """The data set of the examples that the seed draws from each half."""
    chosen = []
    for argument, (images, labels) in (("n_train", train), ("n_test", test)):
        n = getattr(preparation, argument)
        if n > len(images):
            raise ValueError(complaint(argument, f"at most {len(images)}", n, f"{place} holds no more examples"))
        order = numpy_stream(preparation.seed, f"dataset examples, {argument}", 0).permutation(len(images))[:n]
        chosen.append((images[order], labels[order]))
    return preparation.apply(name, chosen[0], chosen[1])


def from_openml(
    name: str, *, shape: tuple[int, int, int], n_train: int, folder: Path | None, layout: str
) -> tuple[Examples, Examples]:
    """Training and test examples of OpenML's copy, which scikit-learn downloads once and keeps.

    OpenML stores one table; its first ``n_train`` rows are taken as the training half.

    Raises:
        FileNotFoundError: no download. The message has ``folder``, where local files were looked for, and ``layout``.
    """
    try:
        from sklearn.datasets import fetch_openml

        parser = "pandas" if importlib.util.find_spec("pandas") else "liac-arff"
        with warnings.catch_warnings():
            # Each retry without a network warns, once blaming the cache; the error below says it all.
            warnings.filterwarnings("ignore", message="Invalid cache|A network error occurred")
            table = fetch_openml(name, version=1, as_frame=False, parser=parser)
    except (OSError, ValueError, ImportError, http.client.HTTPException) as error:
        looked = "SGDSDE_DATA is not set" if folder is None else f"no files in {folder}"
        received = f"neither: {looked}, and the download failed with {type(error).__name__}: {error}"
        remedy = f"set the environment variable SGDSDE_DATA to a folder that holds {layout}"
        raise FileNotFoundError(complaint(name, "in local files or on OpenML", received, remedy)) from error
    images = np.asarray(table.data, dtype=np.uint8).reshape(-1, *shape)
    labels = np.asarray(table.target).astype(np.int64)
    return (images[:n_train], labels[:n_train]), (images[n_train:], labels[n_train:])
