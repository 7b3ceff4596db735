"""Manifest of a kernel on disk: what it was made of, so that it is never reused for something else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._files import replacing
from sgdsde._functional import FunctionalModel, jacobian_row
from sgdsde.kernel.memory_plan import Outputs
from sgdsde.kernel.tiles.tile_file import HEADER_BYTES, StoredKernelError

FORMAT_VERSION = 1
KIND = "sgdsde tiled kernel"
MANIFEST = "manifest.json"
ROUNDING = 1e-4
"""Relative difference of fingerprints that rounding in float32 and another number of threads may make."""

MANIFEST_BYTES = 2**20
"""A manifest is a few hundred bytes."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}

Place: TypeAlias = tuple[int, int]
"""Row and column of a tile in the grid of tiles."""


@dataclass(frozen=True)
class Manifest:
    """Description of a kernel on disk by everything that decides its numbers.

    Attributes:
        rows, columns: examples; columns is None for the symmetric kernel of one set. n_outputs: c.
        outputs: which entries ("full", "trace", "per_class"). dtype: "float32" or "float64".
        tile: examples of a tile. memory: bytes that its making was planned for: other plans round differently.
        sources: digests of the parameters, the constants, the architecture in words, and the inputs.
        fingerprint: of the function at two examples; distinguishes functions of equal weights, which no digest can.
    """

    rows: int
    columns: int | None
    n_outputs: int
    outputs: Outputs
    dtype: str
    tile: int
    memory: int
    sources: dict[str, str]
    fingerprint: list[float]

    @property
    def digest(self) -> str:
        """Hash of all of it, but for the fingerprint's rounding."""
        content = {key: value for key, value in asdict(self).items() if key != "fingerprint"}
        text = json.dumps(content | {"format_version": FORMAT_VERSION}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def fault(self) -> str:
        """What no manifest says, in words; "" where nothing is wrong."""
        numbers = {"rows": self.rows, "n_outputs": self.n_outputs, "tile": self.tile, "memory": self.memory}
        if self.columns is not None:
            numbers["columns"] = self.columns
        for name, value in numbers.items():
            if type(value) is not int or value < 1:
                return f"{name}={value!r}"
        if self.outputs not in ("full", "trace", "per_class"):
            return f"outputs={self.outputs!r}"
        words = isinstance(self.sources, dict) and all(isinstance(value, str) for value in self.sources.values())
        marks = isinstance(self.fingerprint, list) and all(isinstance(v, float | int) for v in self.fingerprint)
        return "" if words and marks else "sources or a fingerprint of another kind"

    @property
    def is_symmetric(self) -> bool:
        return self.columns is None

    def places(self) -> list[Place]:
        """Every stored tile, column by column; of a symmetric kernel the lower half."""
        n_rows = -(-self.rows // self.tile)
        n_columns = n_rows if self.columns is None else -(-self.columns // self.tile)
        return [(i, j) for j in range(n_columns) for i in range(j if self.is_symmetric else 0, n_rows)]

    def examples(self, place: Place) -> tuple[slice, slice]:
        """The examples of the tile's rows and columns."""
        ends = (self.rows, self.rows if self.columns is None else self.columns)
        rows, columns = (slice(i * self.tile, min((i + 1) * self.tile, end)) for i, end in zip(place, ends))
        return rows, columns

    def tile_shape(self, place: Place) -> tuple[int, ...]:
        """[b1*c, b2*c], [b1, b2] or [c, b1, b2]."""
        b1, b2 = (part.stop - part.start for part in self.examples(place))
        c = self.n_outputs
        return {"full": (b1 * c, b2 * c), "trace": (b1, b2), "per_class": (c, b1, b2)}[self.outputs]

    def tile_bytes(self, place: Place) -> int:
        return math.prod(self.tile_shape(place)) * DTYPES[self.dtype].itemsize + HEADER_BYTES

    def write_or_keep(self, folder: Path) -> None:
        """Write it where there is none; one that is there has been compared with this."""
        if not (folder / MANIFEST).is_file():
            self.write(folder)

    def write(self, folder: Path) -> None:
        with replacing(folder / MANIFEST) as temporary:
            content = {"kind": KIND, "format_version": FORMAT_VERSION} | asdict(self) | {"digest": self.digest}
            temporary.write_text(json.dumps(content, indent=1))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Manifest:
        """The manifest of a kernel on disk.

        Raises: FileNotFoundError: no such kernel. StoredKernelError: damaged, foreign, or of another format.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            remedy = "make one with TiledKernel.create(folder, model, x)"
            raise FileNotFoundError(complaint(str(folder), "the folder of a tiled kernel", f"no {MANIFEST}", remedy))
        remedy = f"delete {folder} and make the kernel again"
        try:
            if path.stat().st_size > MANIFEST_BYTES:
                raise StoredKernelError(complaint(str(path), "a manifest", f"{path.stat().st_size:,} bytes", remedy))
            content = json.loads(path.read_text())
            kind, version, digest = content.pop("kind"), content.pop("format_version"), content.pop("digest")
            if kind != KIND or version != FORMAT_VERSION:
                expected, received = f"{KIND!r} of format version {FORMAT_VERSION}", f"{kind!r} of version {version}"
                raise StoredKernelError(complaint(str(path), expected, received, remedy))
            found = cls(**content)
            if found.digest != digest or found.dtype not in DTYPES:
                raise StoredKernelError(complaint(str(path), "what its digest says", "a changed manifest", remedy))
            if fault := found.fault():
                raise StoredKernelError(complaint(str(path), "a complete manifest", fault, remedy))
        except StoredKernelError:
            raise
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            received = f"{type(error).__name__}: {error}"
            raise StoredKernelError(complaint(str(path), "a complete manifest", received, remedy)) from error
        return found

    def check_made_of(self, functional: FunctionalModel, x1: Tensor, folder: Path) -> None:
        """Refuse to use the kernel for another model or other inputs."""
        for key, now in digests(functional, x1, None).items():
            if self.sources.get(key) != now:
                remedy = "make it with TiledKernel.create in another folder"
                expected = f"made of {key} {now}"
                raise StoredKernelError(complaint(f"the kernel in {folder}", expected, self.sources.get(key), remedy))

    def check_same(self, asked: Manifest, folder: Path) -> None:
        """Refuse to go on with a kernel that was begun with something else; ``asked`` is what is asked for now."""
        old, new = asdict(self), asdict(asked)
        sources = {f"the {key}": (old["sources"].get(key), value) for key, value in new["sources"].items()}
        words = {
            key: (old[key], new[key]) for key in ("rows", "columns", "n_outputs", "outputs", "dtype", "tile", "memory")
        }
        for what, (before, now) in (words | sources).items():
            if before != now:
                remedy = f"pass what it was begun with, or make the new kernel in another folder (or delete {folder})"
                raise StoredKernelError(complaint(f"{what} of the kernel in {folder}", str(before), str(now), remedy))
        scale = max(map(abs, self.fingerprint), default=0.0)
        same = len(self.fingerprint) == len(asked.fingerprint) and all(
            abs(a - b) <= ROUNDING * scale for a, b in zip(self.fingerprint, asked.fingerprint)
        )
        if not same:
            remedy = f"pass the model it was begun with, or make the new kernel in another folder (or delete {folder})"
            received = "another function with the same parameters"
            raise StoredKernelError(complaint(f"the model of the kernel in {folder}", "the same", received, remedy))


def digests(functional: FunctionalModel, x1: Tensor, x2: Tensor | None) -> dict[str, str]:
    """Hashes of what decides the numbers: parameters, constants, the module in words, inputs."""
    words = "" if functional.module is None else re.sub(r"0x[0-9a-f]+", "", repr(functional.module))
    return {
        "parameters": _digest(functional.params),
        "constants": _digest(functional.constants),
        "architecture": hashlib.blake2b(words.encode(), digest_size=16).hexdigest(),
        "inputs x1": _digest({"x1": x1}),
        "inputs x2": "none" if x2 is None else _digest({"x2": x2}),
    }


def fingerprint(functional: FunctionalModel, x: Tensor) -> list[float]:
    """u . f, and the Gram of the gradients of u . f, at the first two examples, for one fixed u."""
    values, gradients = [], []
    for i in range(len(x[:2])):
        with torch.no_grad():
            outputs = functional.forward(functional.params, x[i : i + 1])[0]
        u = torch.cos(torch.arange(len(outputs), dtype=torch.float64)).to(outputs)
        values.append(float((outputs * u).sum()))
        row = jacobian_row(functional, functional.params, x[i : i + 1], u)
        gradients.append(torch.cat([value.flatten().double() for value in row.values()]))
    return [*values, *(float(gradients[i] @ gradients[j]) for i in range(len(gradients)) for j in range(i + 1))]


def _digest(tensors: dict[str, Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        hasher.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        hasher.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
