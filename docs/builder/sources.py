"""Pages that show a source, so that a formula leads to the test that would refute it."""

from __future__ import annotations

from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.lexers.special import TextLexer
from pygments.util import ClassNotFound


def page(path: Path, root: Path) -> str:
    """reStructuredText of a page with the source, its lines numbered and addressable as #L-12."""
    title = path.relative_to(root).as_posix()
    text = path.read_text()
    try:
        lexer = get_lexer_for_filename(path.name)
    except ClassNotFound:
        lexer = TextLexer()
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True)
    body = highlight(text, lexer, formatter).rstrip("\n")
    raw = "\n".join(f"   {line}" for line in body.split("\n"))
    return f":orphan:\n\n{title}\n{'=' * len(title)}\n\n.. raw:: html\n\n{raw}\n"
