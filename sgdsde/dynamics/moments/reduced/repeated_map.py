"""A map applied any number of times, by doublings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

Map = TypeVar("Map", bound="Doubles")


class Doubles(Protocol):
    """A map of coordinates and a mean that can be written down after itself."""

    def __call__(self, y: Tensor, mean: Tensor, /) -> tuple[Tensor, Tensor]: ...

    def twice(self: Map) -> Map: ...


def after(step: Doubles, y: Tensor, m: Tensor, counts: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """y and m after so many applications each (sorted). Cost: one ``twice`` for every doubling of the last."""
    powers, done = [step], 0
    for count in counts:
        left, power = count - done, 0
        while left:
            if power == len(powers):
                powers.append(powers[-1].twice())
            if left & 1:
                y, m = powers[power](y, m)
            left, power = left >> 1, power + 1
        done = count
        yield y, m
