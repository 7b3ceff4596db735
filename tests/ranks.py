"""Processes of a group of torch.distributed: ``python -m tests.ranks COUNT FOLDER WORK FAULT SECONDS``.

Forks the ranks, with a timeout of so many seconds for the group, and prints one line of JSON: for each rank how it
ended (``"done"``, an error in words, ``"killed"``) and after how many seconds since the fault. Rank r leaves what it
computed in ``FOLDER/rank-r.pkl``. The fault befalls the last rank, in the middle of an ensemble: ``none``, ``killed``,
``stopped``, ``error``, ``seed`` (it asks for another one).
"""

from __future__ import annotations

import datetime
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import sgdsde
from sgdsde import SGD
from sgdsde.dynamics import ExponentialEuler, SDEPaths
from sgdsde.ensemble.training import Ensemble
from sgdsde.kernel import TiledKernel
from tests.problems import mlp_problem

SGDS = [SGD(0.1, 2), SGD(lambda k: 0.02 / (1 + k), 4, momentum=0.5)]
N_RUNS = 150


def ensemble(problem: Any, folder: Path, **words: Any) -> Any:
    words = {"seed": 1, "observe": ("loss", "outputs"), "record": [0, 3, 6]} | words
    found = sgdsde.run_ensembles(problem, SGDS, 6, N_RUNS, **words)
    return [each._arrays() for each in found]


def kept(problem: Any, folder: Path, **words: Any) -> Any:
    return ensemble(problem, folder, checkpoint=folder / "checkpoint", **words)


def everything(problem: Any, folder: Path, group: Any = None, **words: Any) -> Any:
    """What each of the three kinds of work gives, by name."""
    linearization = sgdsde.linearize(problem)
    checkpoint = {"checkpoint": folder / "alone"} if group is None else {}  # alone, the same layout of blocks
    found = {"ensemble": ensemble(problem, folder, group=group, **checkpoint, **words)}
    for name, integrator in (("paths", {}), ("exponential", {"integrator": ExponentialEuler()})):
        dynamics = SDEPaths(200, paths_at_once=64, group=group, **integrator)
        found[name] = sgdsde.predict(linearization, SGDS[0], 6, dynamics=dynamics, observe=("outputs",))._arrays()
    kernel = TiledKernel.create(folder / "kernel", problem.model, problem.x_train, tile=2, memory=2**28, group=group)
    found["kernel"] = kernel.to_dense()
    found["tiles"] = {path.name: path.read_bytes() for path in sorted((folder / "kernel").glob("tile*"))}
    return found


WORK = {"ensemble": ensemble, "kept": kept, "everything": everything}


def faulty(fault: str, mark: Path) -> Any:
    """A progress that goes wrong in the middle of the work."""

    def progress(items: Iterable[int]) -> Iterator[int]:
        for unit in items:
            if unit == 6 * 64:  # the first block is finished
                mark.write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
            yield unit

    return progress


def failing(mark: Path) -> Any:
    """A block of runs of which only the first can be trained."""
    block, jobs = Ensemble.block, []

    def replaced(ensemble: Ensemble, job: Any) -> Any:
        jobs.append(job)
        if len(jobs) > 1:
            mark.write_text(str(time.time()))
            raise MemoryError("of this rank")
        return block(ensemble, job)

    return replaced


def rank(number: int, count: int, folder: Path, *, problem: Any, work: str, fault: str, seconds: float) -> str:
    words: dict[str, Any] = {}
    if number == count - 1:
        if fault == "error":
            Ensemble.block = failing(folder / "fault")  # of this process
        words = {"none": {}, "error": {}, "seed": {"seed": 2}}.get(fault, {"progress": faulty(fault, folder / "fault")})
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=number,
        world_size=count,
        timeout=datetime.timedelta(seconds=seconds),
    )
    try:
        found = WORK[work](problem, folder, group=distributed.group.WORLD, **words)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    (folder / f"rank-{number}.pkl").write_bytes(pickle.dumps(found))
    distributed.barrier()
    return "done"


def main(count: int, folder: Path, work: str, fault: str, seconds: float) -> list[dict[str, Any]]:
    problem, children = mlp_problem(), []
    for number in range(count):
        child = os.fork()
        if child == 0:
            said = rank(number, count, folder, problem=problem, work=work, fault=fault, seconds=seconds)
            (folder / f"end-{number}").write_text(said)
            os._exit(0)
        children.append(child)
    ends: list[dict[str, Any]] = []
    for number, child in enumerate(children):
        if fault == "stopped" and number == count - 1:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        end, mark = folder / f"end-{number}", folder / "fault"
        since = time.time() - float(mark.read_text()) if mark.exists() else 0.0
        ends.append({"end": end.read_text() if end.exists() else "killed", "seconds": since})
    return ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:5], float(sys.argv[5]))) + "\n")
