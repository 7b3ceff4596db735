"""The frame of every experiment: scale, seed, progress, device, and a manifest beside the arrays."""

from __future__ import annotations

import argparse
import os
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from experiments.result import ROOT, DamagedResultError, is_outdated, library_digest, save
from sgdsde import provenance

if TYPE_CHECKING:
    import torch

Scale = Literal["smoke", "laptop", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "laptop", "paper")
SECONDS_ALLOWED = {"smoke": 8.0, "laptop": 240.0}

T = TypeVar("T")


class Progress:
    """Progress bars with the time left: ``progress("label")`` wraps an iteration.

    Both uses are meant: ``for width in progress("widths")(widths)`` and, for the library,
    ``run_ensemble(..., progress=progress("real runs"))``.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, label: str, total: int | None = None) -> Callable[[Iterable[T]], Iterable[T]]:
        from tqdm import tqdm

        def wrap(iterable: Iterable[T]) -> Iterable[T]:
            # A log file gets a line now and then, a terminal a moving bar.
            seldom = 0.2 if sys.stderr.isatty() else 10.0
            bar: Iterable[T] = tqdm(iterable, desc=f"{self.name}: {label}", total=total, mininterval=seldom)
            return bar

        return wrap


def by_scale(scale: Scale, *, smoke: T, laptop: T, paper: T) -> T:
    """The value for this scale."""
    return {"smoke": smoke, "laptop": laptop, "paper": paper}[scale]


def device() -> torch.device:
    """Where the experiment runs: ``make figures DEVICE=cuda`` sets it, the default is the CPU."""
    import torch

    return torch.device(os.environ.get("SGDSDE_DEVICE") or "cpu")


def main(file: str, run: Callable[[Scale, Progress], Mapping[str, Any]], *, seed: int) -> None:
    """Run one experiment from the command line and leave its result file, or nothing.

    Args:
        file: ``__file__`` of the experiment; its stem names the result.
        run: returns the arrays by name; numbers and strings become arrays without dimensions.
        seed: what ``run`` seeds its streams with, for the manifest.
    """
    name = Path(file).stem
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    parser.add_argument("--scale", choices=SCALES, default="laptop")
    parser.add_argument("--results", type=Path, help="folder (default: build/SCALE/results)")
    options = parser.parse_args()
    path = (options.results or Path("build") / options.scale / "results") / f"{name}.npz"
    print(f"{name}: running at {options.scale} scale", file=sys.stderr)
    # Of the start: an edit made during the run is part of neither hash nor time stamp.
    origin = {"sources": _sources(Path(file)), "started": time.time()}
    clock = time.perf_counter()
    arrays = _as_arrays(name, run(options.scale, Progress(name)))
    seconds = time.perf_counter() - clock
    manifest = {"experiment": name, "scale": options.scale, "seed": seed, "wall_seconds": seconds}
    save(path, arrays, manifest | origin | _environment())
    print(f"{name}: {seconds:.1f} s, {path.stat().st_size / 1e6:.2f} MB in {path}", file=sys.stderr)
    allowed = SECONDS_ALLOWED.get(options.scale, float("inf"))
    if seconds > allowed:
        print(f"{name}: warning: {seconds:.1f} s at {options.scale} scale, {allowed:.0f} s allowed", file=sys.stderr)


def _as_arrays(name: str, returned: Any) -> dict[str, np.ndarray]:
    if not isinstance(returned, Mapping) or not returned:
        raise TypeError(f"run() of {name} must be a mapping of names to arrays, got {returned!r:.80}")
    arrays = {}
    for key, value in returned.items():
        if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_]+", key):
            raise ValueError(f"array names of {name} must be made of letters, digits and _, got {key!r}")
        arrays[key] = np.asarray(value)
        if arrays[key].dtype.hasobject:
            raise TypeError(f"array {key!r} of {name} must hold numbers or strings, got {type(value).__name__}")
    return arrays


def _sources(file: Path) -> dict[str, str]:
    return {
        "library": library_digest(),
        "experiment": provenance.file_digest(file),
        "frame": provenance.file_digest(__file__),
    }


def _environment() -> dict[str, Any]:
    import torch

    where, commit = device(), provenance.commit(ROOT)
    return {
        "versions": provenance.versions(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else str(where),
        # Kilobytes on Linux, bytes on macOS.
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "git_commit": commit and commit.sha,
        "git_changed_files": list(commit.changed_files) if commit else [],
    }


def _clean_outdated(folder: Path) -> None:
    for path in sorted(folder.glob("*.npz")):
        try:
            outdated = is_outdated(path)
        except DamagedResultError:
            outdated = True
        if outdated:
            path.unlink()
            print(f"deleted {path}")


if __name__ == "__main__":
    commands = argparse.ArgumentParser(prog="python -m experiments.frame")
    commands.add_argument("command", choices=["clean-outdated"])
    commands.add_argument("--results", type=Path, required=True)
    _clean_outdated(commands.parse_args().results)
