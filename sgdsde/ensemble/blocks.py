"""Ensembles by blocks of runs: each trained for itself, so that it can be kept, or made by another process.

A block holds the 64 runs that share a stream, of one SGD. Its numbers depend on nothing that is decided outside of it:
not on the other blocks, on the number of processes, or on the memory that is free.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, distributed

from sgdsde import _memory
from sgdsde._checkpoint import Checkpoint
from sgdsde._ranks import Ranks
from sgdsde._streams import BLOCK
from sgdsde.bands import AccuracyBand, LossBand, OutputBand
from sgdsde.kernel.tiles.manifest import fingerprint
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem
from sgdsde.trajectory import Trajectory

BlockRun: TypeAlias = tuple[int, range]
"""Number of the SGD, and its runs."""


class BlockStore:
    """The blocks that are finished already, and those that are trained now by this process and the other ranks.

    Args:
        path: the folder that keeps them, or None. group: the processes that share the work, or None for this one alone.
        words: what is trained, and how.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        group: distributed.ProcessGroup | None,
        words: Mapping[str, str],
        device: torch.device,
    ) -> None:
        self._path, self._ranks, self._words, self._device = path, Ranks(group), words, device
        self._checkpoint: Checkpoint | None = None

    def begin(self, memory: int | None, numbers: Mapping[str, Sequence[float]]) -> int:
        """Bytes that every block is planned for, the same on all ranks."""
        self._ranks.agree("the ensemble", dict(self._words))
        return self._ranks.first(lambda: self._begin(memory, numbers))

    def _begin(self, memory: int | None, numbers: Mapping[str, Sequence[float]]) -> int:
        if self._path is None:
            return _memory.budget(memory, self._device)
        self._checkpoint = Checkpoint(self._path, self._device, memory)
        self._checkpoint.begin(self._words, numbers)
        return self._checkpoint.memory

    def finish(
        self, jobs: Sequence[BlockRun], train: Callable[[BlockRun], Trajectory]
    ) -> Iterator[tuple[BlockRun, Trajectory]]:
        """Every block with its trajectory, the kept ones first; rank 0 reads and writes."""
        kept = self._ranks.first(
            lambda: {place: found for place in range(len(jobs)) if (found := self._load(jobs[place]))}
        )
        for place, found in kept.items():
            yield jobs[place], found
        missing = [job for place, job in enumerate(jobs) if place not in kept]
        for dealt in self._ranks.rounds(missing, train):
            if self._path is not None:
                self._ranks.alone(partial(self._save, dealt))
            yield from dealt

    def _save(self, parts: Sequence[tuple[BlockRun, Trajectory]]) -> None:
        if self._checkpoint is not None:
            for job, part in parts:
                self._checkpoint.save(name_of(job), part)

    def _load(self, job: BlockRun) -> Trajectory | None:
        return None if self._checkpoint is None else self._checkpoint.load(name_of(job))


def name_of(job: BlockRun) -> str:
    number, runs = job
    return f"setting-{number:04}-runs-{runs.start:06}-{runs.stop:06}"


def blocks_of_runs(n_runs: int) -> list[range]:
    """The runs of each block of streams, the last one perhaps smaller."""
    return [range(start, min(start + BLOCK, n_runs)) for start in range(0, n_runs, BLOCK)]


def merged(parts: Sequence[Trajectory]) -> Trajectory:
    """One trajectory of the runs of several, in their order."""
    kinds: dict[str, Any] = {"loss": LossBand, "accuracy": AccuracyBand, "outputs": OutputBand}
    first, bands = parts[0], dict[str, Any]()
    for name, kind in kinds.items():
        for side in ("train", "test"):
            samples = [band.samples for part in parts if (band := getattr(part, f"{side}_{name}")) is not None]
            bands[f"{side}_{name}"] = kind.from_samples(torch.cat(samples)) if samples else None
    diverged_at = torch.cat([part.diverged_at for part in parts])
    return replace(first, n_runs=sum(part.n_runs for part in parts), diverged_at=diverged_at, **bands)


def marks_of(trained: Problem | Linearization) -> dict[str, list[float]]:
    """Numbers that tell apart what no digest of weights and data can: functions of equal weights, and kernels."""
    if isinstance(trained, Problem):
        return {"the function of the model": fingerprint(trained.functional, trained.x_train)}
    outputs = trained.outputs.flatten()
    vector = torch.cos(torch.arange(len(outputs), dtype=outputs.dtype, device=outputs.device))[:, None]
    found = {"outputs": [float(outputs @ vector[:, 0])]}
    for name, kernel in (("kernel", trained.kernel), ("cross kernel", trained.cross_kernel)):
        if kernel is not None:
            moved = kernel @ vector if isinstance(kernel, Tensor) else kernel.product(vector)
            found[name] = [float(moved.sum()), float(moved.square().sum().sqrt())]
    return found
