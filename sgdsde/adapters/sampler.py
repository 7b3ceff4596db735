"""Sampling scheme of a ``DataLoader``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from sgdsde._checks import complaint
from sgdsde._types import Sampling

SHUFFLED = "use DataLoader(dataset, batch_size, shuffle=True)"
REMEDIES: dict[type, str] = {
    SequentialSampler: f"{SHUFFLED}: a fixed order is no random sampling",
    WeightedRandomSampler: f"{SHUFFLED}: unequal weights minimize another loss",
    SubsetRandomSampler: "use shuffle=True on torch.utils.data.Subset(dataset, indices)",
    DistributedSampler: "use shuffle=True in one process, with the batch size of all processes together",
}


@dataclass(frozen=True)
class LoaderSampling:
    """Sampling options of ``SGD`` that describe a loader.

    Attributes:
        batch_size: a number, or a function of the step where an epoch drawn with replacement ends on a smaller batch.
        steps_per_epoch: batches in one pass over the loader.
    """

    sampling: Sampling
    batch_size: int | Callable[[int], int]
    drop_last: bool
    steps_per_epoch: int


@dataclass(frozen=True)
class _SmallerLast:
    """Batch sizes of epochs of ``n_draws`` examples each, drawn with replacement."""

    batch_size: int
    n_draws: int

    def __call__(self, step: int) -> int:
        steps_per_epoch = -(-self.n_draws // self.batch_size)
        return min(self.batch_size, self.n_draws - step % steps_per_epoch * self.batch_size)


def sampling_of_loader(loader: object) -> LoaderSampling:
    """Sampling scheme and batch sizes of a loader.

    ``RandomSampler`` (``shuffle=True``) is "shuffled", ``RandomSampler(replacement=True)`` "with_replacement"; a batch
    that holds the whole data set is a full batch whatever the order.

    Raises:
        TypeError: no ``DataLoader``. ValueError: a sampler with no counterpart, named; ``batch_size=None``; an iterable
            data set; a loader without batches.
    """
    dataset, batches = checked_loader("loader", loader)
    n_train, size = len(dataset), batches.batch_size
    sampler = batches.sampler
    if len(batches) == 0:
        received = f"batch_size={size}, drop_last={batches.drop_last}, {n_train} examples"
        raise ValueError(complaint("loader", "one that yields batches", received, "use a smaller batch_size"))
    if type(sampler) is SequentialSampler and size >= n_train:
        return LoaderSampling("without_replacement", n_train, False, 1)
    if type(sampler) is not RandomSampler:
        raise _unknown("loader", sampler)
    if not sampler.replacement:
        check_covers("loader", sampler, n_train)
        return LoaderSampling("shuffled", min(size, n_train), bool(batches.drop_last), len(batches))
    n_draws = sampler.num_samples
    even = batches.drop_last or n_draws % size == 0
    batch_size = size if even else _SmallerLast(size, n_draws)
    return LoaderSampling("with_replacement", batch_size, False, len(batches))


def checked_loader(name: str, loader: object) -> tuple[Any, BatchSampler]:
    """The data set and the batch sampler of a loader that batches a data set of known length in torch's own way."""
    if not isinstance(loader, DataLoader):
        raise TypeError(complaint(name, "a torch.utils.data.DataLoader", type(loader).__name__))
    dataset, batches = loader.dataset, loader.batch_sampler
    if isinstance(dataset, IterableDataset):
        received = f"the IterableDataset {type(dataset).__name__}"
        remedy = "collect its examples in a TensorDataset: sampling needs examples that can be drawn again"
        raise ValueError(complaint(f"{name}.dataset", "a data set with a length and an index", received, remedy))
    if batches is None:
        remedy = "pass batch_size=... and let the loader form the batches"
        raise ValueError(complaint(f"{name}.batch_size", "a whole number", "batch_size=None", remedy))
    if type(batches) is not BatchSampler:
        received = f"the custom batch sampler {type(batches).__name__}"
        raise ValueError(complaint(f"{name}.batch_sampler", "torch's own BatchSampler", received, SHUFFLED))
    return dataset, batches


def check_covers(name: str, sampler: object, n: int) -> None:
    """Refuse a sampler whose epoch is not every example once, unless it draws with replacement."""
    if type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and sampler.replacement):
        return
    if type(sampler) is not RandomSampler:
        raise _unknown(name, sampler)
    if sampler.num_samples != n:
        received = f"RandomSampler(num_samples={sampler.num_samples}) on {n} examples"
        remedy = "omit num_samples, or use replacement=True"
        raise ValueError(complaint(f"{name}.sampler", "one that draws every example once an epoch", received, remedy))


def _unknown(name: str, sampler: object) -> ValueError:
    remedy = REMEDIES.get(type(sampler), f"{SHUFFLED} or sampler=RandomSampler(dataset, replacement=True)")
    expected = "a RandomSampler, with or without replacement"
    return ValueError(complaint(f"{name}.sampler", expected, type(sampler).__name__, remedy))
