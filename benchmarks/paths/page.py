"""The tables of sample paths in docs/benchmarks.md, written from the committed numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.ntk import page

NAMES = {
    "floor": "one product and its normal numbers",
    "fused": "the step by hand, in place",
    "sgdsde": "sgdsde",
    "sgdsde_tf32": "sgdsde, TF32",
    "sgdsde_second_order": "sgdsde, `WeakOrder2`",
    "user": "Euler-Maruyama line by line, torch",
    "torchsde_own": "torchsde, products",
    "torchsde_given": "torchsde, products, increments of one's own",
    "torchsde_matrices": "torchsde, a matrix for each path",
    "diffrax_euler": "diffrax",
    "sdeint_euler": "sdeint, float64",
}
OURS = {"constant": "sgdsde_exact", "state": "sgdsde_euler"}
DEVICES = {"cpu": "paths_cpu", "cuda": "paths_cuda"}


def asked(column: str) -> dict[str, float]:
    """Ratios of the library to others that were asked for."""
    goals = {"torchsde_own": 2.5 if column == "state, d = 512" else 5.0, "diffrax_euler": 2.0}
    return goals | ({"fused": 5 / 6} if column == "state, d = 256" else {})


def write_page(content: Mapping[str, Any]) -> None:
    """Tables of every device that has been measured."""
    blocks = {DEVICES[device]: rate_table(found["columns"]) for device, found in content.items()}
    if "cpu" in content:
        blocks |= {"paths_goals": goal_table(content["cpu"]["columns"])}
        blocks |= {"paths_environment": environment_text(content["cpu"]["environment"])}
    page.write_page(blocks)


def entry_of(column: str, name: str, found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a row of the table has in a column."""
    entry: Mapping[str, Any] | None = found.get(OURS[column.split(",")[0]] if name == "sgdsde" else name)
    return entry


def rate_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Path-steps a second, and in brackets how many times faster the library is."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, told in NAMES.items():
        cells = []
        for column, found in columns.items():
            entry, own = entry_of(column, name, found), entry_of(column, "sgdsde", found)
            if entry is None or own is None:
                cells.append("")
                continue
            ratio = "" if name == "sgdsde" else f" ({own['median'] / entry['median']:.2f})"
            rounding = f", error {entry['rounding']:.0e}" if "rounding" in entry else ""
            cells.append(f"{entry['median']:.2g}{ratio}{rounding}")
        if any(cells):
            lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goal_table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """What was asked of the library, and what the bare product would reach."""
    lines = ["| | against | asked | measured | the bare product | |", "|---|---|---|---|---|---|"]
    for column, found in columns.items():
        own = entry_of(column, "sgdsde", found)
        for name, goal in asked(column).items():
            if own is None or name not in found:
                continue
            ratio, limit = (one["median"] / found[name]["median"] for one in (own, found["floor"]))
            verdict = "reached" if ratio >= goal else "missed"
            lines.append(f"| {column} | {NAMES[name]} | {goal:.3g} | {ratio:.2f} | {limit:.2f} | {verdict} |")
    return "\n".join(lines)


def environment_text(environment: Mapping[str, Any]) -> str:
    rates = {name: f"{rate / 1e9:.0f}" for name, rate in environment["products"].items()}
    versions = environment["versions"]
    return (
        f"{environment['processor']}, one core; matrix products {rates['float32']} GFLOP/s in float32; "
        f"{environment['rounds']} rounds; Python {versions['python']}, torch {versions['torch']}, torchsde 0.2.6, "
        "diffrax 0.7.2 with jax 0.10.2, sdeint 0.3.0."
    )
