"""The pages name tests and modules that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("*.md")])


def named(text: str) -> list[str]:
    """Paths of Python files of tests, stars allowed."""
    return re.findall(r"\b(?:tests/)?((?:laws|unit|end_to_end)/[\w/*]+\.py)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    missing = [name for name in named(page.read_text()) if not list((ROOT / "tests").glob(name))]
    assert missing == []


def test_docstrings_name_tests_that_are_there() -> None:
    for path in (ROOT / "sgdsde").rglob("*.py"):
        missing = [name for name in named(path.read_text()) if not list((ROOT / "tests").glob(name))]
        assert missing == [], path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_that_a_page_links_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_equation_numbers_run_without_gaps() -> None:
    text = (ROOT / "docs" / "derivations.md").read_text()
    found = [(int(section), int(number)) for section, number in re.findall(r"\\tag\{(\d+)\.(\d+)\}", text)]
    expected = [
        (s, k) for s in sorted({s for s, _ in found}) for k in range(1, 1 + sum(each == s for each, _ in found))
    ]
    assert len(found) > 25
    assert found == expected


def test_a_missing_file_is_found() -> None:
    assert named("see `laws/test_a.py`, tests/unit/kernel/test_b.py and `unit/test_c*.py`") == [
        "laws/test_a.py",
        "unit/kernel/test_b.py",
        "unit/test_c*.py",
    ]
