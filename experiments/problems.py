"""The problems that several figures share: digits or MNIST, a network in the NTK parametrization, squared error."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch

import sgdsde
from experiments.frame import device
from sgdsde.datasets.files import find_file
from sgdsde.datasets.images import MNIST_FILES


def digits_mlp(n_train: int, n_test: int, width: int, *, seed: int = 0, activation: str = "relu") -> sgdsde.Problem:
    """Digits, pixels centered, target +1 for 0 to 4 and -1 for 5 to 9; one hidden layer; ``seed`` draws the weights."""
    data = _digits(n_train, n_test)
    generator = torch.Generator().manual_seed(seed)
    model = sgdsde.networks.MLP(data.in_features, width, 1, activation=activation, generator=generator)
    return _problem(model, data)


def mnist_mlp(n_train: int, n_test: int, width: int, *, image_size: int, seed: int = 0) -> sgdsde.Problem:
    """MNIST under the same targets and the same kind of network."""
    data = sgdsde.datasets.mnist(n_train, n_test, image_size=image_size, flatten=True)
    generator = torch.Generator().manual_seed(seed)
    return _problem(sgdsde.networks.MLP(data.in_features, width, 1, generator=generator), data)


def mnist_cnn(n_train: int, n_test: int, width: int, *, image_size: int, depth: int, seed: int = 0) -> sgdsde.Problem:
    """MNIST under the same targets; ``depth`` convolutions of ``width`` channels and a read-out of every position."""
    data = sgdsde.datasets.mnist(n_train, n_test, image_size=image_size)
    generator = torch.Generator().manual_seed(seed)
    return _problem(sgdsde.networks.CNN(1, image_size, width, 1, depth=depth, generator=generator), data)


def mnist_is_there() -> bool:
    """Whether $SGDSDE_DATA holds all of MNIST's files, so that nothing is downloaded."""
    root = os.environ.get("SGDSDE_DATA")
    return bool(root) and all(find_file(Path(root or "").expanduser() / "mnist", name) for name in MNIST_FILES)


@cache
def _digits(n_train: int, n_test: int) -> sgdsde.datasets.Dataset:
    return sgdsde.datasets.digits(n_train, n_test)


def _problem(model: torch.nn.Module, data: sgdsde.datasets.Dataset) -> sgdsde.Problem:
    where = device()
    return sgdsde.Problem(model.to(where), **data.to(device=where).tensors(), loss=torch.nn.MSELoss())
