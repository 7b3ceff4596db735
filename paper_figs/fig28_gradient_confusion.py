"""Gradient confusion: depth, width, training, and how loose the published bound is.

Paper: Sankararaman, De, Xu, Huang and Goldstein, arXiv:1904.06963.
Figure: theirs of pairwise cosines over width and depth, from the kernel and without training.
Claim: cosines of the gradients of 60 points on the sphere with balanced labels at the start (output gradient -y),
ReLU networks, 4 draws each: the lowest (a) and the standard deviation (b), dense (lines) and stable residual
(dashed); stars: infinite width. Depth confuses at finite width and width cures that; at infinite width depth does the
opposite, and the stable network hardly depends on it. Along full-batch descent on 128 digits (c) confusion falls with
the loss; the floor is what it could not be below. Expected excess of SGD by the exact recursion, 20 examples in 5
dimensions, against theorem 3.1 with the largest confusion of 50 sampled paths (d), learning rates 0.5, 0.1, 0.02 of
the largest that the theorem allows: the true floor falls with the learning rate, the published one does not.
Refuted by: a lowest cosine at depth 16 that does not rise with width; a bound below the recursion.
"""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style


def claims(result: Result) -> dict[str, float]:
    depths = result["depths"].tolist()
    deep = result["mlp_min"][depths.index(16)].mean(-1)
    excess, bound = result["theorem_excess"], result["theorem_bound"]
    return {
        "rise_with_width_at_depth_16": float(deep[-1] - deep[0]),
        "fall_with_depth_at_width_16": float(
            result["mlp_min"][0, 0].mean() - result["mlp_min"][depths.index(16), 0].mean()
        ),
        "rise_with_depth_at_infinite_width": float(result["mlp_infinite"][0, -1] - result["mlp_infinite"][0, 0]),
        "stable_change_with_depth": float(np.ptp(result["stable_min"][:, -1].mean(-1))),
        "confusion_falls_along_training": float(result["path_bound"][-1] / result["path_bound"][0]),
        "confusion_over_floor": float((result["path_bound"] - result["path_floor"]).min()),
        "least_bound_over_excess": float((bound / excess).min()),
        "last_bound_over_excess": float((bound / excess)[:, -1].min()),
        "excess_ratio_of_first_two": float(excess[0, -1] / excess[1, -1]),
        "floor_ratio_of_first_two": float(result["theorem_floor"][0] / result["theorem_floor"][1]),
        "limit_ratio": float(result["limit_ratio"]),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.8)
    for axis, key, label in ((axes[0, 0], "min", "lowest cosine"), (axes[0, 1], "std", "std of cosines")):
        draw_cosines(axis, result, key)
        axis.set(xscale="log", xlabel="width", ylabel=label)
        widths = result["widths"].tolist()
        axis.set_xticks([*widths, 1.8 * widths[-1]], [*map(str, widths), r"$\infty$"], fontsize="small")
        axis.xaxis.minorticks_off()
    axes[0, 0].legend(fontsize="xx-small", title="depth", title_fontsize="xx-small", ncols=2, loc="upper left")
    steps = np.maximum(result["path_steps"], 0.7)
    axis = axes[1, 0]
    for key, line, label in (
        ("bound", "o-", "confusion"),
        ("floor", "x", "its floor"),
        ("square", ":", "mean squared gradient"),
    ):
        values = result[f"path_{key}"] / result["path_square"][0]
        axis.plot(steps, np.where(values > 0, values, np.nan), line, markersize=3.5, label=label)
    axis.plot(steps, result["path_loss"] / result["path_loss"][0], "--", color="#202020", label="loss")
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel="over its scale at the start")
    axis.legend(fontsize="x-small")
    draw_theorem(axes[1, 1], result)
    return figure


def draw_cosines(axis: Axes, result: Result, key: str) -> None:
    widths, depths = result["widths"], result["depths"]
    for i, (depth, color) in enumerate(zip(depths, sns.color_palette("crest", len(depths)))):
        values = result[f"mlp_{key}"][i]
        axis.plot(widths, values.mean(1), "o-", color=color, markersize=3, label=f"{depth}")
        axis.plot(widths, values, ".", color=color, alpha=0.3, markersize=2)
        axis.plot(widths, result[f"stable_{key}"][i].mean(1), "--", color=color, linewidth=1)
        where = 0 if key == "min" else 1
        axis.plot(widths[-1] * 1.8, result["mlp_infinite"][where, i], "*", color=color, markersize=7)


def draw_theorem(axis: Axes, result: Result) -> None:
    for i, (share, color) in enumerate(zip(result["shares"], sns.color_palette("colorblind", 3).as_hex())):
        steps = np.maximum(result["theorem_steps"][i], 0.7)
        axis.plot(steps, result["theorem_excess"][i], "-", color=color, label=f"exact, {share:g}")
        axis.plot(steps, result["theorem_bound"][i], ":", color=color, label=f"theorem, {share:g}")
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel=r"$E\,L - \min L$")
    axis.legend(fontsize="xx-small", ncols=2, title="lr over 2/(nL)", title_fontsize="xx-small")
