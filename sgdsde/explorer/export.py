"""The page as one file that needs neither Python nor a network."""

from __future__ import annotations

import os
from pathlib import Path

from sgdsde._files import replacing
from sgdsde.explorer.curves import Curves
from sgdsde.explorer.page import TITLE, page
from sgdsde.sgd import SGD

FIRST_DRAWING = """
<script>document.addEventListener("DOMContentLoaded", function draw() {
  const page = window.Bokeh && Bokeh.documents.length ? Bokeh.documents[0].get_model_by_name("explorer") : null;
  if (page) page.tags = ["drawn"]; else setTimeout(draw, 20);
});</script>
"""
"""The curve of the first setting is drawn as soon as the page is there."""


def export_page(curves: Curves, path: str | os.PathLike[str], *, about: str, start: SGD) -> Path:
    """Write the page; whole or not at all.

    Raises:
        ModuleNotFoundError: no bokeh. OSError: a path that cannot be written.
    """
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    html = file_html(page(curves, about=about, start=start).layout, resources=INLINE, title=TITLE)
    place = html.rindex("</body>")
    with replacing(path) as temporary:
        temporary.write_text(html[:place] + FIRST_DRAWING + html[place:], encoding="utf-8")
    return Path(path)
