"""The script that times the way from a clone to a figure: its last part, in this environment."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

from docs import clone_to_figure
from tests.command_line import call_python
from tests.pages import ROOT

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def test_the_lines_of_the_readme_complete_the_script() -> None:
    tree = ast.parse(clone_to_figure.OWN_SCRIPT + clone_to_figure.readme_lines(ROOT))
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - made
    assert used == {"torch", "sgdsde", "DataLoader", "TensorDataset"}


def test_a_part_that_fails_ends_it(tmp_path: Path) -> None:
    with pytest.raises(clone_to_figure.subprocess.CalledProcessError):
        clone_to_figure.timed(
            "clone", ["git", "clone", "--quiet", str(tmp_path / "nothing"), str(tmp_path / "x")], tmp_path
        )


@pytest.mark.parametrize("words", [[], ["somewhere", "--here"]], ids=str)
def test_it_wants_a_repository_or_here(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["clone_to_figure.py", *words])
    with pytest.raises(SystemExit):
        clone_to_figure.main()
    assert "--here" in capsys.readouterr().err


@pytest.mark.slow
def test_the_figure_of_ones_own_model_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MPLBACKEND", "Agg")
    answer = call_python(str(ROOT / "docs" / "clone_to_figure.py"), "--here", "--folder", str(tmp_path))
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "mine" / "my_loss.png").stat().st_size > 10_000
    assert "prediction, measurement, figure:" in answer.stdout
