"""``--dry-run`` tells seconds, memory and plain runs of every command, and computes and writes nothing."""

from __future__ import annotations

import re

import pytest

import sgdsde
from sgdsde.cli import OK, USAGE
from tests.command_line import SMALL, SYNTHETIC, call

COMMANDS = {
    "compare": f"{SYNTHETIC} --steps 20 --runs 6",
    "predict": f"{SYNTHETIC} --steps 20",
    "predict of unknown cost": f"{SYNTHETIC} --steps 20 --dynamics MomentEquations",
    "diagnose": f"{SYNTHETIC} --steps 20",
    "sweep": f"{SYNTHETIC} --steps 20",
    "ntk": SMALL,
    "prune": f"{SMALL} --steps 20",
    "eoc": "--activation tanh",
    "explore": f"{SYNTHETIC} --steps 20",
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_cost_is_told_and_nothing_is_done(name, tmp_path, monkeypatch, capsys):
    def computes(*_: object, **__: object) -> None:
        raise AssertionError("a dry run computes nothing")

    monkeypatch.setattr(sgdsde, "linearize", computes)  # first, so that its own value is what comes back
    for module, function in (("linearization", "linearize"), ("pruning", "prune"), ("meanfield", "edge_of_chaos")):
        monkeypatch.setattr(getattr(sgdsde, module), function, computes)
    assert call(name.split()[0], COMMANDS[name], "--dry-run") == OK
    said = capsys.readouterr()
    assert said.err == ""
    assert "MiB" in said.out
    if name not in ("ntk", "eoc"):
        assert re.search(r"[\d.]+ s, \d+ MiB, as long as \S+ real training runs", " ".join(said.out.split()))
    assert ("unknown s" in said.out) == (name == "predict of unknown cost")
    assert list(tmp_path.iterdir()) == []


def test_runs_and_settings_are_counted(capsys):
    def seconds(words: str, stage: str) -> float:
        assert call(words, "--dry-run") == OK
        found = re.search(rf"{stage}\D*?([\d.]+) s", capsys.readouterr().out)
        assert found, stage
        return float(found[1])

    few, many = (seconds(f"compare {SYNTHETIC} --steps 2000 --runs {n}", f"{n} runs, at most") for n in (4, 4000))
    assert many > 300 * few
    few, many = (seconds(f"sweep {SYNTHETIC} --steps 200 --lrs {lrs}", r"\d+ predictions") for lrs in ("1", "1 " * 90))
    assert many > 30 * max(few, 0.005)


def test_bad_options_are_refused_all_the_same(capsys):
    for words in (f"predict {SYNTHETIC} --lr -1", f"sweep {SYNTHETIC} --momentum 2", "eoc --activation nothing"):
        assert call(words, "--dry-run") == USAGE
        assert capsys.readouterr().err.count("\n") == 1
