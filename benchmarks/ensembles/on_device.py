"""The benchmark of ensembles on a CUDA device: rates by the clock, the library with and without recorded steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

import sgdsde
from benchmarks.ensembles import torch_runs
from sgdsde._progress import ticker
from sgdsde.ensemble.cuda_graphs import graphs_of
from sgdsde.ensemble.training import Ensemble

OURS, LAUNCHED = "sgdsde", "sgdsde, launched one by one"
N_STEPS, LOOPED = 2000, 8
"""Steps of a case, so that recording one of them is little of the whole, and runs of the optimizer loop."""

ROWS = {
    LAUNCHED: "without CUDA graphs",
    "optimizer_loop": "torch.optim",
    "vmapped": "vmap",
    "embedding_bags": "embedding bag",
    "gathers": "whole kernel",
    "products": "the two products",
}


class Case(Protocol):
    """What is read of a case of the benchmark."""

    trained: Any
    lr: float
    n_runs: int
    n_steps: int
    others: tuple[str, ...]
    batch_size: int

    def batches(self) -> Tensor: ...


def contestants(case: Case, device: torch.device) -> dict[str, Callable[[], tuple[float, Tensor]]]:
    """Functions that train the runs once on a device and return run-steps a second and final losses."""
    batches = case.batches().to(device)
    found = {
        name: _timed(case, lambda graphs=graphs: ours(case, graphs), case.n_runs) for name, graphs in GRAPHS.items()
    }
    for name in case.others:
        if name != "jax":
            rows = batches[:LOOPED] if name == "optimizer_loop" else batches
            train = getattr(torch_runs, name)
            found[name] = _timed(case, lambda train=train, rows=rows: train(case.trained, case.lr, rows), len(rows))
    return found


GRAPHS: dict[str, Any] = {OURS: graphs_of, LAUNCHED: lambda device: None}


def ours(case: Case, graphs: Any) -> Tensor:
    """Final losses of the library's runs, their steps recorded or not."""
    sgd, steps = sgdsde.SGD(case.lr, case.batch_size), torch.tensor([case.n_steps])
    ensemble = replace(Ensemble.of(case.trained, [sgd], steps, n_steps=case.n_steps), graphs=graphs)
    (found,) = ensemble.trajectories(range(1), range(case.n_runs), ticker(None, 0, ""))
    return found.train_loss.samples[:, -1]


def _timed(case: Case, train: Callable[[], Tensor], n_runs: int) -> Callable[[], tuple[float, Tensor]]:
    def run() -> tuple[float, Tensor]:
        start = time.perf_counter()
        losses = train().cpu()  # which waits for the device
        return n_runs * case.n_steps / (time.perf_counter() - start), losses

    return run


def table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Run-steps a second of the library, and its ratio to the others."""
    lines = ["| | run-steps/s | " + " | ".join(ROWS.values()) + " |", "|---" * (len(ROWS) + 2) + "|"]
    for name, found in cases.items():
        ratios = [f"{found['ratio'][other]:.2f}" if other in found["ratio"] else "" for other in ROWS]
        rate = found["run_steps_per_second"][OURS][0]
        lines.append(f"| {name} | {rate:.2g} | " + " | ".join(ratios) + " |")
    return "\n".join(lines)


def page_blocks(content: Mapping[str, Any]) -> dict[str, str]:
    """What docs/benchmarks.md says of the device, by the name of its mark."""
    environment = content["environment"]
    told = (
        f"{environment['device']}; medians of {content['rounds']} rounds; {environment['processor']}, "
        f"torch {environment['versions']['torch']}."
    )
    return {"ensembles_cuda": f"{table(content['cases'])}\n\n{told}"}
