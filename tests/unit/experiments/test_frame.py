"""The frame of experiments and figures: nothing that is not done looks done, and only what changed is redone.

The make targets run on the stub project of ``tests/stub_project.py``.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import frame, result
from tests.stub_project import EXPECTED, EXPERIMENT, FIGURE, Project

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def pictures(name: str) -> set[str]:
    return {f"{name}.{suffix}" for suffix in ("png", "pdf", "txt")}


ALL_OF_A = {"fig01_a.npz"} | pictures("fig01_a")
ALL_OF_B = {"fig02_b.npz"} | pictures("fig02_b")


@needs_make
def test_figures_are_made_once_and_then_left_alone(project: Project) -> None:
    first = project.make("figures")
    assert first.returncode == 0, first.stderr
    assert set(project.stamps()) == ALL_OF_A | ALL_OF_B
    assert "build/smoke/figures/fig01_a.png" in first.stdout
    assert "steps: 100%" in first.stderr  # the progress bar
    before = project.stamps()
    second = project.make("figures")
    assert (second.returncode, second.stderr) == (0, "")
    assert "build/smoke/figures/fig01_a.png" in second.stdout
    assert project.stamps() == before


@needs_make
def test_an_edit_redoes_only_what_hangs_on_it(project: Project) -> None:
    assert project.make("-j2", "figures").returncode == 0
    assert project.redone(lambda: None) == set()
    assert project.redone(project.touch("experiments/fig02_b.py")) == ALL_OF_B
    assert project.redone(project.touch("experiments/shared.py")) == ALL_OF_A
    assert project.redone(project.touch("paper_figs/fig01_a.py")) == pictures("fig01_a")
    assert project.redone(project.touch("paper_figs/style.py")) == pictures("fig01_a") | pictures("fig02_b")
    assert project.redone(project.touch("experiments/result.py")) == ALL_OF_A | ALL_OF_B
    # At smoke scale the results test the library.
    assert project.redone(project.touch("sgdsde/__init__.py")) == ALL_OF_A | ALL_OF_B
    assert project.redone((project.root / "build/smoke/figures/fig01_a.pdf").unlink) == pictures("fig01_a")
    assert project.redone((project.results() / "fig02_b.npz").unlink) == ALL_OF_B


@needs_make
def test_a_changed_library_is_told_at_laptop_scale_and_redone_on_demand(project: Project) -> None:
    assert "warning" not in project.make("figures", scale="laptop").stdout
    assert project.redone(lambda: project.write("sgdsde/new.py", "VALUE = 2\n"), scale="laptop") == set()
    assert "sgdsde has changed since it computed fig01_a, fig02_b" in project.make("figures", scale="laptop").stdout
    project.age()
    answer = project.make("clean-outdated", "figures", scale="laptop")
    assert answer.returncode == 0, answer.stderr
    assert "deleted build/laptop/results/fig01_a.npz" in answer.stdout
    assert "warning" not in answer.stdout
    assert set(project.stamps("laptop")) == ALL_OF_A | ALL_OF_B


@needs_make
def test_a_new_figure_needs_no_rule_and_may_share_a_result(project: Project) -> None:
    project.write("paper_figs/fig05_c.py", FIGURE + '\n    EXPERIMENT = "fig01_a"\n')
    project.expect({"fig05_c": EXPECTED})
    answer = project.make("fig05_c")
    assert answer.returncode == 0, answer.stderr
    assert set(project.stamps()) == {"fig01_a.npz"} | pictures("fig05_c")
    assert "fig05_c" not in project.make("figures", "--dry-run").stdout
    assert "fig05_c" in project.make("figures-all", "--dry-run").stdout


@needs_make
def test_an_edit_made_during_the_run_counts_as_newer(project: Project) -> None:
    edits_itself = "import pathlib; pathlib.Path('experiments/shared.py').write_text('FACTOR = 1.0  # edited')"
    project.write(
        "experiments/fig01_a.py", textwrap.dedent(EXPERIMENT).replace("    total =", f"    {edits_itself}\n    total =")
    )
    assert project.make("fig01_a").returncode == 0
    assert "experiments.fig01_a" in project.make("fig01_a", "--dry-run").stdout


@needs_make
def test_a_crash_leaves_nothing(project: Project) -> None:
    project.write("experiments/fig01_a.py", EXPERIMENT.replace("total = ", "total = 1 / 0 + "))
    answer = project.make("figures")
    assert answer.returncode != 0
    assert "ZeroDivisionError" in answer.stderr
    assert project.stamps() == {}


@needs_make
def test_a_kill_while_the_result_is_written_leaves_nothing_that_looks_done(project: Project) -> None:
    # The run stops where the file is complete but not yet renamed: the last moment at which it can be lost.
    stopped = "import os, time; os.fsync = lambda file: (open('reached', 'w').close(), time.sleep(60))"
    project.write("experiments/fig01_a.py", textwrap.dedent(EXPERIMENT).replace("SEED = 3", f"SEED = 3\n{stopped}"))
    kill_when(project, lambda: (project.root / "reached").exists())
    assert [path.suffix for path in project.results().iterdir()] == [".tmp"]
    project.write("experiments/fig01_a.py", EXPERIMENT)
    answer = project.make("fig01_a")
    assert answer.returncode == 0, answer.stderr
    assert {path.name for path in project.results().iterdir()} == {"fig01_a.npz"}, "the leftover must be gone"


def kill_when(project: Project, reached: Callable[[], bool]) -> None:
    """Start the first experiment, kill it with SIGKILL when the condition holds."""
    command = [sys.executable, "-m", "experiments.fig01_a", "--scale", "smoke"]
    process = subprocess.Popen(command, cwd=project.root, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 30
    while not reached() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_result_or_none(project: Project) -> None:
    large = EXPERIMENT.replace("np.arange(4.0)", "np.random.default_rng(0).normal(size=1_000_000)")
    project.write("experiments/fig01_a.py", large)
    path = project.results() / "fig01_a.npz"
    seen = set()
    killed_while_writing = 0
    for delay in [*np.linspace(0.0, 0.5, 20), 20.0]:  # the last waits for the end of the run
        shutil.rmtree(project.results(), ignore_errors=True)
        start = time.monotonic() + 20

        def reached(delay: float = delay) -> bool:
            # Delays count from the first byte of the temporary file, so that most kills fall into the writing.
            nonlocal start
            if project.results().exists() and any(project.results().glob(".*.tmp")):
                start = min(start, time.monotonic())
            return time.monotonic() - start >= delay

        kill_when(project, reached)
        if path.exists():
            assert len(result.load(path)["curve"]) == 1_000_000
        seen.add(path.exists())
        killed_while_writing += any(project.results().glob(".*.tmp"))
    assert seen == {True, False}, "the kills must fall on both sides of the rename"
    assert killed_while_writing > 0


@needs_make
@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_a_damaged_result_is_refused_by_name(project: Project, damage: str) -> None:
    assert project.make("fig01_a").returncode == 0
    project.age()
    path = project.results() / "fig01_a.npz"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        middle = content.index(b"curve.npy") + 60
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    else:
        np.savez(path, curve=np.arange(4.0))
    answer = project.make("figures")
    assert answer.returncode != 0
    assert "result build/smoke/results/fig01_a.npz must be a complete result file of format 1, got" in answer.stderr
    assert "delete it and run make again" in answer.stderr
    assert "Traceback" not in answer.stderr
    path.unlink()
    assert project.make("figures").returncode == 0


@needs_make
def test_a_number_outside_its_interval_stops_the_figure(project: Project) -> None:
    assert project.make("figures").returncode == 0
    project.age()
    wrong = {"all": EXPECTED["all"] | {"end": [0, 2.5, "a wrong law"]}}
    project.expect({"fig01_a": wrong, "fig02_b": EXPECTED})
    answer = project.make("-k", "figures")
    assert answer.returncode != 0
    assert "end = 3 is outside [0, 2.5] (a wrong law)" in answer.stderr
    assert "numbers from build/smoke/results/fig01_a.npz" in answer.stderr
    assert {name for name in project.stamps() if name.startswith("fig01_a")} == {"fig01_a.npz", "fig01_a.outside.png"}
    assert pictures("fig02_b") <= set(project.stamps())
    assert project.make("figures").returncode != 0, "it must fail again, not count as done"
    project.expect({"fig01_a": EXPECTED, "fig02_b": EXPECTED})
    before = project.stamps()["fig01_a.npz"]
    assert project.make("figures").returncode == 0
    assert set(project.stamps()) == ALL_OF_A | ALL_OF_B
    assert project.stamps()["fig01_a.npz"] == before, "drawing must not compute"


@needs_make
@pytest.mark.parametrize("scale", ["big", "smoke laptop", ""])
def test_an_unknown_scale_is_refused(project: Project, scale: str) -> None:
    answer = project.make("figures", scale=scale)
    assert answer.returncode != 0
    assert f'SCALE must be one of smoke, laptop, paper, got SCALE="{scale}"' in answer.stderr


@needs_make
def test_help_lists_every_documented_target(project: Project) -> None:
    listed = project.make("help").stdout
    for target in ("figures", "figures-all", "test", "test-slow", "check", "bench", "clean"):
        assert re.search(rf"^  {target} +[A-Z]", listed, re.MULTILINE), target
    assert "SCALE            smoke, laptop or paper (default: laptop)" in listed


def test_an_experiment_leaves_a_full_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "fig01_a.py"
    source.write_text("")
    monkeypatch.setattr(sys, "argv", ["fig01_a", "--scale", "smoke", "--results", str(tmp_path)])
    frame.main(str(source), lambda scale, progress: {"x": np.ones(2), "n": 4, "scale": scale}, seed=7)
    back = result.load(tmp_path / "fig01_a.npz")
    assert (back["n"], back["scale"], back.manifest["seed"]) == (4, "smoke", 7)
    assert back.manifest["versions"].keys() == {"python", "torch", "numpy", "scipy", "sgdsde"}
    assert all(back.manifest["versions"].values())
    for key in ("platform", "cpu_count", "threads", "device", "wall_seconds", "peak_bytes", "git_commit"):
        assert key in back.manifest, key
    assert back.manifest["sources"]["library"] == result.library_digest()
    assert not result.is_outdated(back.path)
    assert "fig01_a.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must be a mapping of names to arrays, got None"),
        ({}, "must be a mapping of names to arrays"),
        ({"a b": 1}, "must be made of letters, digits and _, got 'a b'"),
        ({"x": object()}, "array 'x' of fig01_a must hold numbers or strings, got object"),
    ],
)
def test_what_an_experiment_may_not_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: object, message: str
) -> None:
    (tmp_path / "fig01_a.py").write_text("")
    monkeypatch.setattr(sys, "argv", ["fig01_a", "--results", str(tmp_path / "results")])
    with pytest.raises((TypeError, ValueError), match=message):
        frame.main(str(tmp_path / "fig01_a.py"), lambda scale, progress: returned, seed=0)  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "results").exists()
