"""A stub project in a temporary folder: this project's Makefile and frames, with experiments of a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

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


class Project:
    """A stub project with two experiments, a library and a ready environment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        copied = ["Makefile", "experiments/frame.py", "experiments/result.py", "paper_figs/frame.py"]
        for name in (*copied, "sgdsde/provenance.py", "sgdsde/_version.py"):
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
