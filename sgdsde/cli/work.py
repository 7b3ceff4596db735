"""Parts shared by the commands: progress bars and wall times, names and facts for the manifest, printed tables."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgdsde._progress import LONG, Units, covered
from sgdsde._types import Progress
from sgdsde.cli.configuration import resolved
from sgdsde.cli.options import Command, Compare, Diagnose, Explore, Ntk, Predict, Prune, Sweep
from sgdsde.cost import ExpectedCost
from sgdsde.run_folder import MANIFEST


class Work:
    """Progress bars and wall times, by stage."""

    def __init__(self, quiet: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._quiet = quiet

    def stage(self, name: str, do: Callable[[Progress], Any]) -> Any:
        """The result of ``do``, which is handed a progress bar."""
        start = time.perf_counter()
        result = do(self._bar(name))
        self.seconds[name] = round(time.perf_counter() - start, 3)
        return result

    def _bar(self, name: str) -> Progress:
        if self._quiet:
            return covered
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            return None

        def bar(items: Iterable[int]) -> Iterable[int]:
            cost = items.cost if isinstance(items, Units) else None
            if cost is not None and cost.seconds > LONG:
                print(f"sgdsde: {cost.sentence()}", file=sys.stderr)
            words = name if cost is None else f"{name}, {cost.duration}"
            return tqdm(items, desc=words, unit="step", leave=False, disable=None, file=sys.stderr)

        return bar


def facts_of(name: str, command: Command, argv: list[str], lr: float | None = None) -> dict[str, Any]:
    """What repeats the command; ``lr``: the number that ``--lr half`` turned out to be."""
    options = resolved(command) | ({} if lr is None else {"lr": lr})
    seed = options.get("seed")
    seeds = {} if seed is None else {"examples": seed, "initial_weights": seed, "batches": seed}
    return {"command": name, "argv": argv, "configuration": options, "seeds": seeds}


def say_cost(name: str, cost: ExpectedCost) -> dict[str, Any]:
    """Print the cost; return it for ``--json``."""
    print(cost)
    stages = [dataclasses.asdict(stage) for stage in cost.stages]
    whole = {"seconds": cost.seconds, "bytes": cost.bytes, "real_runs": cost.real_runs, "stages": stages}
    return {"command": name, "expected_cost": whole}


def default_name(name: str, command: Compare | Predict | Diagnose | Sweep | Ntk | Prune | Explore) -> str:
    batch = command.batch_size if isinstance(command, Ntk) else command.training.batch_size
    network = f"{command.network.network}{command.network.width}"
    return f"sgdsde-{name}-{command.data.data}-{network}-batch{batch}-seed{command.compute.seed}"


def printed(columns: dict[str, Tensor]) -> str:
    """Columns as a printed table of at most twelve rows."""
    rows = torch.unique(torch.linspace(0, len(columns["step"]) - 1, 12).round().long()).tolist()
    lines = [" ".join(f"{name:>11}" for name in columns)]
    lines += [" ".join(f"{float(values[i]):>11.5g}" for values in columns.values()) for i in rows]
    return "\n".join(lines)


def say_written(path: Path, manifest: dict[str, Any], **numbers: Any) -> dict[str, Any]:
    """Print where the results are; return the manifest with that and with ``numbers``, for ``--json``."""
    print(f"written to {path}: {', '.join((*manifest['files'], MANIFEST))}")
    return {"folder": str(path), **manifest, **numbers}


def lists(columns: dict[str, Tensor]) -> dict[str, list[float]]:
    """Columns as JSON has them."""
    return {name: values.tolist() for name, values in columns.items()}
