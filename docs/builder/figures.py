"""The gallery: every figure of ``paper_figs`` with its caption, the picture of the best scale that has been drawn."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from docs.builder.references import Repository

SCALES = ("paper", "laptop", "smoke")
FIELDS = ("Paper", "Figure", "Claim", "Refuted by")
THUMBNAIL = 480
"""Pixels across."""


@dataclass(frozen=True)
class Plate:
    """One figure: what its file says of it, and its picture if one has been drawn."""

    name: str
    caption: str
    picture: Path | None
    experiment: str

    @property
    def title(self) -> str:
        return self.caption.partition("\n")[0].rstrip(".")

    @property
    def scale(self) -> str | None:
        return self.picture.parents[1].name if self.picture else None


def plates(root: Path) -> list[Plate]:
    """All figures, in order."""
    found = []
    for path in sorted((root / "paper_figs").glob("fig*.py")):
        source = path.read_text()
        named = re.search(r'^EXPERIMENT = "(\w+)"', source, re.MULTILINE)
        pictures = [root / "build" / scale / "figures" / f"{path.stem}.png" for scale in SCALES]
        picture = next((each for each in pictures if each.is_file()), None)
        caption = ast.get_docstring(ast.parse(source)) or path.stem
        found.append(Plate(path.stem, caption, picture, named[1] if named else path.stem))
    return found


def page(plate: Plate, repository: Repository, image: str | None) -> str:
    """Markdown of one figure."""
    lines = [f"# {plate.title}", ""]
    if image:
        lines += [f"![{plate.title}]({image})", "", f"*Drawn at {plate.scale} scale.*", ""]
    else:
        lines += [f"Not drawn yet: `make {plate.name} SCALE=smoke` draws it.", ""]
    body = " ".join(plate.caption.partition("\n")[2].split())
    parts = re.split(rf"(?:^|(?<=[.!?]) )({'|'.join(FIELDS)}): ", body)
    lines += [escaped(parts[0]), ""] if parts[0] else []
    for name, told in zip(parts[1::2], parts[2::2]):
        lines += [f"**{name}.** {escaped(told[:1].upper() + told[1:])}", ""]
    sources = [f"experiments/{plate.experiment}.py", f"paper_figs/{plate.name}.py"]
    shown = [f"[`{each}`]({repository.page(repository.root / each)})" for each in sources]
    lines += [f"Computed by {shown[0]}, drawn by {shown[1]}: `make {plate.name}`, or with `SCALE=smoke` in seconds."]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([\\*_`$<>\[\]|{}~#])", r"\\\1", text)


def thumbnail(picture: Path, place: Path) -> None:
    """A small copy of a picture."""
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB")
        small.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
        small.save(place, optimize=True)


def write(folder: Path, repository: Repository, write_text: Callable[[Path, str], None]) -> None:
    """A page for each figure, and one of them all."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    cards = []
    every = plates(repository.root)
    for plate in every:
        image = None
        if plate.picture:
            copied = images / f"{plate.name}.png"
            copied.write_bytes(plate.picture.read_bytes())
            thumbnail(plate.picture, images / f"{plate.name}-small.png")
            image = f"images/{plate.name}.png"
        write_text(folder / f"{plate.name}.md", page(plate, repository, image))
        small = f"![]({image.removesuffix('.png')}-small.png)" if image else "*not drawn yet*"
        cards.append(f":::{{div}} plate\n{small}\n\n[{escaped(plate.title)}]({plate.name}.md)\n:::\n")
    drawn = sum(plate.picture is not None for plate in every)
    lines = [
        "# Figures",
        "",
        f"{drawn} of {len(every)} are drawn here, at the largest scale that this machine has results of.",
        "Each has its caption, the paper that it follows, the claim that it makes and what would refute it;",
        "every number that a figure claims is held to an interval when it is drawn.",
        "",
    ]
    lines += ["::::{div} plates", *cards, "::::", ""]
    lines += ["```{toctree}", ":hidden:", "", *(plate.name for plate in every), "```"]
    write_text(folder / "index.md", "\n".join(lines) + "\n")
