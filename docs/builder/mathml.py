"""Formulas as MathML, which browsers draw by themselves: no script, no fonts to load, nothing fetched.

``\\tag{1.1}`` numbers a display; "(1.1)" in the text of the same page then links to it.
"""

from __future__ import annotations

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

TAG = re.compile(r"\\tag\{([A-Z]?\d+(?:\.\d+)?)\}")
LONG = 40
"""Characters of a formula within a line, from which on it may be wider than a telephone."""

_REFERENCE = re.compile(r"\(((?:[A-Z]\d+|\d+\.\d+))\)")


def converted(source: str, *, as_block: bool) -> str:
    """MathML of a formula.

    Raises:
        MathError: what cannot be converted.
    """
    return tex2mathml(source, as_block=as_block)


def _shown(node: nodes.Element, *, as_block: bool) -> str:
    source = TAG.sub("", node.astext()).strip()
    try:
        return converted(source, as_block=as_block)
    except (MathError, IndexError) as error:  # the converter's own slips too
        logging.getLogger(__name__).warning("formula not converted: %s: %s", source, error, location=node)
        return html.escape(source)


def visit_inline(translator: Any, node: nodes.Element) -> None:
    formula = _shown(node, as_block=False)
    long = len(node.astext()) > LONG  # a formula is not broken between lines: on a telephone it scrolls
    translator.body.append(f'<span class="long-formula">{formula}</span>' if long else formula)
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    tag = TAG.search(node.astext())
    number = f'<span class="eqno"><a href="#equation-{tag[1]}">({tag[1]})</a></span>' if tag else ""
    identity = f' id="equation-{tag[1]}"' if tag else ""
    translator.body.append(
        f'<div class="equation"{identity}><div class="formula">{_shown(node, as_block=True)}</div>{number}</div>\n'
    )
    raise nodes.SkipNode


class NumbersToLinks(SphinxTransform):
    """ "(1.1)" becomes a link where the page holds a display of that number."""

    default_priority = 700

    def apply(self, **_: Any) -> None:
        tags = {tag[1] for block in self.document.findall(nodes.math_block) for tag in TAG.finditer(block.astext())}
        if not tags:
            return
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.literal | nodes.math | nodes.math_block | nodes.reference | nodes.raw):
                continue
            pieces = _REFERENCE.split(text.astext())
            if len(pieces) == 1 or not tags & set(pieces[1::2]):
                continue
            replaced: list[nodes.Node] = []
            for index, piece in enumerate(pieces):
                if index % 2 == 0:
                    replaced.append(nodes.Text(piece))
                elif piece in tags:
                    replaced.append(nodes.reference("", f"({piece})", internal=True, refuri=f"#equation-{piece}"))
                else:
                    replaced.append(nodes.Text(f"({piece})"))
            text.parent.replace(text, replaced)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.add_transform(NumbersToLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
