"""What a dynamics is: the evolution of the law of the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from sgdsde._types import Progress
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD

NoiseSource: TypeAlias = Literal["none", "start", "mean", "state"]
"""What the noise of a dynamics is evaluated at: not at all, the start, the mean, or mean and spread."""


class Dynamics(ABC):
    """Evolves the law of the outputs from the linearization at initialization; never computes a loss."""

    @property
    def noise_source(self) -> NoiseSource | None:
        """Where the noise is taken, of a dynamics that follows the kernel's eigenpairs; None where it does not."""
        return None

    @abstractmethod
    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        """One law for each step of ``record`` (sorted, from 0 on)."""

    def refuse(self, reason: str, alternative: str) -> ValueError:
        """The error for what this dynamics cannot represent."""
        return ValueError(f"{type(self).__name__} cannot represent {reason}; use {alternative}")
