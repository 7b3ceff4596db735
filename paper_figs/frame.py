"""The frame of every figure: load the result, check the claimed numbers, draw, save.

A figure is done when its ``.png`` and ``.pdf`` exist. A number outside its interval of ``expected.json`` is an error:
the old pictures are deleted and the new one is kept as ``NAME.outside.png``, to look at.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.result import DamagedResultError, Result, is_outdated, load

EXPECTED = Path(__file__).with_name("expected.json")
CAPTION_FIELDS = ("Paper:", "Figure:", "Claim:", "Refuted by:")


class FigureError(Exception):
    """What stops a figure, said in full."""


@dataclass(frozen=True)
class Interval:
    """Where a claimed number must lie, ends included, and where that interval comes from."""

    low: float
    high: float
    why: str

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # false for NaN

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}] ({self.why})"


@dataclass(frozen=True)
class Expectation:
    """The intervals of one figure at one scale; an optional number may be missing."""

    intervals: Mapping[str, Interval]
    optional: frozenset[str]


def expectation(path: Path, figure: str, scale: str) -> Expectation:
    """The intervals for a figure at a scale: those under "all", overridden by those of the scale.

    Raises:
        FigureError: no entry, or an entry that is not [low, high, "where the interval comes from"].
    """
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise FigureError(f"{path} must be readable JSON, got: {error}") from error
    if figure not in entries:
        raise FigureError(f'{path} must hold an entry for {figure}, got none; add "{figure}": {{"all": {{}}}}')
    unknown = set(entries[figure]) - {"all", "smoke", "laptop", "paper"}
    if unknown:
        raise FigureError(f"scales of {figure} in {path} must be all, smoke, laptop or paper, got {sorted(unknown)}")
    merged = {name.rstrip("?"): (name, row) for name, row in entries[figure].get("all", {}).items()}
    merged |= {name.rstrip("?"): (name, row) for name, row in entries[figure].get(scale, {}).items()}
    return Expectation(
        intervals={name: _interval(path, figure, name, row) for name, (_, row) in merged.items()},
        optional=frozenset(name for name, (written, _) in merged.items() if written.endswith("?")),
    )


def _interval(path: Path, figure: str, name: str, row: Any) -> Interval:
    try:
        low, high, why = row
        interval = Interval(-math.inf if low is None else float(low), math.inf if high is None else float(high), why)
        sound = interval.low <= interval.high and (low, high) != (None, None) and isinstance(why, str) and why.strip()
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise FigureError(
            f'{figure}: {name} in {path} must be [low, high, "where it comes from"] with low <= high, got {row!r}'
        )
    return interval


def complaints(claims: Mapping[str, float], expected: Expectation) -> list[str]:
    """One line per number that is outside its interval, has none, or is missing; empty when all is well."""
    lines = []
    for name, value in claims.items():
        if name not in expected.intervals:
            lines.append(f"{name} = {value:g} has no interval")
        elif value not in expected.intervals[name]:
            lines.append(f"{name} = {value:g} is outside {expected.intervals[name]}")
    missing = set(expected.intervals) - set(claims) - expected.optional
    return lines + [f"{name} is expected in {expected.intervals[name]} but not claimed" for name in sorted(missing)]


def draw(figure: str, scale: str, build: Path) -> None:
    """Draw one figure from its result, or raise and leave no picture that looks done."""
    module = importlib.import_module(f"paper_figs.{figure}")
    caption = _caption(module)
    result_path = _result_path(figure, build)
    folder = build / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("png", "pdf", "txt", "outside.png"):
        (folder / f"{figure}.{old}").unlink(missing_ok=True)
    result = _result(result_path, scale)
    claims = {name: float(value) for name, value in module.claims(result).items()}
    expected = expectation(EXPECTED, figure, scale)
    wrong = complaints(claims, expected)
    _save_pictures(module, result, folder, outside=bool(wrong), caption=caption + _table(claims, expected))
    if wrong:
        raise FigureError(
            f"{figure} at {scale} scale: {len(wrong)} of its numbers not as expected in paper_figs/{EXPECTED.name}\n"
            + "".join(f"  {line}\n" for line in wrong)
            + f"  numbers from {result_path}; picture to look at: {folder / figure}.outside.png"
        )
    print(f"{figure}: {len(claims)} numbers inside their intervals, drawn", file=sys.stderr)


def _result_path(figure: str, build: Path) -> Path:
    """Read as the Makefile reads it, from the line ``EXPERIMENT = "name"``: the figure's own name unless it says so."""
    source = Path(__file__).with_name(f"{figure}.py").read_text()
    named = re.search(r'^EXPERIMENT = "(\w+)"', source, re.MULTILINE)
    return build / "results" / f"{named[1] if named else figure}.npz"


def _caption(module: ModuleType) -> str:
    """The module's docstring, refused when it leaves out what a reader must know."""
    caption = (module.__doc__ or "").strip()
    missing = [field for field in CAPTION_FIELDS if field not in caption]
    if missing:
        raise FigureError(f"the docstring of {module.__name__} must hold {', '.join(missing)} (it is the caption)")
    return caption


def _result(path: Path, scale: str) -> Result:
    result = load(path)
    written = (result.manifest["experiment"], result.manifest["scale"])
    if written != (path.stem, scale):
        raise DamagedResultError(
            f"result {path} must be of {path.stem} at {scale} scale, got {written[0]} at {written[1]} scale; "
            "delete it and run make again"
        )
    return result


def _table(claims: Mapping[str, float], expected: Expectation) -> str:
    lines = [f"  {name} = {value:.6g} in {expected.intervals.get(name, 'none')}" for name, value in claims.items()]
    return "\n\nNumbers:\n" + "\n".join(lines) + "\n" if lines else "\n"


def _save_pictures(module: ModuleType, result: Result, folder: Path, *, outside: bool, caption: str) -> None:
    """Write every file beside its place and rename it; the .png, by which make judges, last."""
    from paper_figs import style

    style.apply()
    picture = module.draw(result)
    name = module.__name__.rpartition(".")[2]
    if outside:
        picture.savefig(folder / f"{name}.outside.png")
        return
    (folder / f"{name}.txt").write_text(caption)
    # Without a date the same result gives the same bytes.
    for suffix, facts in (("pdf", {"CreationDate": None}), ("png", {"Description": caption})):
        temporary = folder / f".{name}.{os.getpid()}.{suffix}"
        try:
            picture.savefig(temporary, metadata=facts)
            os.replace(temporary, folder / f"{name}.{suffix}")
        finally:
            temporary.unlink(missing_ok=True)


def report(figures: list[str], scale: str, build: Path) -> None:
    """Say where the figures are, and which results other sources of the library computed."""
    if not figures:
        print("no figures yet: paper_figs/ holds none of this set")
        return
    print(f"figures at {scale} scale (each with .pdf, and its caption in .txt):")
    for figure in figures:
        print(f"  {build / 'figures' / figure}.png")
    outdated = set()
    for figure in figures:
        path = _result_path(figure, build)
        if path.is_file() and is_outdated(path):
            outdated.add(path.stem)
    if outdated:
        print(
            f"warning: sgdsde has changed since it computed {', '.join(sorted(outdated))}; to compute anew:\n"
            f"  make clean-outdated figures SCALE={scale}"
        )


def main() -> int:
    """The command line that the Makefile calls; 1 and one message for an expected failure."""
    parser = argparse.ArgumentParser(prog="python -m paper_figs.frame")
    parser.add_argument("command", choices=["draw", "report"])
    parser.add_argument("figures", nargs="*")
    parser.add_argument("--scale", choices=["smoke", "laptop", "paper"], default="laptop")
    options = parser.parse_intermixed_args()
    build = Path("build") / options.scale
    try:
        if options.command == "report":
            report(options.figures, options.scale, build)
        else:
            for figure in options.figures:
                draw(figure, options.scale, build)
    except (FigureError, DamagedResultError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
