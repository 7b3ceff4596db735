"""Work split over the processes of a ``torch.distributed`` group: dealt out, gathered, and loud where one is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor, distributed

from sgdsde._checks import complaint

J = TypeVar("J")
T = TypeVar("T")


class Ranks:
    """The processes that work is split over; this one alone without a group.

    Every process must make the same calls. What one of them cannot do is an error of all: an exception is sent to the
    others; a process that was killed is noticed when its connection closes, one that hangs after the group's timeout.

    Args:
        group: of ``torch.distributed``, initialized by the caller with the backend and the timeout that suit it.
    """

    def __init__(self, group: distributed.ProcessGroup | None) -> None:
        if group is not None and not (distributed.is_available() and isinstance(group, distributed.ProcessGroup)):
            remedy = "call torch.distributed.init_process_group(...) and pass torch.distributed.group.WORLD"
            raise TypeError(complaint("group", "a ProcessGroup of this process, or None", repr(group), remedy))
        self._group = group
        self.number = 0 if group is None else distributed.get_rank(group)
        self.count = 1 if group is None else distributed.get_world_size(group)

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What every rank makes, in their order.

        Raises:
            RuntimeError: a rank failed (its own error is raised on that rank), was lost, or made none in time.
        """
        if self._group is None:
            return [make()]
        value: Any = None
        failure: Exception | None = None
        try:
            value = make()
        except Exception as error:
            failure = error
        found: list[Any] = [None] * self.count
        said = None if failure is None else f"{type(failure).__name__}: {failure}"
        try:
            distributed.all_gather_object(found, (value, said), group=self._group)
        except RuntimeError as error:
            if failure is not None:
                raise failure from error
            remedy = "a rank was lost, or took longer than the timeout of the group; start all of them again"
            raise RuntimeError(complaint("group", f"{self.count} ranks alive", str(error), remedy)) from error
        if failure is not None:
            raise failure
        for number, (_, words) in enumerate(found):
            if words is not None:
                raise RuntimeError(f"rank {number} of {self.count} failed with {words}")
        return [each for each, _ in found]

    def first(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on all ranks."""
        found: list[Any] = self.gather(lambda: make() if self.number == 0 else None)
        return found[0]

    def alone(self, make: Callable[[], T]) -> T:
        """What this rank makes for itself; an error of one is an error of all."""
        made: list[T] = []

        def keep() -> None:
            made.append(make())

        self.gather(keep)
        return made[0]

    def agree(self, what: str, asked: object) -> None:
        """Raise ValueError unless all ranks ask for the same, compared as text."""
        all_asked = self.gather(lambda: str(asked))
        for number, other in enumerate(all_asked):
            if other != all_asked[0]:
                remedy = "call with the same arguments on every rank"
                raise ValueError(
                    complaint(what, f"that of rank 0, {all_asked[0]}", f"{other} on rank {number}", remedy)
                )

    def own(self, jobs: Sequence[J]) -> Sequence[J]:
        """Those of this rank, dealt out in turn."""
        return jobs[self.number :: self.count]

    def dealt(self, parts: Sequence[Sequence[T]]) -> list[T]:
        """Results for jobs in their order, of those of each rank for its own."""
        total = sum(len(part) for part in parts)
        return [parts[place % self.count][place // self.count] for place in range(total)]

    def portable(self, tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
        """Tensors as they can be sent to the other ranks, which have devices of their own."""
        return tensors if self._group is None else tuple(None if each is None else each.cpu() for each in tensors)

    def rounds(self, jobs: Sequence[J], work: Callable[[J], T]) -> Iterator[list[tuple[J, T]]]:
        """Jobs and their results, one a rank and round, so that no rank waits for longer than one job takes."""
        for start in range(0, len(jobs), self.count):
            dealt = jobs[start : start + self.count]

            def own(dealt: Sequence[J] = dealt) -> T | None:
                return work(dealt[self.number]) if self.number < len(dealt) else None

            found: list[Any] = self.gather(own)
            yield list(zip(dealt, found))
