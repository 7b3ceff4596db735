"""The interface of an integrator of sample paths, and the source of its normal numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sgdsde._streams import BLOCK, torch_stream
from sgdsde.dynamics.dynamics import with_remedies
from sgdsde.dynamics.paths.ito_term import Displacement
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan

Outputs = tuple[Tensor, Tensor | None]
"""Train outputs [P, n, c] and test outputs [P, m, c] or None."""


class Draws(Protocol):
    """Standard normal numbers of a group of paths, [P, *shape], new ones at every call."""

    def normal(self, purpose: str, *shape: int) -> Tensor: ...


class BlockDraws:
    """Keyed by (seed, purpose, block of 64 paths): path 7 of 8 is path 7 of 800, however paths are grouped."""

    def __init__(self, seed: int, paths: range, like: Tensor) -> None:
        assert paths.start % BLOCK == 0
        self._seed, self._paths, self._like = seed, paths, like
        self._streams: dict[str, list[torch.Generator]] = {}

    def normal(self, purpose: str, *shape: int) -> Tensor:
        device, dtype = self._like.device, self._like.dtype
        if purpose not in self._streams:
            blocks = range(self._paths.start // BLOCK, -(-self._paths.stop // BLOCK))
            self._streams[purpose] = [torch_stream(self._seed, purpose, b, device) for b in blocks]
        streams = self._streams[purpose]
        parts = [torch.randn(BLOCK, *shape, generator=stream, dtype=dtype, device=device) for stream in streams]
        return torch.cat(parts)[: len(self._paths)]


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


class PathGroup(ABC):
    """Paths that are stepped together; holds their state."""

    @abstractmethod
    def advance(self, start: int, stop: int) -> None:
        """From the time of SGD step ``start`` to that of ``stop``."""

    @abstractmethod
    def outputs(self, step: int) -> Outputs:
        """Outputs of all paths now; ``step`` is the one that was reached."""


class Integrator(ABC):
    """A method that draws sample paths of the SDE of the outputs; frozen, without state."""

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
