"""Recordings of steps on a processor: what a CUDA graph does, without a device.

``Recorded`` keeps the operations of a step with the memory that they read and write, takes back what they did, and does
them again when replayed: nothing of Python runs then, and a number that Python chose while recording stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorded:
    """Stands for the CUDA graphs of one group of runs; counts what is done."""

    warm, least = 3, 5

    def __init__(self, *_: object) -> None:
        self.recorded, self.replayed, self.entered = 0, 0, 0

    @contextmanager
    def apart(self) -> Iterator[None]:
        self.entered += 1
        yield

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        operations = operations_of(step)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            with torch.no_grad():
                for func, args, kwargs, found in operations:
                    write(found, func(*args, **kwargs))

        return replay


Operation = tuple[Any, tuple[Any, ...], dict[str, Any], Any]


def operations_of(step: Callable[[], None]) -> list[Operation]:
    """What the step does, without its effects."""
    with _Tape() as tape:
        step()
    for storage, content in tape.before.values():
        storage.copy_(content)
    return tape.operations


def write(places: Any, values: Any) -> None:
    """Results at the places where they were when the operation was recorded; views need no writing."""
    for place, value in zip(tensors(places), tensors(values)):
        if place.data_ptr() != value.data_ptr():
            place.copy_(value)


def tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for storage in (tensor.untyped_storage() for tensor in tensors((args, kwargs))):
            if storage.data_ptr() not in self.before and storage.data_ptr() not in self._made:
                self.before[storage.data_ptr()] = storage, storage.clone()
        found = func(*args, **kwargs)
        self._made |= {tensor.untyped_storage().data_ptr() for tensor in tensors(found)} - self.before.keys()
        if (
            any(tensor.untyped_storage().data_ptr() in self._made for tensor in tensors(found))
            or func._schema.is_mutable
        ):
            self.operations.append((func, args, kwargs, found))
        return found
