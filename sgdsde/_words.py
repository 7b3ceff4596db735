"""The words of every printed result: what was asked, the answer, how sure it is, what to do, and what terms mean.

``GLOSSARY`` holds the terms that results use. docs/glossary.md explains the same terms at more length.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable

WIDTH = 100
"""Characters of a printed line."""

GLOSSARY: dict[str, str] = {
    "band": "the losses between which 80 % of the runs lie, from the 10 to the 90 % quantile, at one step",
    "dynamics": "a theory that predicts the loss curve of SGD step by step, one of sgdsde.dynamics",
    "kernel": "K = J J^T, how a step on one example moves the output of another; the neural tangent kernel",
    "frozen kernel": "a prediction with the kernel of the initial weights all along; they must move little",
    "moving kernel": "a prediction with the kernel of the weights that full-batch training reaches (MovingKernel)",
    "linearized model": "the network, its outputs expanded to first order in the weights around their initial values",
    "mean-square limit": "the learning rate beyond which the expected loss of the linearized model grows without bound",
    "measured": "from real training runs of this setting",
    "predicted": "from theory alone; no run of this setting was used",
    "interpolated": "from real training runs of other settings",
    "run": "one training from the same initial weights with its own minibatches",
    "standard error": "the error to expect of a mean over runs, because they are finitely many",
    "within noise": "no difference that so few runs could show",
    "z": "a difference in units of the standard error; beyond about 3 chance alone is unlikely",
    "steps and time": "a step is one update of the weights; time is the sum of the learning rates of the steps before",
}
"""One line for each term that a printed result uses."""


def told(*, asked: str, answer: str, sure: str, do: str, table: Iterable[str] = (), terms: Iterable[str] = ()) -> str:
    """A result in words: four labelled paragraphs, a table if there is one, and the terms that it uses.

    Args:
        asked, answer, sure, do: sentences. table: lines, printed as they are. terms: keys of ``GLOSSARY``.
    Raises:
        KeyError: a term that the glossary lacks.
    """
    lines: list[str] = []
    for label, text in (("Asked", asked), ("Answer", answer), ("How sure", sure), ("What to do", do)):
        head = f"{label + ':':<12}"
        lines += textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * 12, break_on_hyphens=False)
    rows, meanings = list(table), [f"{term}: {GLOSSARY[term]}" for term in terms]
    lines += ["", *rows] if rows else []
    if meanings:
        lines += ["", "Terms (docs/glossary.md):"]
        for meaning in meanings:
            lines += textwrap.wrap(
                meaning, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
            )
    return "\n".join(lines)


def percent(share: float) -> str:
    """A share in per cent, two digits; words for one that is not finite."""
    if not math.isfinite(share):
        return "without bound" if share > 0 else "unknown"
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 else f"{100 * share:.2g} %"


def listed(items: Iterable[object], last: str = "and") -> str:
    """Items in a row of words: a, b and c."""
    *first, end = map(str, items)
    return f"{', '.join(first)} {last} {end}" if first else end
