"""Links of the site from what the Markdown pages name, so that the pages stay as a code host shows them.

A relative link to a file of the repository leads to that file's page; a name in backticks of a test, a figure, a source
or a public object leads to it. Names that are nothing known stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

_FENCE = re.compile(r"(^ *```.*?^ *```[^\n]*$)", re.MULTILINE | re.DOTALL)
_TOKEN = re.compile(r"(!?\[(?:[^\[\]]|`[^`]*`)*\]\([^()\s]+\))|(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"^(!?\[.*\])\(([^#)]*)(#[^)]*)?\)$", re.DOTALL)
_TEST = re.compile(r"^(?:tests/)?((?:laws|unit|end_to_end)/[\w/*]+\.py|test_[\w*]+\.py)?(?:::)?(test_[\w*]+)?$")


@dataclass
class Repository:
    """The files that pages may name, and the pages that show them.

    Attributes:
        root: of the repository. targets: full name of a public object by the names it goes by.
        named: sources that some page links, to be shown; filled while pages are read.
    """

    root: Path
    targets: Mapping[str, str]
    named: set[Path] = field(default_factory=set)

    @cached_property
    def tests(self) -> dict[str, Path]:
        """The file that defines each test."""
        found = {}
        for path in sorted((self.root / "tests").rglob("test_*.py")):
            for name in re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE):
                found[name] = path
        return found

    def page(self, path: Path) -> str | None:
        """The page of the site, from its root, that shows a file; None where the site has none."""
        if not path.is_file():
            return None
        inside = path.resolve().relative_to(self.root).as_posix()
        if inside == "README.md":
            return "/index.md"
        if inside.startswith("docs/tutorials/"):
            return f"/generated/tutorials/{path.stem}.rst"
        if inside.startswith("docs/") and path.suffix != ".py":
            return inside.removeprefix("docs")
        if path.suffix == ".md":
            return f"/generated/{path.name}"
        self.named.add(path.resolve())
        return f"/generated/sources/{inside}.rst"

    def shows(self, name: str) -> str | None:
        """The page of what stands in backticks."""
        if re.fullmatch(r"fig\d+_\w+", name) and (self.root / "paper_figs" / f"{name}.py").is_file():
            return f"/generated/figures/{name}.md"
        for folder in ("", "sgdsde/", "docs/"):
            if re.fullmatch(r"[\w./-]+\.\w+", name) and (self.root / folder / name).is_file():
                return self.page(self.root / folder / name)
        match = _TEST.match(name)
        if not match or not (match[1] or match[2]):
            return None
        candidates = self._files(match[1]) if match[1] else self._defining(match[2])
        return self.page(candidates[0]) if candidates else None

    def _files(self, pattern: str) -> list[Path]:
        return sorted((self.root / "tests").glob(pattern if "/" in pattern else f"**/{pattern}"))

    def _defining(self, pattern: str) -> list[Path]:
        if "*" not in pattern:
            return [self.tests[pattern]] if pattern in self.tests else []
        return [path for name, path in self.tests.items() if name.startswith(pattern.partition("*")[0])]

    def linked(self, text: str, home: Path) -> str:
        """The Markdown text of a page that stands in the folder ``home``, with links of the site."""
        seen: set[str] = set()
        pieces = _FENCE.split(text)
        for index in range(0, len(pieces), 2):
            pieces[index] = "\n".join(self._line(line, home, seen) for line in _joined(pieces[index].split("\n")))
        return "".join(pieces)

    def _line(self, line: str, home: Path, seen: set[str]) -> str:
        return _TOKEN.sub(lambda token: self._replaced(token, home, seen, line), line)

    def _replaced(self, token: re.Match[str], home: Path, seen: set[str], line: str) -> str:
        if token[1]:
            return self._link(token[1], home)
        name = token[2]
        page = self.shows(name)
        if page:
            return f"[`{name}`]({page})"
        target = self.targets.get(name.removeprefix("sgdsde.").partition("(")[0])
        if target and target not in seen and not line.startswith("#") and not set("<>") & set(name):
            seen.add(target)
            return f"{{py:obj}}`{name} <{target}>`"
        return token[0]

    def _link(self, whole: str, home: Path) -> str:
        match = _LINK.match(whole)
        if not match or not match[2] or "://" in match[2]:
            return whole
        page = self.page(home / match[2])
        return f"{match[1]}({page}{match[3] or ''})" if page else whole


def _joined(lines: list[str]) -> list[str]:
    """Lines, those joined between which the text of a link is broken."""
    out: list[str] = []
    for line in lines:
        if out and re.search(r"\[[^\]]*$", out[-1]) and line.strip() and not out[-1].startswith("#"):
            out[-1] += "\n" + line
        else:
            out.append(line)
    return out
