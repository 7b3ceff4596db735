"""One look for all figures: a fixed color per dynamics, bands, readable labels."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: the text width of a two-column page."""

# Measured curves are dark and solid; predictions have a color each, most from seaborn's
# "colorblind" palette (its gray and yellow are too weak beside these), and patterns that keep them apart in gray.
_COLORBLIND = sns.color_palette("colorblind").as_hex()
LOOKS: dict[str, tuple[str, Any, str]] = {
    "measured": ("#202020", "-", "measured SGD"),
    "linearized": ("#7f7f7f", "-", "measured, linearized model"),
    "GradientFlow": (_COLORBLIND[9], "--", "gradient flow"),
    "GradientDescent": (_COLORBLIND[5], ":", "gradient descent"),
    "OrnsteinUhlenbeck(init)": (_COLORBLIND[1], "-.", "OU, noise of the start"),
    "OrnsteinUhlenbeck(mean_path)": ("#9a8700", (0, (5, 1)), "OU, noise of the mean path"),
    "MomentEquations(1)": ("#76b7b2", (0, (1, 1)), "SDE moments, order 1"),
    "MomentEquations(2)": (_COLORBLIND[2], (0, (3, 1, 1, 1)), "SDE moments, order 2"),
    "MomentRecursion": (_COLORBLIND[0], "--", "moment recursion"),
    "SDEPaths": (_COLORBLIND[4], (0, (4, 2, 1, 2)), "SDE paths"),
    "ModalMoments": ("#6a3d9a", (0, (6, 2)), "modal moments"),
    "Volterra": ("#5b3a1e", (0, (2, 2)), "Volterra equation"),
    "GaussianClosure": ("#1b6e2e", (0, (5, 2)), "Gaussian closure"),
    "MovingKernel": (_COLORBLIND[3], "--", "moving kernel"),
    "EnsembleSurface": ("#00766c", "--", "surface between ensembles"),
}
"""(color, line pattern, label) of each curve. A name is a fact about a curve in every figure; never reuse a color."""


def apply() -> None:
    """Set the look for this process; the frame calls it before it draws."""
    mpl.use("Agg")
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=1.05)
    mpl.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "figure.dpi": 100,
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
            "legend.fontsize": "small",
            "lines.linewidth": 1.5,
            "pdf.fonttype": 42,
            "savefig.dpi": 200,
            "svg.hashsalt": "sgdsde",
        }
    )


def panels(rows: int, columns: int, *, height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of text width and its axes [rows, columns], each with a letter."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    if rows * columns > 1:
        for letter, axis in zip("abcdefghijklmnopqrstuvwxyz", axes.flat):
            axis.annotate(
                letter,
                (0, 1),
                xytext=(-22, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                fontweight="bold",
                annotation_clip=False,
            )
    return figure, axes


def look(name: str) -> dict[str, Any]:
    """Color, line pattern and label of a curve, as keywords of ``plot``."""
    if name not in LOOKS:
        raise KeyError(f"curve must be one of {', '.join(LOOKS)}, got {name!r}; add its look to paper_figs/style.py")
    color, pattern, label = LOOKS[name]
    return {"color": color, "linestyle": pattern, "label": label}


def curve(axis: Axes, x: np.ndarray, mean: np.ndarray, name: str, **options: Any) -> None:
    """One line in the look of its name; options override it (``label=None`` keeps it out of the legend)."""
    axis.plot(x, mean, **(look(name) | options))


def band(
    axis: Axes, x: np.ndarray, mean: np.ndarray, name: str, *, low: np.ndarray, high: np.ndarray, **options: Any
) -> None:
    """One line with a shaded band from low to high; the caption says what the band is."""
    curve(axis, x, mean, name, **options)
    axis.fill_between(x, low, high, color=options.get("color", look(name)["color"]), alpha=0.2, linewidth=0)


def legend_above(figure: Figure, axes: np.ndarray, *, columns: int = 3) -> None:
    """One legend for all panels, above them, each label once."""
    entries: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=columns)
