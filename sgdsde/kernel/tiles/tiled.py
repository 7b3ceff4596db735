"""A kernel on disk, in tiles: as large as the disk, made once, resumed after a kill, never mistaken for another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from sgdsde._checks import complaint, whole_number
from sgdsde._functional import FunctionalModel
from sgdsde._ranks import Ranks
from sgdsde._types import Progress
from sgdsde.kernel.memory_plan import Outputs
from sgdsde.kernel.operator import KernelOperator
from sgdsde.kernel.tiles.manifest import DTYPES, Manifest, Place
from sgdsde.kernel.tiles.tile_file import (
    check_disk,
    check_tile,
    locked,
    map_tile,
    sync_folder,
    tile_description,
    write_tile,
)
from sgdsde.kernel.tiles.tile_making import TileMaker


class TiledKernel(KernelOperator):
    """J J^T in files of one tile each, read through memory maps; ``create`` makes or resumes it, ``open`` opens it.

    With ``outputs="full"`` it is K, [n1*c, n2*c]. With ``"trace"`` the sum over outputs, [n1, n2]; divided by c the
    kernel K_0 of ``KroneckerKernel``. With ``"per_class"`` K without what couples two different outputs, [n1*c, n2*c]:
    ``output(a)`` is the kernel [n1, n2] of output a. Of a symmetric kernel only the lower half is made and stored.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        self.folder, self.manifest = folder, manifest
        c = 1 if manifest.outputs == "trace" else manifest.n_outputs
        columns = manifest.rows if manifest.columns is None else manifest.columns
        self.shape = (manifest.rows * c, columns * c)
        self.dtype, self.device = DTYPES[manifest.dtype], device
        self.is_symmetric = manifest.columns is None
        self.n_outputs = manifest.n_outputs
        self._c = c

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        model: Any,
        x1: Tensor,
        x2: Tensor | None = None,
        *,
        outputs: Outputs = "full",
        tile: int | None = None,
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        group: distributed.ProcessGroup | None = None,
        progress: Progress = None,
    ) -> TiledKernel:
        """The kernel in the folder ``path``: made there, or what is missing of it.

        Args:
            path: a folder that is new, empty, or that of this kernel, half-made or whole.
            model: an ``nn.Module`` (not mutated) or a pair ``(f, params)``. x1, x2: as in ``empirical_ntk``.
            outputs: "full", "trace" (summed over outputs) or "per_class" (pairs of equal outputs).
            tile: examples of a tile; default files of at most 64 MiB.
            dtype: of the numbers, float64 by default; float32 takes half of the disk.
            memory: bytes for making a tile; default a quarter of what is free. A kernel that is resumed is planned for
                the memory it was begun with.
            group: of ``torch.distributed``, whose ranks share the tiles and the folder; all make the same call.
        Returns:
            The kernel, whole, every tile checked.
        Raises:
            StoredKernelError: a damaged tile; a folder with the kernel of other data, weights, architecture, dtype or
                layout: named, and nothing of it used. OSError: a full disk, before it begins where that is known.
            MemoryError: one example does not fit; names the bytes. RuntimeError: a rank of ``group`` failed, was lost,
            or took longer for a tile than the group's timeout; the tiles that are there are kept.
        Exactness: that of ``empirical_ntk``. A kernel that was killed and resumed is the same to the last bit as one
            made at once, with the same number of threads; by any number of ranks too.
        Cost: that of the tiles; n1 n2 c^2 numbers on disk (half when symmetric; over c per class, over c^2 as a trace).
        """
        folder, ranks = Path(path), Ranks(group)
        words: dict[str, Any] = {"outputs": outputs, "tile": tile, "dtype": dtype, "memory": memory}
        prepare = partial(TileMaker.prepare, folder, model, x1, x2, **words)
        with ExitStack() as stack:
            begun: list[TileMaker] = []

            def begin() -> list[Place]:
                begun.append(prepare())
                return cls._begin(begun[0], folder, stack)

            missing = ranks.first(begin)
            maker = ranks.alone(lambda: begun[0] if begun else prepare())  # the others find what the first has begun
            kernel, places = cls(folder, maker.manifest, maker.functional.device), maker.manifest.places()
            share = -(-len(missing) // ranks.count)
            own = missing[ranks.number * share : (ranks.number + 1) * share]  # of one column as far as can be
            tiles = maker.tiles(own, n_made=len(places) - len(missing), progress=progress)

            def write_next() -> None:
                for place, numbers in islice(tiles, 1):
                    write_tile(kernel._file(place), numbers, kernel._description(place))

            for _ in range(share + 1):  # the last time nothing is left, and the bar is closed
                ranks.gather(write_next)
            sync_folder(folder)
            if group is not None:
                ranks.gather(lambda: kernel._check([place for place in places if not kernel._file(place).is_file()]))
        return kernel

    @classmethod
    def _begin(cls, maker: TileMaker, folder: Path, stack: ExitStack) -> list[Place]:
        """The missing tiles, once the folder is locked and what is in it is checked."""
        kernel, places = cls(folder, maker.manifest, maker.functional.device), maker.manifest.places()
        stack.enter_context(locked(folder))
        missing = [place for place in places if not kernel._file(place).is_file()]
        check_disk(folder, sum(maker.manifest.tile_bytes(place) for place in missing))
        maker.manifest.write_or_keep(folder)
        kernel._check(set(places) - set(missing))
        return missing

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: bool = True, device: torch.device | str = "cpu"
    ) -> TiledKernel:
        """The kernel in a folder, whole.

        Args:
            verify: reads everything and compares checksums; False looks only whether every tile is there.
            device: where products are made, to which tiles are copied one at a time; ``create`` takes the model's.
        Raises:
            FileNotFoundError: no kernel there. StoredKernelError: a missing or damaged tile or manifest, by name.
        """
        kernel = cls(Path(path), Manifest.read(path), torch.device(device))
        places = kernel.manifest.places()
        kernel._check(places if verify else [place for place in places if not kernel._file(place).is_file()])
        return kernel

    def output(self, a: int) -> OutputKernel:
        """The kernel [n1, n2] of output a, of a kernel made with outputs="per_class"."""
        if self.manifest.outputs != "per_class":
            received = repr(self.manifest.outputs)
            raise ValueError(complaint("outputs", "'per_class' for the kernel of one output", received))
        if whole_number("a", a) >= self.n_outputs:
            raise ValueError(complaint("a", f"below the number of outputs {self.n_outputs}", a))
        return OutputKernel(self, int(a))

    def check_made_of(self, functional: FunctionalModel, x: Tensor) -> None:
        self.manifest.check_made_of(functional, x, self.folder)

    def product(self, vectors: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, vectors.dtype)
        vectors = vectors.to(dtype).reshape(-1, self._c, vectors.shape[1])
        result = vectors.new_zeros(self.shape[0] // self._c, self._c, vectors.shape[2])
        for place, rows, columns in self._tiles():
            numbers = self._map(place).to(dtype)
            result[rows] += self._moved(numbers, vectors[columns])
            if self.is_symmetric and place[0] != place[1]:
                result[columns] += self._moved(numbers.mT, vectors[rows])
        return result.reshape(self.shape[0], -1)

    def diag(self) -> Tensor:
        return self.diagonal_blocks(self._c).diagonal(dim1=1, dim2=2).flatten()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        self._check_symmetric("the diagonal")
        if n_outputs != self._c:
            raise ValueError(complaint("n_outputs", f"that of the kernel, {self._c}", n_outputs))
        pieces = []
        for place, rows, _ in self._tiles():
            if place[0] != place[1]:
                continue
            numbers, b = self._map(place), rows.stop - rows.start
            if self.manifest.outputs == "per_class":
                pieces.append(torch.diag_embed(numbers.diagonal(dim1=-2, dim2=-1).mT))
            else:
                own = numbers.view(b, n_outputs, b, n_outputs).diagonal(dim1=0, dim2=2)
                pieces.append(own.permute(2, 0, 1).clone())
        return torch.cat(pieces)

    def to_dense(self, *, memory: int | None = None) -> Tensor:
        self._check_dense(memory)
        c = self._c
        dense = torch.zeros(self.shape[0] // c, c, self.shape[1] // c, c, dtype=self.dtype, device=self.device)
        for place, rows, columns in self._tiles():
            numbers = self._map(place)
            for block, window in ((numbers, (rows, columns)), (numbers.mT, (columns, rows))):
                if block is not numbers and (not self.is_symmetric or place[0] == place[1]):
                    continue
                if self.manifest.outputs == "per_class":
                    for a in range(c):
                        dense[window[0], a, window[1], a] = block[a]
                else:
                    shape = (window[0].stop - window[0].start, c, window[1].stop - window[1].start, c)
                    dense[window[0], :, window[1], :] = block.reshape(shape)
        return dense.view(self.shape)

    def _moved(self, numbers: Tensor, vectors: Tensor) -> Tensor:
        """A tile times vectors [b2, c, k]: [b1, c, k]."""
        k = vectors.shape[2]
        if self.manifest.outputs == "per_class":
            return (numbers @ vectors.transpose(0, 1)).transpose(0, 1)
        return (numbers @ vectors.reshape(-1, k)).view(-1, self._c, k)

    def _tiles(self) -> Iterator[tuple[Place, slice, slice]]:
        """Every stored tile with its examples."""
        for place in self.manifest.places():
            yield place, *self.manifest.examples(place)

    def _map(self, place: Place) -> Tensor:
        return map_tile(self._file(place), self.manifest.tile_shape(place), self.dtype).to(self.device)

    def _file(self, place: Place) -> Path:
        return self.folder / f"tile_{place[0]:05d}_{place[1]:05d}.bin"

    def _description(self, place: Place) -> dict[str, Any]:
        return tile_description(self.manifest.digest, place, self.manifest.tile_shape(place), self.dtype)

    def _check(self, places: Iterable[Place]) -> None:
        for place in sorted(places):
            check_tile(self._file(place), self._description(place))


class OutputKernel(KernelOperator):
    """One output's kernel [n1, n2] in a kernel on disk that holds one for each output."""

    def __init__(self, kernels: TiledKernel, a: int) -> None:
        self._kernels, self._a = kernels, a
        self.shape = (kernels.shape[0] // kernels.n_outputs, kernels.shape[1] // kernels.n_outputs)
        self.dtype, self.device, self.is_symmetric = kernels.dtype, kernels.device, kernels.is_symmetric

    def check_made_of(self, functional: FunctionalModel, x: Tensor) -> None:
        self._kernels.check_made_of(functional, x)

    def product(self, vectors: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, vectors.dtype)
        vectors = vectors.to(dtype)
        result = vectors.new_zeros(self.shape[0], vectors.shape[1])
        for place, rows, columns in self._kernels._tiles():
            numbers = self._kernels._map(place)[self._a].to(dtype)
            result[rows] += numbers @ vectors[columns]
            if self.is_symmetric and place[0] != place[1]:
                result[columns] += numbers.mT @ vectors[rows]
        return result

    def diag(self) -> Tensor:
        return self._kernels.diag().view(-1, self._kernels.n_outputs)[:, self._a].clone()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        if n_outputs != 1:
            raise ValueError(complaint("n_outputs", "1, this kernel's", n_outputs))
        return self.diag().view(-1, 1, 1)
