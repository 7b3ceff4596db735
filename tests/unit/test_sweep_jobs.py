"""Sweeps in the processes of joblib and on a cluster: the same bits in any number of them, one of which may die."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgdsde
from sgdsde._jobs import finished
from sgdsde._sweep_cells import Cells
from sgdsde._sweep_parts import Measuring, Predicting
from sgdsde.recording import recorded_steps
from tests.problems import classification_problem, conv_problem, mlp_problem

GRID: dict[str, Any] = {
    "lr": [0.01, 0.02, 1e3],
    "batch_size": [1, 2, 3],
    "momentum": [0.0, 0.5],
    "n_steps": 20,
    "measured": True,
    "n_runs": 70,
}


def bits(sweep: sgdsde.Sweep) -> list[str]:
    return [repr(sorted(row.items())) for row in sweep.rows]


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    return mlp_problem()


def same(found: sgdsde.Trajectory, expected: sgdsde.Trajectory) -> bool:
    pairs = zip(found._arrays().items(), expected._arrays().items(), strict=True)
    return all(one == other and (array == twin).all() for (one, array), (other, twin) in pairs)


@pytest.mark.parametrize("make", [mlp_problem, conv_problem, classification_problem])
def test_the_work_of_a_job_is_the_same_in_another_process(make: Any) -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="needs the extra cluster")
    problem, steps, sgd = make(), recorded_steps(4, [4]), sgdsde.SGD(0.01, 2)
    linearization = sgdsde.linearize(problem)
    for trained in (problem, linearization):
        measuring = Measuring(trained, [sgd], steps, 4, 0, 10**8)
        sent = pickle.loads(cloudpickle.dumps(measuring))
        assert same(sent((0, range(64, 70))), measuring((0, range(64, 70))))
    predicting = Predicting(Cells(linearization, linearization, 4, steps, None), [(sgd, 1.0)])
    assert same(pickle.loads(cloudpickle.dumps(predicting))(0), predicting(0))


def test_jobs_in_this_process_need_no_joblib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    assert list(finished(abs, [-1, -2], 1)) == [(0, 1), (1, 2)]
    with pytest.raises(ModuleNotFoundError, match="joblib"):
        list(finished(abs, [-1, -2], 2))


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["problem", "linearization"])
def test_a_sweep_has_the_same_bits_in_two_processes(problem: sgdsde.Problem, trained: str, tmp_path: Path) -> None:
    pytest.importorskip("joblib", reason="needs the extra parallel")
    what = problem if trained == "problem" else sgdsde.linearize(problem)
    expected = sgdsde.sweep(what, **GRID, n_jobs=1)
    assert bits(sgdsde.sweep(what, **GRID, n_jobs=2)) == bits(expected)
    assert bits(sgdsde.sweep(what, **GRID, n_jobs=2, checkpoint=tmp_path / "sweep")) == bits(expected)


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two worker processes; one that dies is not replaced for the sweep to go on."""
    distributed = pytest.importorskip("distributed", reason="needs the extra cluster")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        distributed.Client(workers) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of dask's own, about the worker that is killed
def test_a_sweep_on_a_cluster_survives_the_death_of_a_worker(
    problem: sgdsde.Problem, cluster: Any, tmp_path: Path
) -> None:
    import joblib

    expected = sgdsde.sweep(problem, **GRID, n_jobs=1)
    folder, killed = tmp_path / "sweep", []
    victim = next(iter(cluster.run(os.getpid).values()))

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(folder.glob("setting-*"))) < 4:
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)
        killed.append(len(list(folder.glob("setting-*"))))

    thread = threading.Thread(target=kill)
    thread.start()
    with joblib.parallel_config(backend="dask"):
        found = sgdsde.sweep(problem, **GRID, n_jobs=-1, checkpoint=folder)
    thread.join()
    parts = len(list(folder.glob("setting-*.npz")))
    assert 4 <= killed[0] < parts
    assert victim not in cluster.run(os.getpid).values()
    assert bits(found) == bits(expected)


@pytest.mark.slow
def test_a_worker_of_joblib_that_dies_is_an_error() -> None:
    joblib = pytest.importorskip("joblib", reason="needs the extra parallel")
    with pytest.raises(joblib.externals.loky.process_executor.TerminatedWorkerError):
        list(finished(os._exit, [3], 2))
