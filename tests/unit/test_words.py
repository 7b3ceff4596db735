"""Printed results: labelled paragraphs, and terms that the one glossary explains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sgdsde._words import GLOSSARY, WIDTH, listed, percent, told

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_explains_the_same_terms_in_the_same_words() -> None:
    page = (ROOT / "docs" / "glossary.md").read_text()
    entries = dict(re.findall(r"^## (.+)\n\n(.+)$", page, re.MULTILINE))
    assert entries == GLOSSARY


def test_every_term_that_the_library_names_is_an_entry() -> None:
    named = set()
    for path in (ROOT / "sgdsde").rglob("*.py"):
        for block in re.findall(r"terms(?: \+)?=\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            named |= set(re.findall(r'"([^"]+)"', block)) & {word for word in re.findall(r'"([a-z -]+)"', block)}
    assert len(named) >= 4
    assert named - {"MovingKernel"} <= set(GLOSSARY)


def test_paragraphs_are_labelled_and_fit() -> None:
    text = told(asked="a " * 120, answer="b", sure="c", do="d", table=["1 2"], terms=["run"])
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line.split(":")[0] for line in lines if re.match(r"\w[\w ]*:", line)] == [
        "Asked",
        "Answer",
        "How sure",
        "What to do",
    ]
    assert "1 2" in lines
    assert f"  run: {GLOSSARY['run']}" in text


def test_a_term_without_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError):
        told(asked="", answer="", sure="", do="", terms=["eigenfoo"])


def test_numbers_in_words() -> None:
    assert [percent(x) for x in (0.123, 0.0123, 1.0, float("inf"))] == ["12 %", "1.2 %", "100 %", "without bound"]
    assert (listed(["a"]), listed(["a", "b"]), listed("abc", "or")) == ("a", "a and b", "a, b or c")
