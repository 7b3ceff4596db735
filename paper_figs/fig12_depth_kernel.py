"""What depth does to the tangent kernel of infinite width.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654, propositions on the kernel in the large-depth limit.
Figure: their rates of convergence, printed as 1/L on the edge of chaos, which is log L / L.
Claim: on the edge of chaos 1 - c falls like 9 pi^2 / (2 l^2) for ReLU and 2 / (f''(1) l) for tanh (a, dashed); the
ratio of off-diagonal to diagonal kernel tends to 1/4 and 1/3 at the rate log L / L, and to 1 exponentially when
ordered (b). For ReLU K/q less a quarter of its diagonal grows like (3/8) log L (half of that in a residual network
with a = 1, whose layers count half), so that the next term of K/(L q) is log L / L and not 1/L (c). The ratio of
residual networks: plain to 1/4, scaled by l^-1/2 to 1/4 like 1/log L, stable (depth^-1/2) to another value (d).
Refuted by: fitted exponents of 1 - c other than -2 and -1, a slope of K/q - L/4 in log L other than 3/8, or an ordered
kernel that keeps a ratio below 1.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style
from paper_figs.fig11_edge_of_chaos import COLORS

GRAY = "#7f7f7f"


def claims(result: Result) -> dict[str, float]:
    depth = float(result["relu_layer"][-1])
    return {
        "relu_gap_limit": float(result["relu_gap"][-1]) * depth**2,
        "relu_gap_exponent": float(result["relu_gap_exponent"][0]),
        "tanh_gap_exponent": float(result["tanh_gap_exponent"][0]),
        "relu_log_slope": float(result["relu_slope"][0]),
        "residual_ratio": float(ratio(result, "residual")[-1]),
        "ordered_diagonal": 2 * float(result["ordered_diagonal"][-1]),
        "ordered_ratio": float(ratio(result, "ordered")[-1]),
        "stable_ratio": float(result["stable_ratio"][-1]),
    }


def ratio(result: Result, name: str) -> np.ndarray:
    return np.asarray(result[f"{name}_off_diagonal"] / result[f"{name}_diagonal"])


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.6)
    draw_gaps(axes[0, 0], result)
    draw_distances(axes[0, 1], result)
    draw_excess(axes[1, 0], result)
    draw_residual(axes[1, 1], result)
    return figure


def draw_gaps(axis: Axes, result: Result) -> None:
    limits = {"relu": (4.5 * np.pi**2, 2, "ReLU"), "tanh": (2 / float(result["tanh_curvature"]), 1, "tanh")}
    for name, (factor, power, label) in limits.items():
        layer = result[f"{name}_layer"].astype(float)
        axis.plot(layer, result[f"{name}_gap"], color=COLORS[name], label=label)
        axis.plot(layer, np.minimum(factor / layer**power, 3), "--", color=GRAY, linewidth=1, label=None)
    axis.set(xscale="log", yscale="log", xlabel="layer $l$", ylabel="$1 - c_l$", title="correlation, edge of chaos")
    axis.legend()


def draw_distances(axis: Axes, result: Result) -> None:
    looks = {
        "relu": (0.25, "-", COLORS["relu"], "ReLU, edge: to 1/4"),
        "tanh": (1 / 3, "-", COLORS["tanh"], "tanh, edge: to 1/3"),
        "ordered": (1.0, "--", COLORS["relu"], "ReLU, ordered: to 1"),
    }
    for name, (limit, pattern, color, label) in looks.items():
        distance = np.abs(ratio(result, name) - limit)
        axis.plot(
            result[f"{name}_layer"], np.where(distance > 1e-14, distance, np.nan), pattern, color=color, label=label
        )
    layer = result["relu_layer"][result["relu_layer"] > 20].astype(float)
    axis.plot(layer, np.log(layer) / layer, ":", color=GRAY, label=r"$\log L\,/\,L$")
    axis.set(
        xscale="log", yscale="log", ylim=(1e-8, 2), xlabel="depth $L$", title="distance of the kernel to its limit"
    )
    axis.set_ylabel(r"$|K(x, x')\,/\,K(x, x) - \mathrm{limit}|$")
    axis.legend()


def draw_excess(axis: Axes, result: Result) -> None:
    for name, label, pattern in (("relu", "ReLU, dense", "-"), ("residual", "ReLU, residual", "--")):
        layer = result[f"{name}_layer"].astype(float)
        excess = result[f"{name}_off_diagonal"] - result[f"{name}_diagonal"] / 4
        axis.plot(layer, excess, pattern, color=COLORS["relu" if name == "relu" else "silu"], label=label)
    layer = result["relu_layer"].astype(float)
    line = 3 / 8 * np.log(layer / layer[-1]) + result["relu_off_diagonal"][-1] - result["relu_diagonal"][-1] / 4
    axis.plot(layer[layer > 10], line[layer > 10], ":", color="#202020", label=r"slope 3/8 in $\log L$")
    axis.set(xscale="log", xlabel="depth $L$", ylabel=r"$(K(x, x') - K(x, x)/4)\,/\,q$", title="the next term")
    axis.legend()


def draw_residual(axis: Axes, result: Result) -> None:
    looks = {"residual": ("plain", "-"), "decreasing": (r"scaled by $l^{-1/2}$", "--")}
    for name, (label, pattern) in looks.items():
        axis.plot(result[f"{name}_layer"], ratio(result, name), pattern, color=COLORS["silu"], label=label)
    axis.plot(result["stable_layer"], result["stable_ratio"], "o-", color=COLORS["elu"], markersize=3, label="stable")
    axis.axhline(0.25, color=GRAY, linewidth=0.8)
    axis.set(xscale="log", xlabel="depth $L$", ylabel="$K(x, x')\\,/\\,K(x, x)$", title="residual networks, ReLU")
    axis.legend()
