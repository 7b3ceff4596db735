"""Command lines by the hundred, good and bad: each a result or one line that names the option and what is accepted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgdsde.cli import OK, USAGE, main

QUICK = settings(
    max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(QUICK, max_examples=120)
LONGEST = 10.0
"""Processor seconds of a small command."""

SMALL = "--data synthetic --n-train 6 --n-test 3 --in-features 3 --width 4 --quiet"
BASE = {
    "predict": f"{SMALL} --batch-size 2 --steps 3",
    "diagnose": f"{SMALL} --batch-size 2 --steps 3",
    "compare": f"{SMALL} --batch-size 2 --steps 3 --runs 2",
    "sweep": f"{SMALL} --steps 3 --lrs 0.1 --batch-sizes 2",
    "ntk": f"{SMALL} --batch-size 2",
    "prune": f"{SMALL} --steps 3 --criteria random",
    "eoc": "",
    "explore": f"{SMALL} --batch-size 2 --steps 3 --momenta 0 --rates 3 --batch-sizes 2 --export page.html",
}
NOT_NUMBERS = ["many", "1e", "0x10", "1,5", "--", "1 2", "½", "[]", "None", "true"]
WHOLE = ["-1", "1.5", "nan", "inf", "1e400", "9" * 30, "-" + "9" * 30, *NOT_NUMBERS]
REAL = ["-1", "nan", "inf", "-inf", "1e400", *NOT_NUMBERS]
WORD = ["wrong", "MSE", "", "mse,ce", "-", "1", "None"]
ANY_COMMAND = {
    "--out": ["/proc/nothing/here", "/dev/null", "/dev/null/x"],
    "--config": ["", "nowhere.toml", "/dev/null", "/", ".", "~nobody_of_this_name", "x.json", "none", "-"],
    "--json": ["3", "true"],
    "--dry-run": ["no"],
}
FLAGS = ("--json", "--dry-run")
EVERYWHERE = {
    **ANY_COMMAND,
    "--data": WORD,
    "--n-train": ["0", *WHOLE],
    "--n-test": WHOLE,
    "--target": [*WORD, "class", "onehot"],
    "--image-size": WHOLE,
    "--in-features": ["0", *WHOLE],
    "--network": [*WORD, "cnn"],
    "--width": ["0", *WHOLE],
    "--depth": ["-1", "1.5", *NOT_NUMBERS],
    "--activation": [*WORD, "sgn(x)", "__import__", "Relu"],
    "--parametrization": WORD,
    "--sigma-w": REAL,
    "--sigma-b": REAL,
    "--seed": WHOLE,
    "--dtype": [*WORD, "float16", "int64"],
    "--device": ["nowhere", "cuda:99", "cpu:x", ""],
    "--loss": [*WORD, "l1"],
}
TRAINING = {
    "--lr": ["-0.1", "0", "x", "-1x", "halfx", "0x0", "1e400", "nanx", *REAL],
    "--batch-size": ["0", *WHOLE],
    "--steps": ["0", *WHOLE],
    "--momentum": ["1", "1.5", *REAL],
    "--dampening": ["nan", "inf", *NOT_NUMBERS],
    "--weight-decay": REAL,
    "--sampling": WORD,
    "--label-noise-std": REAL,
}
THEORY = {
    "--dynamics": [
        *WORD,
        "SDEPaths(",
        "SDEPaths(n_paths=-1)",
        "SDEPaths(paths=3)",
        "OrnsteinUhlenbeck(freeze=3)",
        "MomentEquations(order=7)",
        "__import__('os').system('true')",
        "Dynamics",
        "OutputLaw",
        "SDEPaths(n_paths=10**9)",
        "SDEPaths(1,2,3,4,5,6,7)",
        "lambda: 1",
        "(" * 200,
    ]
}
OPTIONS: dict[str, dict[str, list[str]]] = {
    "predict": {**EVERYWHERE, **TRAINING, **THEORY},
    "compare": {**EVERYWHERE, **TRAINING, **THEORY, "--runs": ["0", "1", *WHOLE]},
    "diagnose": {**EVERYWHERE, **TRAINING, "--tolerance": ["0", *REAL]},
    "sweep": {**EVERYWHERE, **TRAINING, **THEORY, "--lrs": ["-1", "x", "nanx"], "--batch-sizes": ["0", *WHOLE]},
    "ntk": {**EVERYWHERE, "--batch-size": ["0", *WHOLE], "--sampling": [*WORD, "shuffled"], "--top": WHOLE},
    "prune": {
        **EVERYWHERE,
        **TRAINING,
        "--criteria": WORD,
        "--sparsities": ["1", "-0.1", *REAL],
        "--rounds": WHOLE,
        "--scope": WORD,
        "--rescale": WORD,
    },
    "eoc": {**ANY_COMMAND, "--activation": WORD, "--sigma-b": REAL},
    "explore": {
        **EVERYWHERE,
        **TRAINING,
        "--batch-sizes": ["0", *WHOLE],
        "--momenta": ["1", *REAL],
        "--samplings": WORD,
        "--rates": ["0", "1", *WHOLE],
        "--runs": ["0", "1", *WHOLE],
        "--address": ["0.0.0.0", "::", "10.0.0.1", "example.org", *WORD],
        "--port": ["-1", "65536", *WHOLE],
        "--export": ["/proc/nothing/page.html", "/dev/null/x", "/"],
    },
}


@st.composite
def bad_lines(draw: st.DrawFn) -> tuple[list[str], str]:
    """A command line with one option that is wrong, or unknown, or without its value; and that option."""
    command = draw(st.sampled_from(sorted(OPTIONS)))
    fault = draw(st.sampled_from(["value"] * 8 + ["unknown", "missing", "twice"]))
    option = draw(st.sampled_from(sorted(OPTIONS[command])))
    if fault == "unknown":
        wrong = draw(st.sampled_from(["--learning-rate", "--batchsize", "--lrr", "-x", "--steps_", "--Width", "extra"]))
        return [command, *BASE[command].split(), wrong, "3"], wrong
    if fault == "missing":
        return [command, *BASE[command].split(), option], option
    value = draw(st.sampled_from(OPTIONS[command][option]))
    said = value if option in FLAGS else option
    return [command, *BASE[command].split(), option, value], said


GOOD: dict[str, list[str]] = {
    "--data": ["synthetic", "digits"],
    "--network": ["mlp", "resnet", "cnn"],
    "--loss": ["mse", "ce", "logistic", "huber"],
    "--target": ["auto", "sign", "onehot", "class"],
    "--activation": ["relu", "tanh", "erf", "gelu"],
    "--lr": ["half", "0.3x", "0.01", "5x"],
    "--sampling": ["with_replacement", "without_replacement", "shuffled"],
    "--momentum": ["0", "0.9"],
    "--weight-decay": ["0", "0.1"],
    "--label-noise-std": ["0", "0.2"],
    "--batch-size": ["1", "2", "6", "7"],
    "--image-size": ["0", "4"],
    "--dtype": ["float32", "float64"],
    "--parametrization": ["ntk", "standard"],
    "--sigma-b": ["0", "0.3"],
    "--steps": ["1", "4"],
}


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """A command line of options that are right one by one, though perhaps not together."""
    command = draw(st.sampled_from(["predict", "diagnose", "compare", "sweep", "ntk", "prune", "explore"]))
    chosen = draw(st.lists(st.sampled_from(sorted(set(GOOD) & set(OPTIONS[command]))), max_size=4, unique=True))
    words = [word for option in chosen for word in (option, draw(st.sampled_from(GOOD[option])))]
    if "--dynamics" in OPTIONS[command] and draw(st.booleans()):
        theories = [
            "MomentRecursion",
            "SDEPaths(n_paths=4)",
            "GaussianClosure",
            "GradientFlow",
            "LinearizedSGD(n_runs=4)",
        ]
        words += ["--dynamics", draw(st.sampled_from(theories))]
    return [command, *BASE[command].split(), *words, *draw(st.sampled_from([[], ["--json"], ["--dry-run"]]))]


TYPED_VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text('aé- 1"\\', max_size=4),
    st.dates(),
    st.lists(st.integers(), max_size=2),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, str]:
    """A command, the text of a file of options with a value that is wrong or a name that is none, and that name."""
    command = draw(st.sampled_from(sorted(OPTIONS)))
    allowed = {name: values for name, values in OPTIONS[command].items() if name not in ("--config", "--out")}
    if draw(st.booleans()):
        option = draw(st.sampled_from(sorted(set(allowed) - {*FLAGS, "--dynamics"})))
        value = repr(draw(st.sampled_from(allowed[option]))).replace("'", '"')
    else:
        option = draw(st.sampled_from(["learning-rate", "Width", "config", "lr ", "tests"]))
        drawn = draw(TYPED_VALUES)
        value = str(drawn) if isinstance(drawn, float) else json.dumps(drawn, default=str, ensure_ascii=False)
    text = f'"{option.removeprefix("--")}" = {value}\n'
    return command, draw(st.sampled_from(["", f"[{command}]\n"])) + text, option


def run(words: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in an empty folder; at most ten processor seconds."""
    out, err, before, start = io.StringIO(), io.StringIO(), Path.cwd(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(words)
        finally:
            os.chdir(before)
    taken = time.process_time() - start
    assert taken < LONGEST, f"{taken:.1f} s: {words}"
    return code, out.getvalue(), err.getvalue()


def check_answer(words: list[str]) -> tuple[int, str]:
    """Done, or one line of error; NaN is never printed without a warning."""
    code, said, err = run(words)
    lines = [line for line in err.splitlines() if not line.startswith("sgdsde: warning: ")]
    assert code in (OK, USAGE), f"{words}\n{err}"
    if code == USAGE:
        assert len(lines) == 1, f"{words}\n{err}"
        assert re.match(r"sgdsde: error: \S", lines[0]), f"{words}\n{err}"
        return code, lines[0]
    assert lines == [], f"{words}\n{err}"
    if "--json" in words:
        json.loads(said, parse_constant=lambda word: pytest.fail(f"{words}: {word} is no JSON"))
        return code, ""
    if re.search(r"\bnan\b", said):
        assert "warning" in err or "no limit" in said or words[0] == "diagnose", f"{words}\n{said}"
    return code, ""


def check_bad_line(line: tuple[list[str], str]) -> None:
    words, option = line
    code, error = check_answer(words)
    if code == USAGE:
        names = {option, option.strip("-").replace("-", "_"), option.strip("-")}
        assert any(name in error for name in names), f"{words}\n{error} does not name {option}"
        assert re.search(r"must be|needs|unrecognized|invalid|cannot|not |expected|one of|missing", error, re.I), error


def check_line(words: list[str]) -> None:
    check_answer(words)


def check_file(file: tuple[str, str, str]) -> None:
    command, text, option = file
    typed = BASE[command].split()
    if option in typed:  # what is typed would go before the file
        place = typed.index(option)
        del typed[place : place + 2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "options.toml")
        path.write_text(text)
        code, error = check_answer([command, *typed, "--config", str(path)])
    if code == USAGE:
        name = option.strip("- ")
        assert any(word in error for word in (name, name.replace("-", "_"))), f"{command}: {text}{error}"


CHECKS = {check_bad_line: {"line": bad_lines()}, check_line: {"words": lines()}, check_file: {"file": files()}}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_few_command_lines_are_answered(check):
    QUICK(given(**CHECKS[check])(check))()


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_two_hundred_command_lines_are_answered(check):
    MANY(given(**CHECKS[check])(check))()
