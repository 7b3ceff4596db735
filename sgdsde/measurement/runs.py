"""Real runs of one setting, done batch after batch, and their joint trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sgdsde._streams import numpy_stream
from sgdsde._types import Observable, Progress
from sgdsde.ensemble import run_ensemble
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.trajectory import Trajectory


def batch_seed(seed: int, batch: int) -> int:
    """The seed of a batch of runs; the first batch has the caller's own, so that it is that of ``run_ensemble``."""
    return seed if batch == 0 else int(numpy_stream(seed, "further batches of runs", batch).integers(2**62))


@dataclass
class RealRuns:
    """Runs that grow by batches, each with a seed of its own.

    Attributes:
        record: the steps that are reported. parts: one measured trajectory a batch.
    """

    problem: Problem
    sgd: SGD
    n_steps: int
    record: list[int]
    seed: int = 0
    observe: Sequence[Observable] = ("loss",)
    memory: int | None = None
    progress: Progress = None
    parts: list[Trajectory] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(part.n_runs for part in self.parts)

    def extend(self, more: int) -> None:
        """Do ``more`` further runs."""
        self.parts.append(self._ensemble(self.problem, more, len(self.parts), self.observe))

    def linearized(self, linearization: Linearization, done: int) -> list[Trajectory]:
        """SGD of the linearized model on the batches of every part from number ``done`` on."""
        later = list(enumerate(self.parts))[done:]
        return [self._ensemble(linearization, part.n_runs, number, ("loss",)) for number, part in later]

    def trajectory(self) -> Trajectory:
        """All runs so far."""
        return joined(self.parts)

    def _ensemble(
        self, what: Problem | Linearization, n_runs: int, number: int, observe: Sequence[Observable]
    ) -> Trajectory:
        return run_ensemble(
            what,
            self.sgd,
            self.n_steps,
            n_runs,
            seed=batch_seed(self.seed, number),
            record=self.record,
            observe=observe,
            memory=self.memory,
            progress=self.progress,
        )


def joined(parts: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of the runs of several ensembles of one setting."""
    changes: dict[str, Any] = {"n_runs": sum(part.n_runs for part in parts)}
    for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "train_outputs", "test_outputs"):
        bands = [getattr(part, name) for part in parts]
        if bands[0] is not None:
            changes[name] = type(bands[0]).from_samples(torch.cat([band.samples for band in bands]))
    return replace(parts[0], diverged_at=torch.cat([part.diverged_at for part in parts]), **changes)


def samples(parts: Sequence[Trajectory], side: str) -> Tensor:
    """Losses of the runs of several ensembles, [runs, T]."""
    bands = [part.losses[side].samples for part in parts]
    return torch.cat([band for band in bands if band is not None])
