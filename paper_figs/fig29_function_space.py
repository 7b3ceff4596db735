"""The function that a wide shallow network ends in.

Paper: Jin and Montufar, arXiv:2006.07356.
Figure: theirs of trained networks beside splines, and of the trajectory beside smoothing splines.
Claim: one input, five points, one hidden layer of ReLU in two copies of opposite sign, neurons uniform, learning rate
of order 1/width. All weights trained by gradient descent and by SGD with single examples end in the interpolant of
the infinitely wide network's features, near the natural cubic spline (a). Largest distance of the read-out's
interpolant to that limit falls as width^-1/2, to the spline it stops (b); 40 draws, bars two standard errors.
Gradient flow on the way (solid) beside smoothing splines of strength lam(t) = M/(s n t) (dashed) (c), and their
largest distance, with ten times the strength for comparison (d).
Refuted by: a slope outside -0.5 +- 0.1; filters more than 0.2036 apart; SGD and gradient descent that end apart.
"""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style


def claims(result: Result) -> dict[str, float]:
    mean = result["gap_to_limit"].mean(1)
    apart = np.abs(result["flow"] - result["spline"]).max(1)
    tenfold = np.abs(result["flow"] - result["spline_tenfold"]).max(1)
    trained = result["trained"][-1]
    return {
        "slope": float(np.polyfit(np.log(result["widths"]), np.log(mean), 1)[0]),
        "spline_floor": float(result["gap_to_spline"].mean(1)[-1] / mean[-1]),
        "sgd_against_descent": float(np.abs(trained[0] - trained[1]).max()),
        "descent_against_limit": float(np.abs(trained[0] - result["limit"]).max()),
        "filter_gap": float(result["filter_gap"]),
        "trajectory_gap": float(apart.max()),
        "tenfold_over_right_strength": float((tenfold / apart).min()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.6)
    grid, axis = result["grid"], axes[0, 0]
    axis.plot(result["x"], result["y"], "o", color="#202020", markersize=5, label="data")
    axis.plot(grid, result["natural"], color="#7f7f7f", linewidth=3, alpha=0.5, label="natural spline")
    axis.plot(grid, result["limit"], color="#202020", linewidth=1, label="infinite width")
    colors = sns.color_palette("colorblind").as_hex()
    for i, width in enumerate(result["trained_widths"]):
        for j, (pattern, name) in enumerate((("--", "GD"), (":", "SGD"))):
            axis.plot(grid, result["trained"][i, j], pattern, color=colors[2 * i], label=f"{name}, width {width}")
    axis.set(xlabel="$x$", ylabel="$f$")
    axis.legend(fontsize="xx-small")
    axis = axes[0, 1]
    for key, color, label in (
        ("limit", colors[0], "to the infinitely wide network"),
        ("spline", colors[1], "to the natural spline"),
    ):
        gaps = result[f"gap_to_{key}"]
        bars = 2 * gaps.std(1, ddof=1) / gaps.shape[1] ** 0.5
        axis.errorbar(result["widths"], gaps.mean(1), bars, fmt="o-", color=color, markersize=4, label=label)
    widths = result["widths"].astype(float)
    axis.plot(
        widths,
        0.7 * result["gap_to_limit"].mean(1)[0] * (widths / widths[0]) ** -0.5,
        ":",
        color="#7f7f7f",
        label="slope -1/2",
    )
    axis.set(xscale="log", yscale="log", xlabel="width", ylabel=r"$\sup |f - f_\infty|$")
    axis.legend(fontsize="x-small")
    axis = axes[1, 0]
    for i, (n_time, color) in enumerate(zip(result["n_times"], sns.color_palette("crest", len(result["n_times"])))):
        label = rf"$nt = 10^{int(np.log10(n_time))}$"
        axis.plot(grid, result["flow"][i], color=color, label=label)
        axis.plot(grid, result["spline"][i], "--", color=color, linewidth=1)
    axis.plot(result["x"], result["y"], "o", color="#202020", markersize=4)
    axis.set(xlabel="$x$", ylabel="$f_t$, smoothing spline")
    axis.legend(fontsize="x-small")
    axis = axes[1, 1]
    for key, color, label in (
        ("spline", colors[0], r"$\lambda(t) = M/(s\,n\,t)$"),
        ("spline_tenfold", colors[1], r"$10\,\lambda(t)$"),
    ):
        axis.plot(
            result["n_times"], np.abs(result["flow"] - result[key]).max(1), "o-", color=color, markersize=4, label=label
        )
    axis.set(xscale="log", xlabel="$n t$", ylabel=r"$\sup |f_t - \mathrm{spline}|$", ylim=(0, None))
    axis.legend(fontsize="small")
    return figure
