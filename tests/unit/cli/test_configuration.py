"""``--config`` and ``--json``: a run is repeated from its folder, and its answer is one JSON object."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import sgdsde
from sgdsde.cli import INTERNAL, INTERRUPTED, OK, USAGE, commands, configuration
from sgdsde.run_folder import MANIFEST
from tests.command_line import SYNTHETIC, call, call_python, heeds_interrupts

COMMANDS = {
    "compare": f"{SYNTHETIC} --steps 5 --runs 3",
    "predict": f"{SYNTHETIC} --steps 5 --lr 0.3x --momentum 0.5 --nesterov --seed 3",
    "diagnose": f"{SYNTHETIC} --steps 5 --lr 0.02",
    "sweep": f"{SYNTHETIC} --steps 5 --lrs 0.2x 0.4 --batch-sizes 2 4",
    "ntk": f"{SYNTHETIC} --top 3",
    "prune": f"{SYNTHETIC} --steps 5 --criteria snip random --sparsities 0.5",
    "eoc": "--activation erf --sigma-b 0.3",
}
NOT_REPEATED = {"argv", "written", "wall_time_s", "files", "digest", "folder"}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answer(capsys, *words):
    assert call(*words, "--json") == OK
    said = capsys.readouterr().out
    assert said.count("\n") == 1

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(said, parse_constant=refuse)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_configuration_of_a_folder_repeats_the_run(name, capsys):
    first = answer(capsys, name, COMMANDS[name], "--out first")
    assert {
        key for key, value in json.loads(Path("first", MANIFEST).read_text()).items() if first[key] != value
    } == set()
    for place in ("first", f"first/{MANIFEST}"):
        again = answer(capsys, f"{name} --config {place} --out again --overwrite")
        timed = (
            {"sentence", "advice", "predictor", "answer"} if name == "diagnose" else set()
        )  # costs, and what follows
        assert {key for key in first if first[key] != again[key]} <= NOT_REPEATED | timed
    for file in sorted(Path("first").glob("*.npz")):
        with np.load(file) as one, np.load(Path("again", file.name)) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one.files)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dry_run_answers_in_json_too(name, capsys, tmp_path):
    found = answer(capsys, name, COMMANDS[name], "--dry-run")
    assert found["command"] == name
    assert found["expected_cost"]["bytes"] == max(stage["bytes"] for stage in found["expected_cost"]["stages"])
    assert list(tmp_path.iterdir()) == []


def test_the_numbers_in_json_are_those_of_the_library(capsys):
    found = answer(capsys, "predict", COMMANDS["predict"], "--out p")
    saved = sgdsde.Trajectory.load("p/predicted.npz")
    assert found["losses"]["train_mean"] == saved.train_loss.mean.tolist()
    assert found["losses"]["step"] == saved.steps.tolist()
    assert (
        answer(capsys, "sweep", SYNTHETIC, "--steps 5 --lrs 9x --batch-sizes 2")["settings"][0]["train_loss"] == "inf"
    )


def test_what_is_typed_wins_over_the_file_and_the_file_over_defaults(capsys):
    Path("mine.toml").write_text(
        'data = "synthetic"\nn_train = 16\nn-test = 8\nin_features = 5\nwidth = 16\nbatch_size = 4\n'
        '[predict]\nsteps = 3\nlr = 0.25\nmomentum = 0.5\nnesterov = true\n[sweep]\nsteps = 4\nlrs = ["0.5x", 0.1]\n'
        "batch_sizes = [2, 4]\n[compare]\nruns = 7\n"
    )
    options = answer(capsys, "predict --config mine.toml --momentum 0.25")["configuration"]
    expected = {"n_train": 16, "n_test": 8, "steps": 3, "lr": 0.25, "momentum": 0.25, "nesterov": True, "depth": 1}
    assert {key: options[key] for key in expected} == expected
    options = answer(capsys, "sweep --config=mine.toml")["configuration"]
    assert (options["lrs"], options["batch_sizes"], options["steps"]) == (["0.5x", "0.1"], [2, 4], 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr = ", "--config must be a TOML file, or a run's folder or manifest.json, got file.toml, of which Invalid"),
        ("runs = 3", "with options of predict only, got file.toml with runs"),
        ("learning_rate = 3", "with options of predict only, got file.toml with learning_rate"),
        ('config = "other.toml"', "with options of predict only, got file.toml with config"),
        (
            "[predikt]\nlr = 1",
            "with tables of compare, predict, diagnose, sweep, ntk, prune, eoc, explore, got file.toml wit",
        ),
        ("nesterov = 1", "--nesterov must be true or false in file.toml, got 1"),
        ("lr = true", "--lr must be a number or a word in file.toml, got True"),
        ("lr = [1, 2]", "--lr must be a number or a word in file.toml, got [1, 2]"),
        ("lr = 1979-05-27", "--lr must be a number or a word in file.toml, got datetime.date(1979, 5, 27)"),
        ("[predict.lr]\na = 1", "--lr must be a number or a word in file.toml, got {'a': 1}"),
        ("batch_size = 1.5", "--batch-size must be a whole number, got '1.5'"),
        ('lr = "fast"', "--lr must be a positive number, or a part of the limit, got fast"),
        ("lr = nan", "--lr must be a positive number, or a part of the limit, got nan"),
        ('data = "imagenet"', "invalid choice 'imagenet' for argument '--data'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, message, capsys):
    Path("file.toml").write_text(text)
    assert call("predict --config file.toml") == USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("sgdsde: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1


def test_what_is_no_file_or_another_run_is_refused(capsys, tmp_path):
    Path("folder").mkdir()
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("foreign.json").write_text('{"lr": 1}')
    assert call("eoc --activation erf --out edge") == OK
    changed = Path("edge", MANIFEST).read_text().replace("erf", "tanh")
    Path("changed.json").write_text(changed)
    cases = {
        "nowhere.toml": "got nowhere.toml, which is no file",
        "folder": f"got folder/{MANIFEST}, which is no file",
        "/dev/zero": "got /dev/zero, which is no file",
        "~nobody_of_this_name/x.toml": "which is no file",
        "binary.toml": "got binary.toml, of which",
        "foreign.json": "got foreign.json, not the manifest of a run",
        "changed.json": "got changed.json, changed after it was written",
    }
    for path, message in cases.items():
        assert call("eoc --config", path) == USAGE
        error = capsys.readouterr().err
        assert error.startswith("sgdsde: error: --config must be a TOML file, or a run's folder or manifest.json")
        assert message in error
    assert call("predict --config edge") == USAGE
    assert "--config must be of a run of predict, got edge/manifest.json, which is of eoc" in capsys.readouterr().err
    assert call("eoc --config edge --config edge") == USAGE
    assert "--config must be given once, got 2 times" in capsys.readouterr().err


def test_python_without_toml_says_so(monkeypatch, capsys):
    monkeypatch.setattr(configuration, "tomllib", None)
    Path("a.toml").write_text("lr = 1")
    assert call("predict --config a.toml") == USAGE
    assert "under Python 3.10, got a.toml; use Python 3.11" in capsys.readouterr().err


def test_an_error_leaves_stdout_empty_under_json(capsys):
    assert call("predict --json --steps 0") == USAGE
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (None, OK, ""),
        (ValueError("no"), USAGE, "sgdsde: error: no\n"),
        (MemoryError(), USAGE, "sgdsde: error: MemoryError\n"),
        (KeyboardInterrupt(), INTERRUPTED, "sgdsde: error: interrupted; nothing was written\n"),
        (IndexError("i"), INTERNAL, "sgdsde: error: IndexError: i (a fault of sgdsde; SGDSDE_DEBUG=1 shows where)\n"),
    ],
)
def test_exit_codes(error, code, line, monkeypatch, capsys):
    def run(*_):
        if error is not None:
            raise error

    monkeypatch.setattr(commands, "run", run)
    assert call("eoc") == code
    assert capsys.readouterr().err == line
    page = Path(__file__).resolve().parents[3] / "docs" / "command_line.md"
    assert f"| {code} |" in page.read_text()


def test_an_interrupt_of_a_real_run_leaves_nothing(tmp_path):
    words = [sys.executable, "-m", "sgdsde", *f"compare {SYNTHETIC} --steps 400000 --runs 64".split()]
    sources = str(Path(__file__).resolve().parents[3])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": sources}
    with subprocess.Popen(words, env=environment, preexec_fn=heeds_interrupts, **pipes) as process:
        process.stdout.readline()  # the problem: the work has begun
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (INTERRUPTED, "sgdsde: error: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_of_the_shell_knows_commands_and_options(shell):
    answer = call_python("-m", "sgdsde", "--tyro-print-completion", shell)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert all(word in answer.stdout for word in (*COMMANDS, "--batch-size", "--config", "with_replacement"))
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=answer.stdout, text=True, timeout=60).returncode == 0
