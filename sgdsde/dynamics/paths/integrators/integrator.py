"""The interface of an integrator of sample paths, and the source of its normal numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor

from sgdsde._streams import BLOCK, torch_stream
from sgdsde.dynamics.dynamics import NoiseSource, with_remedies
from sgdsde.dynamics.paths.ito_term import Displacement
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan

NUMBERS_AT_ONCE = 2**18
"""Normal numbers of a group of paths that are drawn at once where a step needs fewer: 1 MiB."""

Made = TypeVar("Made")

Outputs = tuple[Tensor, Tensor | None]
"""Train outputs [P, n, c] and test outputs [P, m, c] or None."""


class Draws(Protocol):
    """Standard normal numbers of a group of paths, [P, *shape], new ones at every call."""

    def normal(self, purpose: str, *shape: int) -> Tensor: ...


class BlockDraws:
    """Keyed by (seed, purpose, block of 64 paths, call): path 7 of 8 is path 7 of 800, however paths are grouped.

    Numbers are drawn in float32, the largest 5.8, and widened: the same draws for a state of any precision. What a call
    returns belongs to the caller, who may write to it, until the next call for that purpose.
    """

    def __init__(self, seed: int, paths: range, like: Tensor) -> None:
        assert paths.start % BLOCK == 0
        self._seed, self._paths, self._like = seed, paths, like
        self._sources: dict[str, _Source] = {}

    def normal(self, purpose: str, *shape: int) -> Tensor:
        if purpose not in self._sources:
            blocks = range(self._paths.start // BLOCK, -(-self._paths.stop // BLOCK))
            streams = [torch_stream(self._seed, purpose, block, self._like.device) for block in blocks]
            self._sources[purpose] = _Source(streams, shape, self._like)
        return self._sources[purpose].next()[: len(self._paths)]


class _Source:
    """Normal numbers for one purpose, of several calls at once where those of one are few.

    Torch fills on a CPU number by number, so that the draws of two calls are those of one twice as long. On other
    devices they are not: how many calls are drawn at once must not depend on the number of paths there.
    """

    def __init__(self, streams: list[torch.Generator], shape: tuple[int, ...], like: Tensor) -> None:
        device, together = like.device, len(streams) if like.device.type == "cpu" else 1
        self._streams, self._used = streams, 0
        self._calls = max(NUMBERS_AT_ONCE // (together * BLOCK * math.prod(shape)), 1)
        self._ready = torch.empty(self._calls, len(streams) * BLOCK, *shape, dtype=like.dtype, device=device)
        self._drawn = None
        if self._calls > 1 or like.dtype != torch.float32:
            self._drawn = torch.empty(self._calls, BLOCK, *shape, dtype=torch.float32, device=device)

    def next(self) -> Tensor:
        """Of the next call, [blocks * 64, *shape]."""
        if self._used == 0:
            for block, stream in enumerate(self._streams):
                own = self._ready[:, block * BLOCK : (block + 1) * BLOCK]
                if self._drawn is None:
                    own.normal_(generator=stream)
                else:
                    own.copy_(self._drawn.normal_(generator=stream))
        number, self._used = self._used, (self._used + 1) % self._calls
        return self._ready[number]


@dataclass(frozen=True, eq=False)
class PathSetup:
    """The setting that all groups of paths share.

    Attributes:
        displacement: what the Ito term adds to all outputs; None without one.
    """

    linearization: Linearization
    sgd: SGD
    plan: StepPlan
    seed: int
    displacement: Displacement | None = None
    _shared: dict[str, object] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """What all groups of an integrator share, made when the first of them asks for it."""
        if name not in self._shared:
            self._shared[name] = make()
        return cast("Made", self._shared[name])


class PathGroup(ABC):
    """Paths that are stepped together; holds their state."""

    @abstractmethod
    def advance(self, start: int, stop: int) -> None:
        """From the time of SGD step ``start`` to that of ``stop``."""

    @abstractmethod
    def outputs(self, step: int) -> Outputs:
        """Outputs of all paths now; ``step`` is the one that was reached."""


class Integrator(ABC):
    """A method that draws sample paths of the SDE of the outputs; frozen, without state.

    Attributes:
        noise_source: what the noise is evaluated at, of a method that follows the kernel's eigenpairs; else None.
        any_precision: whether the state has the precision of the linearization.
    """

    noise_source: ClassVar[NoiseSource | None] = None
    any_precision: ClassVar[bool] = True

    @abstractmethod
    def check(self, setup: PathSetup) -> None:
        """Raises ``ValueError`` for what the method cannot represent, naming one that can."""

    @abstractmethod
    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        """The paths with these numbers, at step 0."""

    def refuse(self, reason: str, alternative: str, setup: PathSetup) -> ValueError:
        """The error for what this method cannot represent."""
        alternative = with_remedies(alternative, setup.linearization, setup.sgd)
        return ValueError(f"{type(self).__name__} cannot represent {reason}; use {alternative}")
