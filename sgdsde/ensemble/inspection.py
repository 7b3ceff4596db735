"""What a step reads that was there before it, and whether the host waits for the device in it.

A recorded step reads the same memory again whenever it is replayed. What a model keeps beside its parameters (a mask
made for one batch size, say) may be replaced between two replays, and its memory given to others; so whoever replays a
step holds on to all that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
COPIES = (aten.copy_, aten._to_copy)
BY_INDEX = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_)
MASKS = (torch.bool, torch.uint8)


def inspected(step: Callable[[], object]) -> list[object]:
    """Take a step; what it read that others own, to be held as long as the step may be replayed.

    Raises:
        RuntimeError: an operation in it makes the host wait for the device, or moves numbers between them.
    """
    with _Inspection() as inspection:
        step()
    return list(inspection.read.values())


class _Inspection(TorchDispatchMode):
    """Sees every operation on tensors, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[object, object] = {}
        self._made: set[object] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for key, owner in _memory((args, kwargs)):
            if key not in self._made:
                self.read[key] = owner
        found = func(*args, **kwargs)
        if _waits(func, args, found):
            raise RuntimeError(f"the host waits for the device in {func}")
        self._made |= {key for key, _ in _memory(found) if key not in self.read}
        return found


def _tensors(values: object) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _memory(values: object) -> Iterator[tuple[object, object]]:
    """What tensors are stored in, by address; tensors without storage (sparse ones) by themselves."""
    for tensor in _tensors(values):
        if tensor.layout != torch.strided:
            yield id(tensor), tensor
        elif address := tensor.untyped_storage().data_ptr():
            yield address, tensor.untyped_storage()


def _waits(func: Any, args: tuple[Any, ...], found: object) -> bool:
    """Whether the host must know numbers of the device, or numbers go from one to the other."""
    packet = func.overloadpacket
    both = [*_tensors(args), *_tensors(found)]
    if len({each.device for each in both if each.ndim or packet in COPIES}) > 1:
        return True
    if packet in BY_INDEX:  # a mask is turned into places first
        return any(index.dtype in MASKS for index in _tensors(args[1]))
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
