"""The tables of docs/benchmarks.md, written from the committed numbers so that they cannot differ from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.ntk.cases import SHARED, TIMED
from benchmarks.ntk.summary import detail_table, error_table, goal_table, speed_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


def write_page(blocks: Mapping[str, str], page: Path = PAGE) -> None:
    """Replace what stands between ``<!-- NAME -->`` and ``<!-- end -->`` by the block of that name."""
    page.write_text(filled(page.read_text(), blocks))


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The page with each named block replaced; a block without its marks is an error."""
    for name, block in blocks.items():
        found = list(re.finditer(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, re.DOTALL))
        if len(found) != 1:
            raise ValueError(f"the page must hold the marks of {name!r} once, got {len(found)} times")
        text = f"{text[: found[0].start(1)]}{block}\n{text[found[0].end(1) :]}"
    return text


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """What the kernel's comparison says, by the name of its mark."""
    cases = content["cases"]
    timed, shared = [case.name for case in TIMED], [case.name for case in SHARED]
    return {
        "speed": speed_table(cases, timed),
        "detail": detail_table(cases, timed),
        "goals": goal_table(cases),
        "errors": error_table(cases, shared),
        "environment": environment_text(content["environment"]),
    }


def environment_text(environment: Mapping[str, Any]) -> str:
    rates = {name: f"{values[0] / 1e9:.0f}" for name, values in environment["products_per_second"].items()}
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    return (
        f"{environment['processor']}, {environment['cores']} cores, one of them used; matrix products "
        f"{rates['float32']} GFLOP/s in float32, {rates['float64']} in float64; {environment['rounds']} rounds; "
        f"Python {environment['python']}; {versions}."
    )
