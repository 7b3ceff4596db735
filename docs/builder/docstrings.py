"""The project's docstrings as reStructuredText: sections become fields, formulas stay as they stand.

A docstring is prose, indented formulas, and sections at the left margin (``Args:``, ``Cost: one product.``). Entries of
``Args`` and ``Attributes`` may share a line ("x: [n]. y: [n, c]."); they are parted where a known name begins.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

LABELS = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Errors",
    "Warns": "Warnings",
    "Exactness": "Exactness",
    "Cost": "Cost",
    "Source": "Source",
}
_WORDS = "|".join(LABELS)
_SECTION = re.compile(rf"^((?:{_WORDS})(?:, (?:{_WORDS}))*):(?:\s+(.*))?$")
_NEXT = re.compile(r"(?<=[.;]) (?=(?:Exactness|Cost|Source): )")
_ENTRIES = ("Args", "Attributes", "Raises", "Warns")


def restructured(
    lines: Sequence[str], names: Collection[str] = (), targets: Mapping[str, str] | None = None
) -> list[str]:
    """The docstring as reStructuredText.

    Args:
        lines: dedented lines. names: of arguments and attributes of the object. targets: full name by the word in
            double backticks that stands for it, to be linked.
    """
    out: list[str] = []
    for title, body in _sections(lines):
        if not title:
            out += _prose(body, targets or {})
            continue
        out += [f":{' and '.join(LABELS[word] for word in title.split(', '))}:"]
        as_entries = title.split(", ")[0] in _ENTRIES
        inner = _entries(body, names, targets or {}) if as_entries else _prose(body, targets or {})
        out += [f"    {line}".rstrip() for line in inner or ["\\"]]
    return out


def _sections(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(title, dedented body) in order; the title of prose is empty."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in (part for each in lines for part in _parted(each)):
        match = _SECTION.match(line)
        if match:
            found.append((match[1], [match[2]] if match[2] else []))
        elif found[-1][0] and line and not line.startswith(" "):
            if found[-1][1] and found[-1][1][-1]:
                found[-1][1].append(line)  # a section of one line goes on at the margin
            else:
                found.append(("", [line]))
        else:
            found[-1][1].append(line)
    return [(title, _dedented(body) if title else body) for title, body in found]


def _parted(line: str) -> list[str]:
    """A line at the margin that holds two sections, as two: "Exactness: to 1e-6. Cost: one product."."""
    return _NEXT.split(line) if _SECTION.match(line) else [line]


def _dedented(lines: list[str]) -> list[str]:
    """Without the indentation of the body; a first line that began beside the title has none."""
    margins = [len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")]
    margin = min(margins, default=0)
    return [line[margin:] if line.startswith(" ") else line for line in lines]


def _prose(lines: list[str], targets: Mapping[str, str]) -> list[str]:
    """Paragraphs, and indented blocks as literal ones."""
    out: list[str] = []
    literal = False
    for line in lines:
        indented = line.startswith("  ")
        item = bool(out) and out[-1].startswith(("- ", "  ")) and not literal
        if indented and not literal and not item:
            out += ["", "::", "", line]
            literal = True
        elif literal and (indented or not line):
            out.append(line)
        else:
            if literal:
                out.append("")
            literal = False
            out.append(_escaped(line, targets))
    return [*out, ""]


def _entries(lines: list[str], names: Collection[str], targets: Mapping[str, str]) -> list[str]:
    """A list of entries; text that names none stays a paragraph."""
    known = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or r"(?!)"
    single = rf"(?:\*{{0,2}}(?:{known})|[A-Z]\w*(?:Error|Warning|Exception))"
    start = re.compile(rf"(?:^|(?<=[.;)]) )({single}(?:(?:, | and ){single})*): ")
    text = " ".join(line.strip() for line in lines if line.strip())
    parts = start.split(text)
    out = [_escaped(parts[0].strip(), targets), ""] if parts[0].strip() else []
    for name, told in zip(parts[1::2], parts[2::2]):
        out.append(f"- **{_escaped(name, {})}**: {_escaped(told.strip(), targets)}")
    return [*out, ""]


def _escaped(text: str, targets: Mapping[str, str]) -> str:
    """Prose without accidental markup; what stands in double backticks is code, or a link where it is known."""
    pieces = re.split(r"(``.+?``)", text)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = re.sub(r"([\\*|`])", r"\\\1", piece)
            pieces[index] = re.sub(r"(?<=\w)_(?!\w)", r"\\_", pieces[index])
            continue
        word = piece.strip("`")
        target = targets.get(word.partition("(")[0])
        marked = f":py:obj:`{word} <{target}>`" if target and "<" not in word else piece
        before, after = pieces[index - 1][-1:], pieces[index + 1][:1]
        pieces[index] = (
            ("\\ " if before and not before.isspace() else "")
            + marked
            + ("\\ " if after and not after.isspace() else "")
        )
    return "".join(pieces)
