"""The frame of experiments and figures: nothing that is not done looks done, and only what changed is redone.

The make targets run on a stub project: this project's Makefile and frames, with experiments of a few lines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from experiments import frame, result
from paper_figs import frame as figure_frame

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = {"experiment": "fig01_a", "scale": "smoke", "sources": {"library": "x"}}

EXPERIMENT = """
    import numpy as np
    from experiments.frame import main
    from experiments.shared import FACTOR
    SEED = 3
    def run(scale, progress):
        total = sum(progress("steps")(range(5)))
        return {"curve": FACTOR * np.arange(4.0), "total": total, "word": "digits"}
    if __name__ == "__main__":
        main(__file__, run, seed=SEED)
"""
FIGURE = '''
    """A stub. Paper: none. Figure: none. Claim: the curve ends at 3. Refuted by: any other end."""
    import pathlib
    def claims(result):
        return {"end": result["curve"][-1], "total": result["total"]}
    class Picture:
        def savefig(self, path, metadata=None):
            pathlib.Path(path).write_text("picture")
    def draw(result):
        return Picture()
'''
EXPECTED = {"all": {"end": [3, 3, "arange"], "total": [10, None, "sum of 0..4"]}}

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


class Project:
    """A stub project with two experiments, a library and a ready environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("Makefile", "experiments/frame.py", "experiments/result.py", "paper_figs/frame.py"):
            self.write(name, (ROOT / name).read_text())
        # Stand-ins for what costs seconds to import.
        self.write(
            "torch.py", "def get_num_threads(): return 1\nclass device:\n    def __init__(self, w): self.type = w\n"
        )
        self.write("paper_figs/style.py", "def apply(): pass\n")
        self.write("sgdsde/__init__.py", "VALUE = 1\n")
        self.write("experiments/shared.py", "FACTOR = 1.0\n")
        for name in ("fig01_a", "fig02_b"):
            self.write(f"experiments/{name}.py", EXPERIMENT)
            self.write(f"paper_figs/{name}.py", FIGURE)
        self.write(
            "experiments/fig02_b.py", EXPERIMENT.replace("from experiments.shared import FACTOR", "FACTOR = 1.0")
        )
        self.expect({"fig01_a": EXPECTED, "fig02_b": EXPECTED})
        for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
            self.write(name, "")
        self.write(".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (root / ".venv/bin/python").chmod(0o755)
        self.write(".venv/.installed", "")
        self.age()

    def write(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))

    def expect(self, entries: object) -> None:
        self.write("paper_figs/expected.json", json.dumps(entries))

    def age(self) -> None:
        """Date everything that exists to an hour ago, keeping its order, so that an edit is newer beyond doubt."""
        for path in self.root.rglob("*"):
            if path.is_file():
                stamp = path.stat().st_mtime
                os.utime(path, (stamp - 3600, stamp - 3600))

    def make(self, *words: str, scale: str = "smoke") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        command = ["make", *words, f"SCALE={scale}"]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, env=environment, timeout=120)

    def stamps(self, scale: str = "smoke") -> dict[str, int]:
        """Modification times of everything built, by file name."""
        return {path.name: path.stat().st_mtime_ns for path in (self.root / "build" / scale).rglob("*.*")}

    def redone(self, edit: Callable[[], object], scale: str = "smoke") -> set[str]:
        """What a ``make figures`` after an edit writes anew."""
        self.age()
        before = self.stamps(scale)
        edit()
        answer = self.make("figures", scale=scale)
        assert answer.returncode == 0, answer.stderr
        return {name for name, stamp in self.stamps(scale).items() if before.get(name) != stamp}

    def touch(self, name: str) -> Callable[[], None]:
        return lambda: (self.root / name).touch()

    def results(self, scale: str = "smoke") -> Path:
        return self.root / "build" / scale / "results"


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
    for delay in np.linspace(0.0, 1.0, 25):
        path.unlink(missing_ok=True)
        start = time.monotonic() + 60

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
    assert seen == {True, False}, "the kills must fall on both sides of the rename"


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


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    arrays = {
        "x": np.arange(6).reshape(2, 3),
        "empty": np.zeros((0, 2)),
        "bad": np.array([np.nan, np.inf]),
        "w": np.array("é"),
    }
    result.save(tmp_path / "r.npz", arrays, MANIFEST)
    back = result.load(tmp_path / "r.npz")
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    assert back.manifest["scale"] == "smoke"
    with np.load(tmp_path / "r.npz") as plain:
        np.testing.assert_array_equal(plain["x"], arrays["x"])
    with pytest.raises(KeyError, match="must hold an array 'y', got bad, empty, w, x"):
        back["y"]


def test_no_changed_or_missing_byte_alters_an_array_unnoticed(tmp_path: Path) -> None:
    """A changed byte is refused, or belongs to the zip's bookkeeping (a date, a stream's end) and changes nothing."""
    path = tmp_path / "r.npz"
    result.save(path, {"x": np.arange(3.0)}, MANIFEST)
    original = result.load(path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = {place for member in archive.infolist() for place in _content_of(member, content)}
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :])
        try:
            back = result.load(path)
            np.testing.assert_array_equal(back["x"], np.arange(3.0))
            assert back.manifest == original.manifest
            assert position not in inside
        except result.DamagedResultError:
            pass
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(result.DamagedResultError, match="delete it and run make again"):
            result.load(path)


def _content_of(member: zipfile.ZipInfo, content: bytes) -> range:
    """Where the compressed bytes of a member lie: after 30 bytes, its name and its extra field, up to the end mark."""
    name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
    start = member.header_offset + 30 + name + extra
    return range(start, start + member.compress_size - 2)


def test_a_failed_save_keeps_the_old_result(tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    result.save(path, {"x": np.arange(3.0)}, MANIFEST)
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        result.save(path, {"x": np.arange(4.0), "y": np.array([object()])}, MANIFEST)
    assert len(result.load(path)["x"]) == 3
    assert list(tmp_path.iterdir()) == [path]


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


def expected(tmp_path: Path, entries: object, scale: str = "smoke") -> figure_frame.Expectation:
    path = tmp_path / "expected.json"
    path.write_text(json.dumps(entries))
    return figure_frame.expectation(path, "fig01_a", scale)


def test_numbers_are_compared_with_their_intervals(tmp_path: Path) -> None:
    rows = {"all": {"a": [0, 1, "law"], "b": [2, None, "law"]}, "smoke": {"a": [0, 5, "few runs"], "c?": [0, 1, "law"]}}
    at_smoke, at_laptop = expected(tmp_path, {"fig01_a": rows}), expected(tmp_path, {"fig01_a": rows}, "laptop")
    assert figure_frame.complaints({"a": 5, "b": 1e9}, at_smoke) == []
    assert figure_frame.complaints({"a": 5, "b": 2}, at_laptop) == ["a = 5 is outside [0, 1] (law)"]
    assert figure_frame.complaints({"a": float("nan"), "b": 3}, at_smoke) == ["a = nan is outside [0, 5] (few runs)"]
    assert figure_frame.complaints({"a": 1, "b": 3, "c": 2}, at_smoke) == ["c = 2 is outside [0, 1] (law)"]
    assert figure_frame.complaints({"a": 1, "b": 3, "d": 2}, at_smoke) == ["d = 2 has no interval"]
    assert figure_frame.complaints({"a": 1}, at_smoke) == ["b is expected in [2, inf] (law) but not claimed"]


@pytest.mark.parametrize(
    "row", [[1, 0, "law"], [0, 1], [0, 1, ""], [None, None, "law"], ["x", 1, "law"], 3, [0, float("nan"), "law"]]
)
def test_an_interval_that_is_none_is_refused(tmp_path: Path, row: object) -> None:
    with pytest.raises(
        figure_frame.FigureError, match=r'fig01_a: a in .* must be \[low, high, "where it comes from"\]'
    ):
        expected(tmp_path, {"fig01_a": {"all": {"a": row}}})


def test_a_figure_without_an_entry_or_at_an_unknown_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(figure_frame.FigureError, match="must hold an entry for fig01_a, got none"):
        expected(tmp_path, {})
    with pytest.raises(figure_frame.FigureError, match=r"must be all, smoke, laptop or paper, got \['huge'\]"):
        expected(tmp_path, {"fig01_a": {"huge": {}}})


def test_the_style_gives_every_curve_a_color_of_its_own() -> None:
    from paper_figs import style

    colors = [style.look(name)["color"] for name in style.LOOKS]
    assert len(set(colors)) == len(colors)
    with pytest.raises(KeyError, match="add its look to paper_figs"):
        style.look("nonsense")


@pytest.mark.filterwarnings("default")
def test_the_style_draws(tmp_path: Path) -> None:
    import matplotlib as mpl

    from paper_figs import style

    with mpl.rc_context():
        style.apply()
        figure, axes = style.panels(1, 2, height=2.5)
        x = np.arange(5.0)
        style.band(axes[0, 0], x, x, "measured", low=x - 1, high=x + 1)
        for name in style.LOOKS:
            style.curve(axes[0, 1], x, x, name)
        style.legend_above(figure, axes)
        figure.savefig(tmp_path / "figure.png")
    assert len(figure.legends[0].texts) == len(style.LOOKS)


def test_the_same_result_gives_the_same_pictures(tmp_path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    def draw(result: result.Result) -> object:
        picture, axis = plt.subplots()
        axis.plot(result["x"])
        return picture

    module = ModuleType("paper_figs.fig01_a")
    module.draw = draw  # type: ignore[attr-defined]
    result.save(tmp_path / "r.npz", {"x": np.arange(3.0)}, MANIFEST)
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        with mpl.rc_context():
            figure_frame._save_pictures(module, result.load(tmp_path / "r.npz"), folder, outside=False, caption="η 1")
        assert {path.name for path in folder.iterdir()} == pictures("fig01_a")
        written.append([(folder / name).read_bytes() for name in sorted(pictures("fig01_a"))])
    plt.close("all")
    assert written[0] == written[1]
    assert written[0][0].startswith(b"%PDF")
    assert written[0][1].startswith(b"\x89PNG")


FIGURES = sorted(path.stem for path in (ROOT / "paper_figs").glob("fig*.py"))


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_has_caption_experiment_and_intervals(name: str) -> None:
    source = (ROOT / "paper_figs" / f"{name}.py").read_text()
    for field in figure_frame.CAPTION_FIELDS:
        assert field in source, field
    experiment = figure_frame._result_path(name, Path()).stem
    assert (ROOT / "experiments" / f"{experiment}.py").is_file()
    for scale in frame.SCALES:
        assert figure_frame.expectation(figure_frame.EXPECTED, name, scale).intervals


def test_no_interval_without_its_figure() -> None:
    assert set(json.loads(figure_frame.EXPECTED.read_text())) <= set(FIGURES)
