"""Every code block of the README and the pages, run as it stands there.

Blocks of one page share their names, as a reader's session would, and start from those of ``tests.pages.given``; those
of the README stand for themselves. Where a block asks for more examples, steps or runs than a test can wait for,
``SMALLER`` says what takes their place here; the README's first lines as they stand are run by a slow test.
"""

from __future__ import annotations

import configparser
import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import sgdsde
from docs.builder.printed import output_of, shown
from sgdsde.cli import main
from tests.pages import LANGUAGES, PAGES, ROOT, blocks, given

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

SHELL = {"--width 1024": "--width 16 --n-train 16 --n-test 8 --quiet", "--steps 400": "--steps 10"}
SMALLER = {
    "README.md": {
        "n_train=256": "n_train=24",
        "512": "64",
        "n_steps=200": "n_steps=20",
        "10, 21, 68, 200": "10, 20",
        "lr=0.3": "lr=0.05",
        "n_steps=100": "n_steps=10",
        "n_runs=16": "n_runs=4",
    },
    "quick_start.md": {"n_train=64": "n_train=24", "256": "64", "n_steps=60": "n_steps=20", "lr=0.2": "lr=0.05"}
    | SHELL,
    "diagnosis.md": {"n_steps=400": "n_steps=20"},
    "measuring.md": {"n_steps=400": "n_steps=8", "(0.03, 8)": "(0.03, 4)", "(0.025, 20)": "(0.025, 7)"},
    "stability.md": {"n_steps=200": "n_steps=20"},
    "large_kernels.md": {
        ", 500)": ", 5)",
        "rank=500": "rank=5",
        "n_outputs=10": "n_outputs=1",
        "1 / 10": "1",
        "1000": "50",
    },
    "many_devices.md": {"n_steps=100": "n_steps=5"},
    "pruning.md": {", 300)": ", 20)"},
    "cleaning.md": {"100": "12"},
    "command_line.md": SHELL,
    "explorer.md": {"--width 512": "--width 16 --n-train 16 --n-test 8 --steps 9 --momenta 0 --rates 5 --quiet"},
}
"""By page: words of its blocks, and the words that take their place here."""

SPEAKS = ("sgdsde", "make", "pip", "git", "python", "python3")
"""Programs that blocks of the shell may call."""


def smaller(page: Path, text: str) -> str:
    for old, new in SMALLER.get(page.name, {}).items():
        text = text.replace(old, new)
    return text


def test_every_replaced_word_is_on_its_page() -> None:
    for name, words in SMALLER.items():
        (page,) = (each for each in PAGES if each.name == name)
        text = "".join(block.text for block in blocks(page))
        assert [word for word in words if word not in text] == [], name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_its_language(page: Path) -> None:
    assert [(each.line, each.language) for each in blocks(page) if each.language not in LANGUAGES] == []


@pytest.mark.filterwarnings("ignore:lr=:sgdsde.UnstableWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        for block in blocks(page, "python"):
            if page.name == "README.md":
                names = given()
            code = compile(smaller(page, block.text), f"{page.name}:{block.line}", "exec")
            exec(code, names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_json_of_a_page_is_json(page: Path) -> None:
    for block in blocks(page, "json"):
        json.loads(block.text)


def commands() -> list[tuple[Path, list[str]]]:
    """Every line after a prompt, without its comment, as words."""
    found = []
    for page in PAGES:
        for block in blocks(page, "console"):
            lines = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
            assert lines, f"{page.name}:{block.line} has no line with a prompt"
            found += [
                (page, shlex.split(smaller(page, part), comments=True)) for line in lines for part in line.split("&&")
            ]
    return found


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_a_page_types_is_there(page: Path, words: list[str], tmp_path: Path, monkeypatch) -> None:
    program, *rest = words
    if program == "cd":
        return
    assert Path(program).name in SPEAKS
    if program == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        asked = [word for word in rest if "=" not in word]
        assert set(asked) <= {*targets, *(path.stem for path in ROOT.glob("paper_figs/fig*.py"))}
    elif program == "pip":
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = re.findall(r"\[(.*)\]", " ".join(rest))
        assert {extra for each in extras for extra in each.split(",")} <= set(setup["options.extras_require"])
    elif program == "sgdsde":
        monkeypatch.chdir(tmp_path)
        assert main(rest) == 0
        assert list(tmp_path.rglob("manifest.json"))
    elif Path(program).name.startswith("python"):
        file = ROOT / (f"{rest[1].replace('.', '/')}.py" if rest[0] == "-m" else rest[0])
        assert file.is_file()


def form(output: str) -> list[str]:
    """The distinct rows of a table, every number a #."""
    rows = [" ".join(re.sub(r"[-+]?\d[\d.e+-]*", "#", line).split()) for line in output.splitlines()]
    return list(dict.fromkeys(row for row in rows if row.startswith(("step", "#"))))


def test_the_readme_shows_what_its_lines_print() -> None:
    code, output = shown((ROOT / "README.md").read_text())
    assert form(output_of(smaller(ROOT / "README.md", code))) == form(output)
    assert len(form(output)) == 2


@pytest.mark.slow
def test_the_whole_readme_prints_the_numbers_that_it_shows() -> None:
    code, output = shown((ROOT / "README.md").read_text())
    written, printed = (
        [
            [float(number) for number in line.replace("%", "").split()]
            for line in text.splitlines()
            if re.match(r"\s+\d", line)
        ]
        for text in (output, output_of(code))
    )
    assert len(written) == len(printed) > 5
    for told, found in zip(written, printed):
        assert told[0] == found[0]
        assert told[1:3] == pytest.approx(found[1:3], rel=0.02)


def test_a_page_that_types_what_is_not_there_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (
        ["make", "nothing-of-this-name"],
        ["pip", "install", ".[nothing]"],
        ["python", "-m", "benchmarks.nothing"],
    ):
        with pytest.raises(AssertionError):
            test_what_a_page_types_is_there(tmp_path, words, tmp_path, monkeypatch)
    assert sys.modules["sgdsde"] is sgdsde
