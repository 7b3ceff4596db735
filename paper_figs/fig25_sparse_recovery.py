"""Sparse recovery over the scale of the start.

Paper: Woodworth et al., arXiv:2002.09277.
Figure: theirs of test error over alpha, and of the alpha needed over the number of examples, at a smaller size.
Claim: diagonal linear networks w_+^D - w_-^D from w_+ = w_- = a, 20 Gaussian examples of 60 coefficients of which 3 are
not zero. End points of gradient flow by Newton's method on the dual (lines), and by integrating the flow (crosses):
the error falls from that of the interpolant of least l2 norm to zero as a falls, later for D = 2 than for deeper
networks (a). Norms of the end point over the least possible: l2 at large scales, l1 at small ones (b). Largest scale
at which 5 entries of 200 are found within 0.025 in squared error; median and every one of 8 draws (c).
Refuted by: a flow and a Newton solution that end more than 1e-6 apart; an end point that does not interpolate; a
largest good scale that falls with the number of examples.
"""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

COLORS = dict(zip((2, 3, 4), sns.color_palette("colorblind", 3).as_hex()))


def claims(result: Result) -> dict[str, float]:
    error, good = result["error"][0], np.nanmedian(result["largest_good"], 1)
    return {
        "flow_against_newton": float(result["flow_gap"].max()),
        "residual": float(np.nanmax(result["residual"])),
        "error_at_smallest_scale": float(error[0]),
        "error_at_largest_scale_over_least_l2": float(error[-1] / result["least_l2_error"]),
        "l1_over_least_at_smallest_scale": float(result["l1"][0, 0] / result["least_l1"]),
        "least_growth_of_the_good_scale": float(np.diff(good).min()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.9)
    scales = result["scales"]
    for i, depth in enumerate(result["depths"]):
        color = COLORS[int(depth)]
        axes[0, 0].plot(scales, result["error"][i], color=color, label=f"$D = {depth}$")
        if i < 2:
            axes[0, 0].plot(result["flow_scales"], result["flow_error"][i], "x", color=color, markersize=5)
    axes[0, 0].plot([], [], "x", color="#202020", label="flow, integrated")
    axes[0, 0].set(xscale="log", yscale="log", ylim=(1e-7, 3e3), xlabel="scale $a$", ylabel=r"$|\beta - \beta_*|^2$")
    for key, least, pattern in (("l1", "least_l1", "-"), ("l2", "least_l2", "--")):
        for i in (0, 1):
            ratio = result[key][i] / result[least]
            label = rf"$\ell_{key[1]}$, $D = {result['depths'][i]}$"
            axes[0, 1].plot(scales, ratio, pattern, color=COLORS[int(result["depths"][i])], label=label)
    axes[0, 1].axhline(1, color="#7f7f7f", linewidth=0.8)
    axes[0, 1].set(xscale="log", xlabel="scale $a$", ylabel="norm over the least possible")
    sizes, good = result["sizes"], result["largest_good"]
    axes[0, 2].plot(sizes, good, ".", color=COLORS[2], alpha=0.4, markersize=4)
    axes[0, 2].plot(sizes, np.nanmedian(good, 1), "o-", color=COLORS[2], markersize=4, label="median, $D = 2$")
    axes[0, 2].set(xlabel="examples", ylabel=r"$\log_{10}$ of the largest good scale")
    for axis, place in zip(axes.flat, ("upper left", "upper left", "lower right")):
        axis.legend(fontsize="x-small", loc=place)
    return figure
