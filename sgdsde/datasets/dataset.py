"""Data sets, and their preparation from raw images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word

Target: TypeAlias = Literal["sign", "onehot", "class"]
"""+1 for classes 0 to 4 and -1 for 5 to 9, [n, 1]; 0 and 1, [n, 10]; the class as int64, [n]."""

Center: TypeAlias = Literal["pixel", "global", "none"]
"""Offset that is subtracted: the training mean of each pixel, the training mean of all pixels, nothing."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and test examples, ready for ``Problem(model, **dataset.tensors(), loss=...)``.

    Attributes:
        name: where the examples come from.
        x_train, x_test: inputs, [n, ...] and [m, ...].
        y_train, y_test: float regression targets [n, c], or int64 classes [n].
        labels_train, labels_test: the classes as int64 whatever the targets are; None where there are no classes.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    labels_train: Tensor | None = None
    labels_test: Tensor | None = None

    @property
    def n_train(self) -> int:
        """Training examples."""
        return len(self.x_train)

    @property
    def n_test(self) -> int:
        """Test examples."""
        return len(self.x_test)

    @property
    def in_features(self) -> int:
        """Entries of one input, as ``networks.MLP`` counts them."""
        return self.x_train[0].numel()

    @property
    def out_features(self) -> int:
        """Outputs that a model needs: columns of the targets, or ten for classes."""
        return self.y_train.shape[1] if self.y_train.ndim > 1 else 10

    def tensors(self) -> dict[str, Tensor]:
        """x_train, y_train, x_test and y_test by these names, the arguments of ``Problem``."""
        return {"x_train": self.x_train, "y_train": self.y_train, "x_test": self.x_test, "y_test": self.y_test}

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> Dataset:
        """The same examples in another floating-point dtype or on another device; classes stay int64."""
        if dtype is not None:
            check_dtype(dtype)

        def moved(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Dataset(
            self.name,
            **{name: moved(value) for name, value in self.tensors().items()},
            labels_train=None if self.labels_train is None else moved(self.labels_train),
            labels_test=None if self.labels_test is None else moved(self.labels_test),
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(value.shape)}" for name, value in self.tensors().items())
        return f"Dataset({self.name!r}, {shapes}, {self.x_train.dtype})"


@dataclass(frozen=True)
class Preparation:
    """The words that every set of labelled images takes, checked; see ``images.digits`` for what they mean."""

    n_train: int
    n_test: int
    target: Target
    center: Center
    flatten: bool
    image_size: int | None
    dtype: torch.dtype
    seed: int

    def __post_init__(self) -> None:
        for name, minimum in (("n_train", 1), ("n_test", 1), ("seed", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum))
        word("target", self.target, ("sign", "onehot", "class"))
        word("center", self.center, ("pixel", "global", "none"))
        check_dtype(self.dtype)

    def apply(self, name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Dataset:
        """The data set of the given images [n, channels, size, size] with their labels [n]."""
        x_train, x_test = (average_pool(images, self.image_size) for images, _ in (train, test))
        x_train, x_test = standardize(x_train, x_test, self.center)
        tensors = [torch.as_tensor(np.ascontiguousarray(x)).to(self.dtype) for x in (x_train, x_test)]
        if self.flatten:
            tensors = [x.flatten(1) for x in tensors]
        labels = [torch.as_tensor(np.array(labels, dtype=np.int64)) for _, labels in (train, test)]
        targets = [encode(each, self.target, self.dtype) for each in labels]
        return Dataset(name, tensors[0], targets[0], tensors[1], targets[1], labels[0], labels[1])


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """A real floating-point dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(complaint("dtype", "a real floating-point torch.dtype", dtype, "use torch.float32"))
    return dtype


def average_pool(images: np.ndarray, image_size: int | None) -> np.ndarray:
    """Images in float64, each square patch averaged so that [n, channels, image_size, image_size] remain."""
    images = images.astype(np.float64)
    if image_size is None:
        return images
    n, channels, size, _ = images.shape
    image_size = whole_number("image_size", image_size, 1)
    if size % image_size:
        divisors = ", ".join(str(d) for d in range(1, size + 1) if size % d == 0)
        raise ValueError(complaint("image_size", f"a divisor of {size}", image_size, f"use one of {divisors}"))
    patch = size // image_size
    return images.reshape(n, channels, image_size, patch, image_size, patch).mean((3, 5))


def standardize(x_train: np.ndarray, x_test: np.ndarray, center: Center) -> tuple[np.ndarray, np.ndarray]:
    """Both sets, shifted and scaled by the training set alone.

        x -> (x - mean) / sqrt(mean over training examples and pixels of (x - mean)^2)

    so that the mean squared feature of the training set is 1; a pixel's own variance is kept, not set to 1.
    """
    if center == "pixel":
        mean = x_train.mean(0)
    else:
        mean = x_train.mean() if center == "global" else np.float64(0.0)
    centered, test_centered = x_train - mean, x_test - mean
    scale = float(np.sqrt(np.vdot(centered, centered) / centered.size))
    if scale <= 1e-12 * np.abs(x_train).max():
        received = f"{len(x_train)} examples that all vanish after centering with center={center!r}"
        raise ValueError(complaint("the training inputs", "different from each other", received, "increase n_train"))
    centered /= scale
    test_centered /= scale
    return centered, test_centered


def encode(labels: Tensor, target: Target, dtype: torch.dtype) -> Tensor:
    """Classes as targets."""
    if target == "class":
        return labels
    if target == "onehot":
        return torch.nn.functional.one_hot(labels, 10).to(dtype)
    return (1 - 2 * (labels >= 5).to(dtype))[:, None]
