"""What a saved trajectory must hold before it is believed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgdsde import _memory

HEADER_BYTES = 2**20
"""A header is a few hundred bytes; more are an attack or an accident."""

WHOLE = ("steps", "diverged_at")


def check_sizes(file: Any) -> None:
    """Raises ValueError, before anything is unpacked, for an archive that would fill the memory."""
    sizes = {member.filename: member.file_size for member in file.zip.infolist()}
    if (header := sizes.get("header.npy", 0)) > HEADER_BYTES:
        raise ValueError(f"a header of {header:,} bytes")
    allowed = _memory.budget(None, torch.device("cpu"))
    if (total := sum(sizes.values())) > allowed:
        raise ValueError(f"arrays of {total:,} bytes, more than a quarter of the free memory, {allowed:,}")


def check_contents(arrays: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Raises ValueError or KeyError for arrays of other dtypes or shapes than a trajectory has, and for other words."""
    for name, value in arrays.items():
        expected = torch.int64 if name in WHOLE else torch.float64
        if value.dtype != expected:
            raise ValueError(f"{name} in {value.dtype} in place of {expected}")
    count, n_runs = len(arrays["steps"]), header["n_runs"]
    if type(n_runs) is not int or n_runs < 0:
        raise ValueError(f"n_runs={n_runs!r}")
    for name in ("dynamics", "problem_digest"):
        if not isinstance(header[name], str):
            raise ValueError(f"{name}={header[name]!r}")
    if not isinstance(header["mean_square_limit"], float | int | None):
        raise ValueError(f"mean_square_limit={header['mean_square_limit']!r}")
    _check_words(header)
    for name, value in arrays.items():
        _check_shape(name, tuple(value.shape), count, n_runs)


def _check_words(header: dict[str, Any]) -> None:
    """Of a trajectory's origin; files from before these words were kept have none of them."""
    for name in ("origin", "obtained"):
        if not isinstance(header.get(name, ""), str):
            raise ValueError(f"{name}={header[name]!r}")
    effort = header.get("effort", {})
    if not isinstance(effort, dict) or not all(type(value) in (int, float) for value in effort.values()):
        raise ValueError(f"effort={effort!r}")


def _check_shape(name: str, shape: tuple[int, ...], count: int, n_runs: int) -> None:
    what, _, part = name.partition(".")[2].partition(".")
    leading: tuple[int, ...] = (count,)
    if name == "diverged_at":
        leading = (n_runs,)
    elif part == "samples":
        leading = (n_runs, count)
    dims = len(leading) + (2 if what == "outputs" else 0)
    if len(shape) != dims or shape[: len(leading)] != leading:
        raise ValueError(f"{name} of shape {list(shape)}, with {count} steps and {n_runs} runs")
