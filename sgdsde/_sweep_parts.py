"""Sweeps setting by setting: each made for itself, so that it can be kept, or made by another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import Tensor

from sgdsde._checkpoint import Checkpoint
from sgdsde._jobs import finished
from sgdsde._progress import Ticker, ticker
from sgdsde._streams import BLOCK
from sgdsde._sweep_cells import Cells, Found, LimitFraction
from sgdsde._types import Progress
from sgdsde.ensemble.blocks import BlockRun, blocks_of_runs, marks_of, merged, name_of
from sgdsde.ensemble.training import Ensemble
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, in_words
from sgdsde.trajectory import Trajectory

K = TypeVar("K")


def begin(
    checkpoint: Checkpoint,
    cells: Cells,
    groups: Sequence[SGD],
    *,
    rates: Sequence[float | LimitFraction],
    limits: Sequence[float],
    seed: int,
) -> list[float]:
    """Begin a checkpoint or compare it with this sweep. Returns the limits that it was begun with."""
    problem = cells.linearization.problem
    words = {"trained": type(cells.trained).__name__, "problem": problem.digest, "learning rates": str(list(rates))}
    words |= {"n_steps": str(cells.n_steps), "record": str(cells.steps.tolist()), "dynamics": repr(cells.dynamics)}
    words |= {"seed": str(seed), "dtype and device": f"{problem.dtype}, {problem.device.type}"}
    for number, group in enumerate(groups):
        words[f"settings {number}"] = in_words(group, group.plan(problem.n_train, cells.n_steps))
    numbers = {"limits": list(limits)} | marks_of(cells.trained)
    if cells.linearization.basis is not None:
        values = cells.linearization.basis.values
        numbers["leading eigenvalues"] = [len(values), float(values.sum())]
    return checkpoint.begin(words, numbers)["limits"]


@dataclass(frozen=True, eq=False)
class BySetting:
    """The settings of a sweep one by one, in the processes of joblib, finished ones kept.

    Attributes:
        settings: with their limits. memory: bytes that the runs of a block are planned for.
    """

    cells: Cells
    settings: Sequence[tuple[SGD, float]]
    checkpoint: Checkpoint | None
    n_jobs: int
    memory: int

    def found(self, n_runs: int, seed: int, progress: Progress) -> list[Found]:
        """What is found of every setting; no runs for ``n_runs=0``."""
        blocks = -(-n_runs // BLOCK)
        ticks = ticker(progress, len(self.settings) * (1 + blocks), "sweep")
        runs = self.runs(n_runs, seed, ticks) if n_runs else {}
        predicted = self.predictions(ticks)
        ticks.close()
        return [(predicted.get(i), runs.get(i)) for i in range(len(self.settings))]

    def predictions(self, ticks: Ticker) -> dict[int, Trajectory]:
        """Those of the settings that are not past their limit, by place."""
        cells, settings = self.cells, self.settings
        stable = {
            i: f"setting-{i:04}-predicted" for i, (sgd, limit) in enumerate(settings) if not cells.is_past(sgd, limit)
        }

        def make(missing: Sequence[int]) -> Iterator[tuple[int, Trajectory]]:
            shared = cells.predicted_together(settings)  # of all, so that their basis is the same after a kill
            yield from ((i, shared[i]) for i in missing if i in shared)
            alone = [i for i in missing if i not in shared]
            for place, found in finished(
                Predicting(replace(cells, trained=cells.linearization), settings), alone, self.n_jobs
            ):
                yield alone[place], found

        ticks.update(len(settings) - len(stable))
        return self._completed(stable, make, ticks)

    def runs(self, n_runs: int, seed: int, ticks: Ticker) -> dict[int, Trajectory]:
        """The measured runs of all settings, by place."""
        blocks, places = blocks_of_runs(n_runs), range(len(self.settings))
        names = {(i, runs): name_of((i, runs)) for i in places for runs in blocks}
        sgds = [sgd for sgd, _ in self.settings]
        cells = self.cells
        words: dict[str, Any] = {"seed": seed, "memory": self.memory, "n_steps": self.cells.n_steps}
        Ensemble.of(cells.trained, sgds, cells.steps, **words)  # refuses what no worker should

        def make(missing: Sequence[BlockRun]) -> Iterator[tuple[BlockRun, Trajectory]]:
            work = Measuring(cells.trained, sgds, cells.steps, cells.n_steps, seed, self.memory)
            for place, found in finished(work, missing, self.n_jobs):
                yield missing[place], found

        found = self._completed(names, make, ticks)
        return {i: merged([found[i, runs] for runs in blocks]) for i in places}

    def _completed(
        self, names: Mapping[K, str], make: Callable[[Sequence[K]], Iterator[tuple[K, Trajectory]]], ticks: Ticker
    ) -> dict[K, Trajectory]:
        """The parts of these names: those that are kept, and those that are made now, and kept."""
        found: dict[K, Trajectory] = {}
        for key, name in names.items():
            kept = None if self.checkpoint is None else self.checkpoint.load(name)
            if kept is not None:
                found[key] = kept
        ticks.update(len(found))
        missing = [key for key in names if key not in found]
        for key, part in make(missing) if missing else ():
            if self.checkpoint is not None:
                self.checkpoint.save(names[key], part)
            found[key] = part
            ticks.update(1)
        return found


@dataclass(frozen=True, eq=False)
class Predicting:
    """Work of one job: the prediction of one setting."""

    cells: Cells
    settings: Sequence[tuple[SGD, float]]

    def __call__(self, place: int) -> Trajectory:
        found = self.cells.predicted(*self.settings[place])
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class Measuring:
    """Work of one job: the runs of one block of one setting."""

    trained: Problem | Linearization
    sgds: Sequence[SGD]
    steps: Tensor
    n_steps: int
    seed: int
    memory: int

    def __call__(self, job: BlockRun) -> Trajectory:
        number, runs = job
        words: dict[str, Any] = {"n_steps": self.n_steps, "seed": self.seed, "memory": self.memory}
        return Ensemble.of(self.trained, [self.sgds[number]], self.steps, **words).block((0, runs))
