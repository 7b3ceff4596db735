"""The canvas of every result's picture: figure, look, scales. Needs matplotlib; seaborn's style where installed."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 84
"""Characters of a title that fit across the figure."""

COLORS = {
    ("measured", "train"): "#202020",
    ("measured", "test"): "#8a8a8a",
    ("predicted", "train"): "#0173b2",
    ("predicted", "test"): "#de8f05",
    ("interpolated", "train"): "#029e73",
    ("interpolated", "test"): "#cc78bc",
}
"""Color of each curve."""

LOOK: dict[Any, Any] = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
}
"""Settings of matplotlib for every picture."""


@contextmanager
def canvas(path: str | os.PathLike[str] | None, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the look of this module, saved when the block ends; global settings stay as they are.

    Args:
        path: where to save, in the format that the suffix names; whole or not at all. None: a figure of pyplot's.
        size: width and height in inches.
    Raises:
        ModuleNotFoundError: no matplotlib. ValueError: a suffix that matplotlib cannot write.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib; install it with: pip install 'sgdsde[plots]'") from error
    if path is not None:
        _check_suffix(Path(path))
    with mpl.rc_context(_seaborn_style() | LOOK):
        if path is None:
            from matplotlib import pyplot

            yield pyplot.figure(figsize=size)
        else:
            figure = Figure(figsize=size)
            yield figure
            with replacing(path) as temporary:
                figure.savefig(temporary)


def _seaborn_style() -> dict[Any, Any]:
    try:
        import seaborn
    except ModuleNotFoundError:
        return {}
    return dict(seaborn.axes_style("ticks"))


def _check_suffix(path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lower().lstrip(".") not in known:
        received = f"{str(path)!r}"
        raise ValueError(complaint("path", f"a file name that ends in one of {', '.join(known)}", received))


def finite(values: Tensor) -> np.ndarray:
    """The values with NaN, which is not drawn, for infinity."""
    array = values.numpy()
    return np.where(np.isfinite(array), array, np.nan)


def title(axes: Axes, text: str) -> None:
    """Set the title, broken into lines that fit."""
    axes.set_title("\n".join(textwrap.wrap(text, LINE)))


def scale_losses(axes: Axes) -> None:
    """Label the losses; a logarithmic axis where they span more than a factor of four."""
    axes.set_ylabel("loss")
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and drawn.min() > 0 and drawn.max() > 4 * drawn.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def scale_steps(axes: Axes, last: int) -> None:
    """Label the steps up to the last; a logarithmic axis with room for step 0 from 20 steps on."""
    axes.set_xlabel("step")
    if last >= 20:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, max(last, 1))
