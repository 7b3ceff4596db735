"""The making of tiles: prepared once, checked against what is there, the same numbers after every kill."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint, finite_entries, whole_number, word
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde._probe import probe
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.kernel.assembly import tile
from sgdsde.kernel.inputs import check_inputs
from sgdsde.kernel.layer_factors import Factors, factors
from sgdsde.kernel.memory_plan import KernelPlan, Outputs
from sgdsde.kernel.tiles.manifest import DTYPES, MANIFEST, Manifest, Place, digests, fingerprint
from sgdsde.kernel.tiles.tile_file import LOCK

TILE_BYTES = 2**26
"""Bytes of a tile where the caller names no size: large beside the cost of opening a file, small beside memory."""


@dataclass(frozen=True, eq=False)
class TileMaker:
    """Maker of the tiles of one kernel."""

    manifest: Manifest
    functional: FunctionalModel
    x1: Tensor
    x2: Tensor | None

    @classmethod
    def prepare(
        cls,
        folder: Path,
        model: Any,
        x1: Tensor,
        x2: Tensor | None,
        *,
        outputs: Outputs,
        tile: int | None,
        dtype: torch.dtype | None,
        memory: int | None,
    ) -> TileMaker:
        """The maker, with everything checked and nothing written but the folder; see ``TiledKernel.create``."""
        word("outputs", outputs, get_args(Outputs))
        functional, c = _checked(model, x1, x2)
        begun = Manifest.read(folder) if (folder / MANIFEST).is_file() else None
        if begun is None:
            _check_new(folder)
        name = "float64" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in DTYPES:
            raise ValueError(complaint("dtype", "torch.float64 or torch.float32", dtype))
        most = len(x1) if x2 is None else max(len(x1), len(x2))
        if memory is None:
            memory = _memory.budget(None, functional.device) if begun is None else begun.memory
        if tile is None:
            entries = {"full": c * c, "trace": 1, "per_class": c}[outputs] * DTYPES[name].itemsize
            tile = max(1, math.isqrt(min(TILE_BYTES, memory // 4) // entries)) if begun is None else begun.tile
        asked = Manifest(
            rows=len(x1),
            columns=None if x2 is None else len(x2),
            n_outputs=c,
            outputs=outputs,
            dtype=name,
            tile=min(whole_number("tile", tile, minimum=1), most),
            memory=whole_number("memory", memory, minimum=1, remedy="give a number of bytes"),
            sources=digests(functional, x1, x2),
            fingerprint=fingerprint(functional, x1),
        )
        if begun is not None:
            begun.check_same(asked, folder)
        maker = cls(begun or asked, functional, x1, x2)
        maker.plan()
        folder.mkdir(exist_ok=True)
        return maker

    def plan(self) -> KernelPlan:
        """Memory plan, the same for every tile; MemoryError where one example does not fit."""
        manifest, functional = self.manifest, self.functional
        rows, columns = self.x1[: manifest.tile], None if self.x2 is None else self.x2[: manifest.tile]
        return KernelPlan.make(
            functional,
            functional.params,
            rows,
            columns,
            manifest.n_outputs,
            memory=manifest.memory,
            dtype=DTYPES[manifest.dtype],
            outputs=manifest.outputs,
        )

    def tiles(self, places: list[Place], *, n_made: int, progress: Progress) -> Iterator[tuple[Place, Tensor]]:
        """The tiles at these places, one after the other."""
        plan, columns = self.plan(), self.x1 if self.x2 is None else self.x2
        right = _Held(self.functional, columns, plan)
        ticks = ticker(progress, n_made + len(places), "tiles")
        ticks.update(n_made)
        for place in places:
            numbers = torch.empty(self.manifest.tile_shape(place), dtype=plan.dtype)
            rows, window = self.manifest.examples(place)
            for j in range(window.start, window.stop, plan.rows):
                second = right.at(j, min(j + plan.rows, window.stop))
                for i in range(rows.start, rows.stop, plan.rows):
                    stop = min(i + plan.rows, rows.stop)
                    same = self.x2 is None and i == j
                    first = second if same else factors(self.functional, self.x1[i:stop], plan=plan)
                    self._fill(numbers, tile(first, second, plan=plan), i - rows.start, j - window.start)
                    del first
            finite_entries("kernel", numbers)
            if self.x2 is None and place[0] == place[1]:
                numbers = (numbers + numbers.mT) / 2
            yield place, numbers
            ticks.update(1)
        ticks.close()

    def _fill(self, numbers: Tensor, block: Tensor, i: int, j: int) -> None:
        c = self.manifest.n_outputs if self.manifest.outputs == "full" else 1
        height, width = block.shape[-2:]
        numbers[..., i * c : i * c + height, j * c : j * c + width] = block


class _Held:
    """The factors of the columns, which tiles of one column share; one block at a time."""

    def __init__(self, functional: FunctionalModel, x: Tensor, plan: KernelPlan) -> None:
        self._functional, self._x, self._plan = functional, x, plan
        self._place: tuple[int, int] | None = None
        self._factors: Factors | None = None

    def at(self, start: int, stop: int) -> Factors:
        if self._place != (start, stop) or self._factors is None:
            self._factors = None  # before the next is made
            self._factors = factors(self._functional, self._x[start:stop], plan=self._plan)
            self._place = (start, stop)
        return self._factors


def _checked(model: Any, x1: Tensor, x2: Tensor | None) -> tuple[FunctionalModel, int]:
    functional = model if isinstance(model, FunctionalModel) else as_functional(model)
    check_inputs(functional, x1, x2)
    if not functional.n_outputs:
        functional, _ = probe(functional, x1, "x1")
    return functional, functional.n_outputs


def _check_new(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(complaint(str(folder), "a folder", "a file", "choose another path"))
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the folder of {folder} must exist, got none; create {folder.parent} first")
    there = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK) if folder.is_dir() else []
    there = [name for name in there if not name.startswith(".manifest.")]
    if there:
        received = f"a folder that holds {there[0]!r} and no {MANIFEST}"
        remedy = "choose an empty folder; tiles without their manifest cannot be told apart and must be deleted"
        raise FileExistsError(complaint(str(folder), "new, empty, or the folder of a tiled kernel", received, remedy))
