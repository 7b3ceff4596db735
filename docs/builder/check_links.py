"""Every local link of a built site: is the page there, and on it the place that it names? Nothing is fetched.

python -m docs.builder.check_links build/docs/html
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links, and the places on it that can be linked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value is None:
                continue
            if name in ("href", "src"):
                self.links.append(value)
            elif name == "id" or (name == "name" and tag == "a"):
                self.places.add(value)


def broken(folder: Path) -> list[str]:
    """One line for each local link that leads nowhere."""
    if not (folder / "index.html").is_file():
        return [f"{folder}: no index.html; build the pages first"]
    pages = {path.resolve(): Page(path.read_text()) for path in sorted(folder.rglob("*.html"))}
    lines = []
    for path, page in pages.items():
        for link in sorted(set(page.links)):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if aim.is_dir():
                aim = aim / "index.html"
            if not aim.is_file():
                lines.append(f"{path.relative_to(folder.resolve())}: {link}: no such file")
            elif parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].places:
                lines.append(f"{path.relative_to(folder.resolve())}: {link}: no such place on the page")
    return lines


def main() -> int:
    lines = broken(Path(sys.argv[1]))
    print("\n".join(lines) or "every local link leads somewhere")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
