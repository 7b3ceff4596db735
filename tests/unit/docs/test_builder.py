"""The pages' builder: docstrings, links from names, links of a built site, formulas."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.builder import api, check_links, figures
from docs.builder.docstrings import restructured
from docs.builder.references import Repository

ROOT = Path(__file__).resolve().parents[3]


def test_entries_that_share_a_line_are_parted_where_a_known_name_begins() -> None:
    lines = restructured(
        ["First line.", "", "Args:", "    x: [n]. y: [n, c], as in: a list", "        of two."], {"x", "y"}
    )
    assert "    - **x**: [n]." in lines
    assert "    - **y**: [n, c], as in: a list of two." in lines


def test_formulas_stay_as_they_are_and_prose_loses_its_markup() -> None:
    lines = restructured(["The law |e|^2 of a *b* and w_:", "", "    S = |a|^2 *", "", "where ``predict``s."], (), {})
    assert "The law \\|e\\|^2 of a \\*b\\* and w\\_:" in lines
    assert lines[lines.index("::") + 2] == "    S = |a|^2 *"
    assert "where ``predict``\\ s." in lines


def test_sections_of_one_line_and_of_two_titles() -> None:
    lines = restructured(["Text.", "Cost: one product", "and more.", "Raises, Exactness: see ``a``."], (), {"a": "m.a"})
    assert [line for line in lines if line.startswith(":")] == [":Cost:", ":Errors and Exactness:"]
    assert "    and more." in lines
    both = restructured(["Text.", "Exactness: to 1e-6. Cost: about 15 radii."])
    assert [line for line in both if line.startswith(":")] == [":Exactness:", ":Cost:"]
    assert "    about 15 radii." in both
    assert any(":py:obj:`a <m.a>`" in line for line in lines)


def test_every_public_name_has_a_place() -> None:
    import sgdsde

    pages = {module.__name__: api.page(module, [], api.targets()) for module in api.public_modules()}
    for name in api.public_names(sgdsde):
        assert f":: sgdsde.{name}\n" in pages["sgdsde"]
    for module in ("dynamics", "stability", "pruning", "sampling"):
        for name in api.public_names(getattr(sgdsde, module)):
            assert f":: sgdsde.{module}.{name}\n" in pages[f"sgdsde.{module}"]


def test_a_name_offered_twice_is_told_once() -> None:
    modules = api.public_modules()
    told = [name for index, module in enumerate(modules) for name in api.own_names(module, modules[:index])]
    assert told.count("UnstableWarning") == 1
    assert told.count("DiagonalLinear") == 1


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    for name in ("tests/laws/test_a.py", "docs/page.md", "docs/tutorials/one.py", "paper_figs/fig01_x.py", "Makefile"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("def test_first():\n    pass\n")
    return Repository(tmp_path, {"predict": "sgdsde.predict"})


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("see [the page](page.md#part)", "see [the page](/page.md#part)"),
        ("[run](tutorials/one.py)", "[run](/generated/tutorials/one.rst)"),
        ("`laws/test_a.py`", "[`laws/test_a.py`](/generated/sources/tests/laws/test_a.py.rst)"),
        ("`laws/test_*.py`", "[`laws/test_*.py`](/generated/sources/tests/laws/test_a.py.rst)"),
        ("`test_first`", "[`test_first`](/generated/sources/tests/laws/test_a.py.rst)"),
        ("`::test_fi*`", "[`::test_fi*`](/generated/sources/tests/laws/test_a.py.rst)"),
        ("`fig01_x`", "[`fig01_x`](/generated/figures/fig01_x.md)"),
        ("`predict(p)` `predict`", "{py:obj}`predict(p) <sgdsde.predict>` `predict`"),
        ("`test_unknown` `nothing`", "`test_unknown` `nothing`"),
        ("```python\n`laws/test_a.py`\n```", "```python\n`laws/test_a.py`\n```"),
        ("[`laws/test_a.py`](page.md)", "[`laws/test_a.py`](/page.md)"),
        ("[out](https://example.org/page.md)", "[out](https://example.org/page.md)"),
    ],
)
def test_what_a_page_names_leads_to_it(repository: Repository, text: str, linked: str) -> None:
    assert repository.linked(text, repository.root / "docs") == linked


def test_a_broken_link_of_a_site_is_found(tmp_path: Path) -> None:
    assert "no index.html" in check_links.broken(tmp_path)[0]
    (tmp_path / "index.html").touch()
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#there"></a><a href="#top"></a><img src="x.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="https://example.org"></a><a href="a.html"></a>')
    assert check_links.broken(tmp_path) == [
        "a.html: b.html#there: no such place on the page",
        "a.html: x.png: no such file",
    ]


def test_every_figure_has_a_caption_and_the_gallery_says_what_is_not_drawn() -> None:
    every = figures.plates(ROOT)
    assert len(every) == len(list((ROOT / "paper_figs").glob("fig*.py")))
    plate = next(each for each in every if each.name == "fig35_front_page")
    page = figures.page(plate, Repository(ROOT, {}), None)
    assert "make fig35_front_page SCALE=smoke" in page
    assert "experiments/fig01_loss_prediction.py" in page
    assert all(f"**{field}.**" in page for field in figures.FIELDS)
