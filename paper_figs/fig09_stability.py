"""Where minibatch SGD stops being stable.

Paper: none; for the noise scale McCandlish et al., arXiv:1812.06162.
Figure: none.
Claim: the largest learning rate that is stable in mean square, computed from the network at initialization, is where
ensembles of the linearized network begin to grow, and below it real networks converge. Color: expected training loss
after the same number of steps (128 at laptop scale) by the moment recursion, batches with replacement; gray: above its
start. Lines: the mean-square limit, the full-batch limit, the bound that costs one eigenvalue, the learning rate whose
slowest second moment decays fastest, the critical batch size. Marks: ensembles at fixed fractions of the limit, the
criteria fixed beforehand. (a) Real ReLU networks on digits (16 runs at laptop scale): filled where the mean loss ended
above its start or a run stopped being finite. (b) Linearized networks (1000 runs): filled where the mean loss grew over
the second half of the steps. (c) Mean loss after all steps in units of the first against the learning rate in units of
the limit: lines predicted, crosses linearized runs, dots real runs, at the upper end if larger. Beyond the limit, up to
about 1.6 of it, most real networks converge all the same, as their kernel moves: there the limit is one of the
linearization alone. Where the expectation is carried by fewer runs than there are, ensembles lie below it. (d) What a
larger batch buys at a fixed number of steps: the limit in units of the full-batch limit, and the least predicted loss
over all learning rates of the map. At the critical batch size noise halves the limit; far below it twice the batch
allows twice the step, far above it nothing more. Dotted: the gradient noise scale at initialization.
Refuted by: linearized runs that grow at 0.9 of the limit or less, or do not at 1.1 or more; a real ensemble that
diverges below the limit, or one that converges at 2.5 times the limit; a limit that still doubles with the batch beyond
the critical size, or does not far below it.
"""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LINES: dict[str, dict[str, Any]] = {
    "limit": {"color": "#c0392b", "linestyle": "-", "linewidth": 2, "label": "mean-square limit"},
    "fastest": {"color": "#c0392b", "linestyle": ":", "linewidth": 1.2, "label": "fastest in the end"},
    "sufficient": {"color": "#202020", "linestyle": "--", "linewidth": 1.2, "label": "sufficient bound"},
}
CRITICAL: dict[str, Any] = {
    "color": "#e377c2",
    "linestyle": (0, (3, 2)),
    "linewidth": 1.5,
    "label": "critical batch size",
}
CEILING = 30.0
"""Upper end of panel c, in units of the first loss."""


def claims(result: Result) -> dict[str, float]:
    shape = result["real"].shape[:2]
    fractions = np.broadcast_to(result["fractions"], shape)
    above, fails = fractions > 1, failed(result)
    double = dict(zip(result["batch_sizes"].tolist(), result["limit"]))
    last = max(batch_size for batch_size in double if 2 * batch_size in double)
    return {
        "linearized_on_the_predicted_side": float((grew(result, "linearized") == above).mean()),
        "exact_on_the_predicted_side": float((grew(result, "exact") == above).mean()),
        "real_failed_below": float(fails[~above].mean()),
        "real_failed_at_the_largest": float(fails[:, -1].mean()),
        "least_fraction_of_real_failure": float(fractions[fails].min()),
        "first_doubling": double[2] / double[1],
        "last_doubling": double[2 * last] / double[last],
        "limit_at_critical_batch": limit_at(result, float(result["critical_batch"])) / float(result["full_batch"]),
    }


def grew(result: Result, name: str) -> np.ndarray:
    """Whether the mean loss grew over the second half of the steps, [batch sizes, fractions]."""
    middle, end = result[name][..., 1], result[name][..., 2]
    return np.asarray(~np.isfinite(end) | (end > middle))


def failed(result: Result) -> np.ndarray:
    """Whether real runs ended above their start in the mean, or not at all."""
    start, end = result["real"][..., 0], result["real"][..., 2]
    return np.asarray(~np.isfinite(end) | (end > start))


def limit_at(result: Result, batch_size: float) -> float:
    """The mean-square limit between batch sizes, by interpolation of its reciprocal, which is nearly linear in 1/B."""
    inverse = 1 / result["batch_sizes"][::-1]
    return float(1 / np.interp(1 / batch_size, inverse, 1 / result["limit"][::-1]))


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=6.6)
    draw_map(axes[0, 0], result, failed(result), "real networks")
    mesh = draw_map(axes[0, 1], result, grew(result, "linearized"), "linearized networks")
    bar = figure.colorbar(mesh, ax=axes[0, :], pad=0.01, aspect=30)
    bar.set_label(f"loss after {int(result['n_steps'])} steps")
    draw_fractions(axes[1, 0], result)
    draw_batches(axes[1, 1], result)
    style.legend_above(figure, axes[0, :1], columns=4)
    return figure


def draw_map(axis: Axes, result: Result, filled: np.ndarray, title: str) -> QuadMesh:
    batch_sizes, start = result["batch_sizes"], float(result["start"])
    loss = np.where(result["map"] < start, result["map"], np.nan)
    axis.set_facecolor("#d9d9d9")
    colors = LogNorm(float(np.nanmin(loss)), start)
    mesh = axis.pcolormesh(
        batch_sizes, result["learning_rates"], loss.T, norm=colors, cmap="viridis", shading="nearest", rasterized=True
    )
    for name, options in LINES.items():
        axis.plot(result["run_at" if name == "fastest" else "batch_sizes"], result[name], **options)
    axis.axhline(float(result["full_batch"]), color="#202020", linewidth=1.2, label="full-batch limit")
    axis.axvline(float(result["critical_batch"]), **CRITICAL)
    batch, lr = np.broadcast_arrays(result["run_at"][:, None], result["fractions"] * result["run_limits"][:, None])
    for mask, face, label in ((~filled, "white", "ensemble converged"), (filled, "#202020", "diverged or grew")):
        axis.plot(
            batch[mask],
            lr[mask],
            "o",
            color="#202020",
            markerfacecolor=face,
            markersize=4,
            linestyle="none",
            label=label,
        )
    axis.set_xscale("log", base=2)
    axis.set(yscale="log", xlabel="batch size", ylabel="learning rate", title=title)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(result["learning_rates"][0], result["learning_rates"][-1])
    return mesh


def draw_fractions(axis: Axes, result: Result) -> None:
    shades = np.linspace(0.15, 0.85, len(result["run_at"]))
    for row, (batch_size, shade) in enumerate(zip(result["run_at"], shades)):
        color = colormaps["viridis"](shade)
        ratios = {name: result[name][row, :, 2] / result[name][row, :, 0] for name in ("exact", "linearized", "real")}
        shown = {name: np.minimum(values, CEILING) for name, values in ratios.items()}
        axis.plot(result["fractions"], shown["exact"], color=color, linewidth=1, label=f"{batch_size}")
        axis.plot(result["fractions"], shown["linearized"], "x", color=color, markersize=4)
        axis.plot(result["fractions"], shown["real"], "o", color=color, markersize=4)
    axis.axvline(1, color=LINES["limit"]["color"], linewidth=1.2)
    axis.axhline(1, color="#202020", linewidth=0.6)
    axis.set(xscale="log", yscale="log", xlabel="learning rate / mean-square limit", ylabel="loss / first loss")
    ticks = [0.5, 0.8, 1, 1.25, 1.6, 2.5]
    axis.set_xticks(ticks, labels=[f"{value:g}" for value in ticks])
    axis.minorticks_off()
    axis.set_ylim(top=1.5 * CEILING)
    axis.legend(title="batch size", ncols=2, fontsize="x-small", title_fontsize="x-small", loc="upper left")
    text = "line: predicted\ncross: linearized\ndot: real"
    axis.annotate(text, (0.98, 0.04), xycoords="axes fraction", ha="right", fontsize="x-small")


def draw_batches(axis: Axes, result: Result) -> None:
    batch_sizes = result["batch_sizes"]
    axis.plot(batch_sizes, result["limit"] / result["full_batch"], "o-", color=LINES["limit"]["color"], markersize=3,
              label="limit / full-batch limit")  # fmt: skip
    best = result["map"].min(1) / result["start"]
    color = style.look("MomentRecursion")["color"]
    axis.plot(batch_sizes, best, "s-", color=color, markersize=3, label="least loss / first loss")
    axis.axvline(float(result["critical_batch"]), **CRITICAL)
    axis.axvline(
        float(result["noise_scale"]), color="#202020", linestyle=":", linewidth=1, label="gradient noise scale"
    )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(yscale="log", xlabel="batch size", ylabel="ratio")
    axis.set_ylim(bottom=0.2 * best.min())
    axis.legend(fontsize="x-small", loc="lower left", frameon=True, edgecolor="none", framealpha=0.9)
