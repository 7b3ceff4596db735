"""A release: one version everywhere, pinned tools, types that a user's strict checker accepts."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sgdsde

ROOT = Path(__file__).resolve().parents[2]


def test_one_version_everywhere() -> None:
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation is not None
    assert heading is not None
    assert citation.group(1) == heading.group(1) == sgdsde.__version__


def test_every_tool_of_an_extra_is_pinned() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    for extra, lines in setup["options.extras_require"].items():
        names = [re.split(r"[>=\[]", line)[0].replace("_", "-") for line in lines.split()]
        assert {name for name in names if name != "sgdsde"} <= pinned, extra


@pytest.mark.slow
def test_what_a_user_writes_passes_a_strict_checker(tmp_path: Path) -> None:
    """The script as it is, and one that takes a loss for a text, which must fail."""
    script = (ROOT / "tests" / "data" / "user_script.py").read_text()
    wrong = tmp_path / "wrong.py"
    wrong.write_text(script.replace("text: str = result.sentence", "text: str = result.train"))
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    checked = [
        subprocess.run([*command, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=600)
        for path in (ROOT / "tests" / "data" / "user_script.py", wrong)
    ]
    assert checked[0].returncode == 0, checked[0].stdout
    assert "Incompatible types in assignment" in checked[1].stdout
