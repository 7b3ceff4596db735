"""Pictures of results. Needs matplotlib (the plots extra); seaborn's style is used where it is installed."""

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
from sgdsde.budget import CurveBudget, ErrorBudget
from sgdsde.comparison import TOLERANCE, Comparison, CurveComparison
from sgdsde.trajectory import LossBand, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOW, HIGH = 0.1, 0.9
"""Quantiles over runs between which bands are shaded."""

LINE = 84
"""Characters of a title that fit across the figure."""

COLORS = {
    ("measured", "train"): "#202020",
    ("measured", "test"): "#8a8a8a",
    ("predicted", "train"): "#0173b2",
    ("predicted", "test"): "#de8f05",
}
TERM_LOOKS = {
    "linearization": ("#0173b2", "linearization"),
    "monte_carlo": ("#b5b5b5", "Monte-Carlo"),
    "non_gaussian": ("#de8f05", "non-Gaussian noise"),
    "discretization": ("#029e73", "discretization"),
    "frozen_noise": ("#d55e00", "frozen noise"),
    "closure": ("#cc78bc", "closure"),
    "kernel_motion": ("#56b4e9", "kernel motion"),
}
"""Color and label of each term of an error budget."""

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


def plot_comparison(comparison: Comparison, path: str | os.PathLike[str] | None = None) -> tuple[Axes, Axes]:
    """The axes of a comparison's picture: losses above, relative errors below, the verdict as title.

    Above: measured means (solid) with the 10 to 90 % band of the runs, predicted means (dashed) with theirs. Below: the
    relative error of the predicted mean, shaded by two standard errors of the measured mean, between lines at 3 %.

    Args:
        path: where to save, in the format that the suffix names; whole or not at all. With None the figure belongs to
            pyplot, so that ``plt.show()`` shows it.
    Raises:
        ModuleNotFoundError: no matplotlib. ValueError: a suffix that matplotlib cannot write.
    """
    if not isinstance(comparison, Comparison):
        remedy = "use sgdsde.compare(predicted, measured)"
        raise TypeError(complaint("comparison", "a Comparison", type(comparison).__name__, remedy))
    with _figure(path, size=(6.4, 5.6)) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
        for side in comparison.curves:
            for kind, trajectory in (("measured", comparison.measured), ("predicted", comparison.predicted)):
                _draw_loss(top, trajectory, kind, side)
            _draw_error(bottom, comparison, side)
        _scale_losses(top)
        _scale_steps(bottom, max(comparison.predicted.steps[-1], comparison.measured.steps[-1]))
        top.set_title("\n".join(textwrap.wrap(comparison.sentence, LINE)))
        _legend(top, comparison.predicted)
        for sign in (-1, 1):
            bottom.axhline(sign * 100 * TOLERANCE, color="0.4", linestyle=":", linewidth=1)
        bottom.axhline(0, color="0.4", linewidth=0.8)
        bottom.set_ylabel("relative error [%]")
        note = "(predicted - measured) / measured; shaded: two standard errors of the measurement; "
        note += f"dotted: {100 * TOLERANCE:.0f} %"
        bottom.set_title(note, fontsize=8, color="0.3")
    return top, bottom


def plot_trajectory(trajectory: Trajectory, path: str | os.PathLike[str] | None = None) -> Axes:
    """The axes of one trajectory's picture: mean losses with the 10 to 90 % band; saved as ``plot_comparison`` does."""
    if not isinstance(trajectory, Trajectory):
        remedy = "use sgdsde.predict(...) or sgdsde.run_ensemble(...)"
        raise TypeError(complaint("trajectory", "a Trajectory", type(trajectory).__name__, remedy))
    kind = "measured" if trajectory.dynamics.startswith("measured") else "predicted"
    with _figure(path, size=(6.4, 3.6)) as figure:
        axes = figure.subplots()
        for side in ("train", "test"):
            _draw_loss(axes, trajectory, kind, side)
        _scale_losses(axes)
        _scale_steps(axes, trajectory.steps[-1])
        axes.set_title("\n".join(textwrap.wrap(trajectory.dynamics, LINE)))
        _legend(axes, trajectory)
    return axes


def plot_error_budget(budget: ErrorBudget, path: str | os.PathLike[str] | None = None) -> tuple[Axes, ...]:
    """The axes of a budget's picture, one a curve: the terms stacked over the steps, the gap as a line.

    In per cent of the measured loss; terms above zero are stacked upwards, those below downwards. The gap's error bars
    are two standard errors. Terms that are exactly zero are left out. Saved as ``plot_comparison`` does.
    """
    if not isinstance(budget, ErrorBudget):
        remedy = "use sgdsde.error_budget(problem, sgd, n_steps, n_runs)"
        raise TypeError(complaint("budget", "an ErrorBudget", type(budget).__name__, remedy))
    curves = budget.curves
    with _figure(path, size=(6.4, 0.6 + 2.8 * len(curves))) as figure:
        panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (side, curve) in zip(panels, curves.items()):
            _draw_terms(axes, budget.steps.numpy(), curve)
            axes.set_ylabel(f"{side}: measured - predicted\n[% of measured]", fontsize=8)
        panels[0].set_title("\n".join(textwrap.wrap(budget.sentence, LINE)))
        panels[0].legend(ncols=2)
        _scale_steps(panels[-1], budget.steps[-1])
    return tuple(panels)


def _draw_terms(axes: Axes, steps: np.ndarray, curve: CurveBudget) -> None:
    scale = 100 / np.where(curve.measured.numpy() > 0, curve.measured.numpy(), np.nan)
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for name, term in curve.terms.items():
        if term.is_zero:
            continue
        color, label = TERM_LOOKS[name]
        value = scale * term.value.numpy()
        above, below = up + np.maximum(value, 0), down + np.minimum(value, 0)
        axes.fill_between(steps, up, above, color=color, label=label, alpha=0.75, linewidth=0)
        axes.fill_between(steps, down, below, color=color, alpha=0.75, linewidth=0)
        up, down = above, below
    gap, error = scale * curve.gap.numpy(), 2 * scale * curve.gap_standard_error.numpy()
    look: dict[str, Any] = {"color": "#202020", "linewidth": 1.2, "capsize": 1.5, "elinewidth": 0.7}
    axes.errorbar(steps, gap, yerr=error, label="gap, two standard errors", **look)
    axes.axhline(0, color="0.4", linewidth=0.8)


@contextmanager
def _figure(path: str | os.PathLike[str] | None, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure in the look of this module, saved when the block ends; global settings stay as they are."""
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


def _draw_loss(axes: Axes, trajectory: Trajectory, kind: str, side: str) -> None:
    band: LossBand | None = getattr(trajectory, f"{side}_loss")
    if band is None:
        return
    color, steps = COLORS[kind, side], trajectory.steps.numpy()
    style = {"measured": "-", "predicted": "--"}[kind]
    axes.plot(
        steps, _finite(band.mean), style, color=color, label=f"{kind}, {side}", zorder=3 if kind == "measured" else 4
    )
    if bool((band.std > 0).any()):
        axes.fill_between(
            steps, _finite(band.quantile(LOW)), _finite(band.quantile(HIGH)), color=color, alpha=0.2, linewidth=0
        )


def _draw_error(axes: Axes, comparison: Comparison, side: str) -> None:
    curve: CurveComparison = comparison.curves[side]
    measured: LossBand = getattr(comparison.measured, f"{side}_loss")
    rows = np.searchsorted(comparison.measured.steps.numpy(), curve.steps.numpy())
    steps, error = curve.steps.numpy(), 100 * _finite(curve.relative_error)
    noise = 200 * _finite(measured.standard_error)[rows] / _finite(curve.measured)
    axes.plot(steps, error, color=COLORS["predicted", side], label=side)
    axes.fill_between(steps, error - noise, error + noise, color=COLORS["predicted", side], alpha=0.25, linewidth=0)


def _finite(values: Tensor) -> np.ndarray:
    """The values with NaN, which is not drawn, for infinity."""
    array = values.numpy()
    return np.where(np.isfinite(array), array, np.nan)


def _scale_losses(axes: Axes) -> None:
    axes.set_ylabel("loss")
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) and drawn.min() > 0 and drawn.max() > 4 * drawn.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")


def _scale_steps(axes: Axes, last: Tensor) -> None:
    axes.set_xlabel("step")
    if last >= 20:
        axes.set_xscale("symlog", linthresh=1, linscale=0.3)
        axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, max(float(last), 1.0))


def _legend(axes: Axes, predicted: Trajectory) -> None:
    band = f"bands: {100 * LOW:.0f} to {100 * HIGH:.0f} %"
    if predicted.n_runs == 0 and bool((predicted.train_loss.std > 0).any()):
        band += "\n(predicted: of a matched Gamma law)"
    axes.legend(title=band, title_fontsize=8, alignment="left")
