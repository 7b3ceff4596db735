"""Ensembles by blocks: the runs of the whole ensemble, the same bits after every interruption, never foreign ones."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sgdsde
from sgdsde import SGD, SVAG, CheckpointWarning, Trajectory
from tests.problems import mlp_problem, seeded_module

WORDS: dict[str, Any] = {"seed": 3, "record": [0, 2, 5], "observe": ("loss", "outputs")}
N_RUNS = 150


class KilledError(Exception):
    pass


def killed_after(units: int) -> Any:
    """A progress that ends the work after so many of its units."""

    def progress(items: Iterable[int]) -> Iterator[int]:
        for unit in items:
            if unit >= units:
                raise KilledError
            yield unit

    return progress


def assert_same_bits(found: Trajectory, expected: Trajectory) -> None:
    arrays, others = found._arrays(), expected._arrays()
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert np.array_equal(array, others[name], equal_nan=True), name
    assert found._header() == expected._header()


@pytest.fixture(scope="module")
def problem() -> sgdsde.Problem:
    return mlp_problem()


@pytest.mark.parametrize("of_linearization", [False, True])
@pytest.mark.parametrize(
    ("sgd", "variant"),
    [
        (SGD(0.1, 2), None),
        (SGD(0.05, 3, momentum=0.7, weight_decay=0.1), None),
        (SGD(0.1, 2), SVAG(2)),
        (SGD(60, 2), None),
    ],
)
def test_the_blocks_are_the_runs_of_the_whole_ensemble(
    problem: sgdsde.Problem, sgd: SGD, variant: Any, of_linearization: bool, tmp_path: Path
) -> None:
    trained = sgdsde.linearize(problem) if of_linearization else problem
    words = WORDS | {"variant": variant}
    whole = sgdsde.run_ensemble(trained, sgd, 5, N_RUNS, **words)
    found = sgdsde.run_ensemble(trained, sgd, 5, N_RUNS, checkpoint=tmp_path / "runs", **words)
    assert torch.equal(found.diverged_at, whole.diverged_at)
    assert found.n_runs == N_RUNS
    assert found.train_loss.samples.shape == (N_RUNS, 3)
    for name, array in whole._arrays().items():
        np.testing.assert_allclose(found._arrays()[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


def test_an_interrupted_ensemble_goes_on_to_the_same_bits_and_trains_no_block_twice(
    problem: sgdsde.Problem, tmp_path: Path
) -> None:
    sgds = [SGD(0.1, 2), SGD(0.02, 4)]
    expected = sgdsde.run_ensembles(problem, sgds, 5, N_RUNS, checkpoint=tmp_path / "whole", **WORDS)
    folder = tmp_path / "killed"
    for units in (0, 64 * 5, 200 * 5):
        with pytest.raises(KilledError):
            sgdsde.run_ensembles(problem, sgds, 5, N_RUNS, checkpoint=folder, progress=killed_after(units), **WORDS)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert 3 <= len(kept) < 6
    found = sgdsde.run_ensembles(problem, sgds, 5, N_RUNS, checkpoint=folder, **WORDS)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(list(folder.iterdir())) == 7
    for one, other in zip(found, expected):
        assert_same_bits(one, other)


def test_an_ensemble_is_continued_with_more_runs(problem: sgdsde.Problem, tmp_path: Path) -> None:
    sgdsde.run_ensemble(problem, SGD(0.1, 2), 5, 64, checkpoint=tmp_path / "a", **WORDS)
    found = sgdsde.run_ensemble(problem, SGD(0.1, 2), 5, N_RUNS, checkpoint=tmp_path / "a", **WORDS)
    expected = sgdsde.run_ensemble(problem, SGD(0.1, 2), 5, N_RUNS, checkpoint=tmp_path / "b", **WORDS)
    assert_same_bits(found, expected)


def damage(path: Path, how: str, tmp_path: Path, problem: sgdsde.Problem) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "moved":
        path.write_bytes(path.with_name("setting-0000-runs-000064-000128.npz").read_bytes())
    else:
        sgdsde.run_ensemble(problem, SGD(0.2, 2), 5, N_RUNS, checkpoint=tmp_path / "other", **WORDS)
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())


@pytest.mark.parametrize("how", ["cut", "empty", "changed", "moved", "foreign"])
def test_a_part_that_is_not_what_it_should_be_is_named_and_computed_again(
    problem: sgdsde.Problem, how: str, tmp_path: Path
) -> None:
    folder, call = tmp_path / "runs", (problem, SGD(0.1, 2), 5, N_RUNS)
    expected = sgdsde.run_ensemble(*call, checkpoint=folder, **WORDS)
    damage(folder / "setting-0000-runs-000000-000064.npz", how, tmp_path, problem)
    with pytest.warns(CheckpointWarning, match="setting-0000-runs-000000-000064.npz must be") as caught:
        found = sgdsde.run_ensemble(*call, checkpoint=folder, **WORDS)
    assert len(caught) == 1
    assert_same_bits(found, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(sgdsde.run_ensemble(*call, checkpoint=folder, **WORDS), expected)


def twin(activation: nn.Module) -> sgdsde.Problem:
    """Problems of equal weights and data, whose digests are equal."""
    model = seeded_module(lambda: nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 1)).double(), 0)
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    return sgdsde.Problem(model, x, x.sum(1, keepdim=True), loss=nn.MSELoss())


def test_the_checkpoint_of_another_ensemble_is_refused_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, folder = twin(nn.Tanh()), tmp_path / "runs"
    sgd, words = SGD(0.1, 2), {"seed": 3, "record": [5]}

    def call(problem: Any = problem, sgd: SGD = sgd, n_steps: int = 5, **others: Any) -> None:
        sgdsde.run_ensemble(problem, sgd, n_steps, 4, checkpoint=folder, **(words | others))

    call()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused = [
        ({"seed": 4}, "seed of the checkpoint"),
        ({"sgd": SGD(0.2, 2)}, "setting 0 of"),
        ({"sgd": SGD(lambda k: 0.1 / (k + 1), 2)}, "setting 0 of"),
        ({"n_steps": 6, "record": [5]}, "n_steps of"),
        ({"record": [4]}, "record of"),
        ({"observe": ("loss", "outputs")}, "observe of"),
        ({"variant": SVAG(2)}, "variant of"),
        ({"memory": 10**7}, "memory must be"),
        ({"problem": sgdsde.linearize(problem)}, "trained of"),
        ({"problem": twin(nn.ReLU())}, "the function of the model of"),
    ]
    for others, message in refused:
        with pytest.raises(ValueError, match=message):
            call(**others)
    monkeypatch.setattr("sgdsde.provenance.__version__", "0.0.1")
    with pytest.raises(ValueError, match="version of sgdsde of the checkpoint"):
        call()
    assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_a_linearization_with_another_kernel_is_another_ensemble(problem: sgdsde.Problem, tmp_path: Path) -> None:
    linearization = sgdsde.linearize(problem)
    sgdsde.run_ensemble(linearization, SGD(0.1, 2), 2, 4, checkpoint=tmp_path / "runs")
    other = dataclasses.replace(linearization, kernel=1.01 * linearization.kernel)
    with pytest.raises(ValueError, match="kernel of the checkpoint"):
        sgdsde.run_ensemble(other, SGD(0.1, 2), 2, 4, checkpoint=tmp_path / "runs")


def test_what_killed_processes_left_is_deleted_and_what_others_write_now_is_not(
    problem: sgdsde.Problem, tmp_path: Path
) -> None:
    call, folder = (problem, SGD(0.1, 2), 2, 4), tmp_path / "runs"
    sgdsde.run_ensemble(*call, checkpoint=folder)
    old, new = folder / ".setting-0000-runs-0.aa.tmp.npz", folder / ".setting-0000-runs-0.bb.tmp.npz"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    sgdsde.run_ensemble(*call, checkpoint=folder)
    assert (old.exists(), new.exists()) == (False, True)


def test_folders_that_are_no_checkpoint_are_left_alone(problem: sgdsde.Problem, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text('{"kind": "sgdsde checkpoint"}')
    for name, error in (
        ("file", NotADirectoryError),
        ("full", FileExistsError),
        ("absent/runs", FileNotFoundError),
        ("damaged", ValueError),
    ):
        with pytest.raises(error, match=name.split("/")[0]):
            sgdsde.run_ensemble(problem, SGD(0.1, 2), 2, 4, checkpoint=tmp_path / name)
    with pytest.raises(TypeError, match="checkpoint must be the path"):
        sgdsde.run_ensemble(problem, SGD(0.1, 2), 2, 4, checkpoint=3)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"
