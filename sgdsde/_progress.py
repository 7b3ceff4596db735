"""Progress bars on request; the library itself is silent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from sgdsde._types import Progress


class Ticker(Protocol):
    def update(self, n: int) -> Any: ...
    def close(self) -> Any: ...


class _Silent:
    def update(self, n: int) -> None: ...
    def close(self) -> None: ...


class _Wrapped:
    """A caller's wrapper of an iterable, advanced by one item for each update."""

    def __init__(self, items: Iterable[int]) -> None:
        self._items = iter(items)

    def update(self, n: int) -> None:
        for _ in range(n):
            next(self._items, None)

    def close(self) -> None:
        for _ in self._items:
            pass


def ticker(progress: Progress, total: int, what: str) -> Ticker:
    """A counter of ``total`` units of work: tqdm for True, the caller's wrapper for a callable, silence for None."""
    if progress is None or progress is False:
        return _Silent()
    if callable(progress):
        return _Wrapped(progress(range(total)))
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, unit="step", dynamic_ncols=True)
