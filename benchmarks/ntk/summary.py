"""From measurements to a table: medians, ratios, and the refusal to compare the speed of unequal results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.ntk.cases import CASES, SHARED, TITLES, Case, operations
from benchmarks.ntk.contestants import NAMES
from benchmarks.ntk.contestants import TITLES as CONTESTANTS

TOLERANCE = 1e-5
"""Largest error of a float32 kernel, relative to its largest entry, that still is the kernel."""
GOALS: dict[str, dict[str, float]] = {
    "layer_structure": dict.fromkeys(("mlp_one_output", "mlp_trace", "mlp_full", "cnn_full"), 1 / 1.3),
    "torch_func": {"mlp_one_output": 20, "mlp_trace": 200, "mlp_full": 300, "cnn_full": 1.3},
    "neural_tangents": {"mlp_one_output": 1.2, "mlp_trace": 1.4, "mlp_full": 2.5, "cnn_full": 1.5},
}
"""How many times longer than this library each should take, by case."""
MEMORY_GOALS = dict.fromkeys(("mlp_one_output", "mlp_trace", "mlp_full"), 200)
"""Mebibytes above the imported libraries that this library may take."""
MEBIBYTE = 2**20


def largest_error(found: np.ndarray, reference: np.ndarray) -> float:
    """max |found - reference| / max |reference|; infinite for another shape or values that are not finite."""
    if found.shape != reference.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - reference).max() / np.abs(reference).max())


@dataclass
class Record:
    """All rounds of one contestant on one case."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    failed: str = ""

    @property
    def is_right(self) -> bool:
        return bool(self.rounds) and not self.failed and max(self.errors) <= TOLERANCE

    def summary(self, case: Case, ours: Record | None, rate: float) -> dict[str, Any]:
        """Numbers for the JSON file; a time, a ratio and a fraction only where the result is right."""
        if self.failed:
            return {"failed": self.failed}
        summary: dict[str, Any] = {"error": max(self.errors), "rounds": len(self.rounds), "right": self.is_right}
        if not self.is_right or case in SHARED:
            return summary
        seconds = spread([entry["seconds"] for entry in self.rounds])
        summary["seconds"] = seconds
        for kind in ("system_seconds", "wall_seconds"):
            summary[kind] = spread([entry[kind] for entry in self.rounds])
        summary["first_call_seconds"] = spread([entry["first_seconds"] for entry in self.rounds])
        summary["peak_mebibytes"] = max(entry["peak_bytes"] for entry in self.rounds) / MEBIBYTE
        summary["absolute_mebibytes"] = max(entry["absolute_bytes"] for entry in self.rounds) / MEBIBYTE
        summary["fraction_of_product_rate"] = operations(case) / seconds[0] / rate
        if ours is not None and ours.is_right:
            summary["times_ours"] = seconds[0] / statistics.median([entry["seconds"] for entry in ours.rounds])
        return summary


def spread(values: Sequence[float]) -> list[float]:
    """[median, smallest, largest]."""
    return [statistics.median(values), min(values), max(values)]


def by_case(records: Mapping[tuple[str, str], Record], rate: float) -> dict[str, dict[str, Any]]:
    """Summaries by case and contestant, from records by (case, contestant)."""
    found: dict[str, dict[str, Any]] = {}
    for (case, contestant), record in records.items():
        ours = records.get((case, "ours"))
        found.setdefault(case, {})[contestant] = record.summary(CASES[case], ours, rate)
    return found


def speed_table(cases: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Markdown: seconds (smallest to largest) and peak memory above the libraries, a row per contestant."""
    return _table(cases, names, lambda entry: _speed(entry))


def detail_table(cases: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Markdown: times ours, fraction of the matrix-product rate, and the error against float64."""
    return _table(cases, names, lambda entry: _detail(entry))


def error_table(cases: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Markdown: the error of each result, or the message of the refusal."""
    return _table(cases, names, lambda entry: entry.get("failed") or f"{entry['error']:.1e}")


def goal_table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: how many times longer than this library the others take, its memory, and whether that was asked."""
    lines = ["| | case | asked | measured | |", "|---|---|---|---|---|"]
    for name, goals in GOALS.items():
        for case, asked in goals.items():
            measured = cases.get(case, {}).get(name, {}).get("times_ours")
            if measured is not None:
                verdict = "reached" if measured >= asked else "missed"
                asked_text = f"at least {asked:.3g} times"
                lines.append(f"| {CONTESTANTS[name]} | {TITLES[case]} | {asked_text} | {measured:.3g} | {verdict} |")
    for case, most in MEMORY_GOALS.items():
        taken = cases.get(case, {}).get("ours", {}).get("peak_mebibytes")
        if taken is not None:
            verdict = "reached" if taken <= most else "missed"
            lines.append(f"| peak memory of sgdsde | {TITLES[case]} | at most {most} MiB | {taken:.0f} | {verdict} |")
    return "\n".join(lines)


def _table(cases: Mapping[str, Mapping[str, Any]], names: Sequence[str], cell: Any) -> str:
    shown = [name for name in names if name in cases]
    contestants = [name for name in NAMES if any(name in cases[case] for case in shown)]
    lines = ["| | " + " | ".join(TITLES[name] for name in shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for contestant in contestants:
        cells = [cell(cases[case][contestant]) if contestant in cases[case] else "" for case in shown]
        lines.append(f"| {CONTESTANTS[contestant]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _speed(entry: Mapping[str, Any]) -> str:
    if "seconds" not in entry:
        return entry.get("failed") or f"wrong by {entry['error']:.1e}"
    median, low, high = (f"{value:.3g}" for value in entry["seconds"])
    spoken = f"{low} to {high}" if entry["rounds"] > 1 else "once"
    return f"{median} ({spoken}) s, {entry['peak_mebibytes']:.0f} MiB"


def _detail(entry: Mapping[str, Any]) -> str:
    if "seconds" not in entry:
        return ""
    times = f"{entry['times_ours']:.3g} x, " if "times_ours" in entry else ""
    return f"{times}{100 * entry['fraction_of_product_rate']:.2g} %, {entry['error']:.1e}"
