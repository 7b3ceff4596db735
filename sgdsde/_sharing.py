"""Parameters that share memory: one parameter under several names, or a refusal.

``torch.optim.SGD`` writes the update of every name into the memory that they share, so such names move together. A
deep copy gives each of them memory of its own (pytorch/pytorch#79788); ``ties`` finds out how they belong together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._types import Params


@dataclass(frozen=True)
class Tie:
    """A tensor that is another one read in another order: same memory, each number once.

    Attributes:
        source: name of the other. layout: sizes and strides of the other. own: sizes and strides of this one.
    """

    source: str
    layout: tuple[tuple[int, ...], tuple[int, ...]]
    own: tuple[tuple[int, ...], tuple[int, ...]]

    def of(self, value: Tensor) -> Tensor:
        """This tensor where the other one has the value ``value``, whatever its strides are now."""
        if self.own == self.layout:
            return value
        (sizes, strides), (own_sizes, own_strides) = self.layout, self.own
        if len(sizes) == len(own_sizes) == 2 and strides == own_strides[::-1] and sizes == own_sizes[::-1]:
            return value.mT
        order, own_order = _by_memory(strides), _by_memory(own_strides)
        in_memory = value.permute(order).reshape([own_sizes[axis] for axis in own_order])
        return in_memory.permute([own_order.index(axis) for axis in range(len(own_order))])


def ties(trained: Params, others: Params) -> dict[str, Tie]:
    """The names among ``trained`` that are no parameters of their own, and the one that each of them follows.

    Args:
        trained: tensors that SGD moves, by name. others: tensors that it does not.
    Raises:
        ValueError: memory that two names share in part, that a trained and an untrained tensor share, or that one
            tensor uses twice; names them.
    """
    found: dict[str, Tie] = {}
    for name, value in trained.items():
        if value.numel() > 1 and not _is_dense(value) and len(_elements(value).unique()) < value.numel():
            received = f"sizes {list(value.shape)} and strides {list(value.stride())}, whose entries share memory"
            remedy = "make it with .clone(), and expand it in forward"
            raise ValueError(complaint(f"parameter {name!r}", "one number of memory an entry", received, remedy))
    for group in _by_storage(trained):
        for first, second in itertools.combinations(group, 2):
            if second in found or first in found or not overlap(trained[first], trained[second]):
                continue
            if not _same_memory(trained[first], trained[second]):
                received = f"{first!r} and {second!r}, which share part of their memory"
                remedy = "make one of them a parameter and slice it in forward"
                raise ValueError(complaint("parameters", "all or nothing in common", received, remedy))
            found[second] = Tie(first, _layout(trained[first]), _layout(trained[second]))
    _check_untrained(trained, others)
    return found


def overlap(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have memory in common."""
    if first.numel() == 0 or second.numel() == 0 or not _has_storage(first) or not _has_storage(second):
        return False
    if first.device != second.device or _storage(first) != _storage(second):
        return False
    (start, stop), (other_start, other_stop) = _span(first), _span(second)
    if stop <= other_start or other_stop <= start:
        return False
    if _is_dense(first) and _is_dense(second):
        return True
    return bool(torch.isin(_elements(first), _elements(second)).any())


def _check_untrained(trained: Params, others: Params) -> None:
    storages = {_storage(value): name for name, value in trained.items() if _has_storage(value)}
    for other, value in others.items():
        if not _has_storage(value) or _storage(value) not in storages:
            continue
        for name in trained:
            if overlap(trained[name], value):
                received = f"{name!r} and {other!r}, of which SGD moves the first only by its own gradient"
                remedy = f"make {other!r} a copy (.clone()), or use {name!r} itself in both places"
                raise ValueError(complaint("trained and untrained tensors", "in memory of their own", received, remedy))


def _by_storage(named: Params) -> Iterable[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, value in named.items():
        if value.numel() and _has_storage(value):
            groups.setdefault(_storage(value), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _has_storage(value: Tensor) -> bool:
    return value.layout == torch.strided and value.device.type != "meta" and _storage(value) != 0


def _storage(value: Tensor) -> int:
    """Address of the memory, 0 of a tensor without memory of its own."""
    try:
        return value.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _span(value: Tensor) -> tuple[int, int]:
    """The bytes from the first to the last entry."""
    start = int(value.storage_offset()) * value.itemsize
    last = int(sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())))
    return start, start + (last + 1) * value.itemsize


def _elements(value: Tensor) -> Tensor:
    """Places in the storage of all entries, in bytes."""
    last = int(sum((size - 1) * stride for size, stride in zip(value.shape, value.stride())))
    places = torch.arange(last + 1).as_strided(value.shape, value.stride())
    return (places.flatten() + int(value.storage_offset())) * value.itemsize


def _is_dense(value: Tensor) -> bool:
    """Whether the entries fill a stretch of memory, each number once."""
    start, stop = _span(value)
    if stop - start != value.numel() * value.itemsize:
        return False
    expected = 1
    for axis in reversed(_by_memory(value.stride())):
        if value.shape[axis] != 1 and value.stride(axis) != expected:
            return False
        expected *= value.shape[axis]
    return True


def _same_memory(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and _span(first) == _span(second) and _is_dense(first) and _is_dense(second)


def _layout(value: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(value.shape), value.stride()


def _by_memory(strides: tuple[int, ...]) -> list[int]:
    """Axes from the slowest to the fastest; equal strides (axes of length 1) in their order."""
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])
