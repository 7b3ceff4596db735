"""The Sphinx extension: writes the generated pages, and rewrites what the hand-written ones name.

Generated pages lie in ``docs/generated`` and are rewritten only where they change, so that a second build is quick.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from docs.builder import api, docstrings, figures, sources
from docs.builder.references import Repository

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"
REPOSITORY_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Markdown of the repository's root that becomes a page; the README is the first page."""


class Div(SphinxDirective):
    """A container with classes, for the cards of the gallery."""

    has_content = True
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        container = nodes.container("", classes=(self.arguments or [""])[0].split())
        self.state.nested_parse(self.content, self.content_offset, container)
        return [container]


class Site:
    """What the hooks share while the site is built."""

    def __init__(self) -> None:
        self.targets = api.targets()
        self.repository = Repository(ROOT, self.targets)
        self.written: set[Path] = set()

    def write_text(self, path: Path, text: str) -> None:
        """Keep an equal file as it is, with its time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(path)
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)

    def generate(self, _: Sphinx) -> None:
        """All pages before Sphinx looks for them: sources last, of what the others name."""
        api.write(GENERATED / "api", self.write_text)
        figures.write(GENERATED / "figures", self.repository, self.write_text)
        for name in REPOSITORY_PAGES:
            self.write_text(GENERATED / name, self.repository.linked((ROOT / name).read_text(), ROOT))
        for path in (ROOT / "README.md", *DOCS.glob("*.md")):
            self.repository.linked(path.read_text(), path.parent)
        for path in sorted(self.repository.named):
            inside = path.relative_to(ROOT).as_posix()
            self.write_text(GENERATED / "sources" / f"{inside}.rst", sources.page(path, ROOT))
        for path in [*GENERATED.rglob("*.rst"), *GENERATED.rglob("*.md")]:
            if path not in self.written and GENERATED / "tutorials" not in path.parents:
                path.unlink()

    def read(self, _: Sphinx, name: str, text: list[str]) -> None:
        """A hand-written page with links of the site; the first one holds the README."""
        path = DOCS / f"{name}.md"
        if name.startswith("generated/") or not path.is_file():
            return
        text[0] = self.repository.linked(text[0], DOCS)
        if name == "index":
            readme = self.repository.linked((ROOT / "README.md").read_text(), ROOT)
            text[0] = text[0].replace("<!-- README -->", readme)

    def docstring(self, _: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
        """A docstring as reStructuredText; names are those of the object, or of the class that it is a member of."""
        lines[:] = docstrings.restructured(lines, api.names_of(thing), self.targets)


def signature(_: Sphinx, what: str, name: str, thing: object, options: object, shown: str | None, returned: str | None):
    """A signature without the defaults that hide what they are, and without ``sgdsde.`` before each type."""
    if shown:
        shown = re.sub(r"<factory>|<object object at 0x[0-9a-f]+>", "...", shown)
        shown = re.sub(r"\bsgdsde(?:\.\w+)*\.(?=[A-Z])", "", shown)
    if returned:
        returned = re.sub(r"\bsgdsde(?:\.\w+)*\.(?=[A-Z])", "", returned)
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        shown = None
    return shown, returned


def first_page(*_: object) -> list[str]:
    """The first page is read anew each time: it holds the README, which Sphinx does not watch."""
    return ["index"]


def setup(app: Sphinx) -> dict[str, bool]:
    site = Site()
    app.add_directive("div", Div)
    app.connect("builder-inited", site.generate, priority=100)
    app.connect("env-get-outdated", first_page)
    app.connect("source-read", site.read)
    app.connect("autodoc-process-docstring", site.docstring)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
