"""Where deep networks can be initialized: the edge of chaos.

Paper: Hayou, Doucet and Rousseau, arXiv:1902.06853 and 1805.08266.
Figure: their edge-of-chaos curves and correlation maps, whose tables are Monte Carlo and good to two digits.
Claim: the curves of six activations by quadrature, with the unstable part of SiLU and GELU dotted (a) and sigmoid's,
which their paper says does not exist, far above (b). The phase diagram of tanh with chi = 1 dashed, which the curve of
panel (a) must follow (c). Correlation maps of one layer: on the edge they touch the diagonal at 1, ordered they stay
above it, chaotic they cross it below 1, at the dot (d).
Refuted by: a point of the curve at which chi differs from 1, a fixed point off the diagonal, or numbers at sigma_b =
0.2 other than those of an independent integration.
"""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

NAMES = {"tanh": "tanh", "elu": "ELU", "erf": "erf", "silu": "SiLU", "gelu": "GELU", "relu": "ReLU"}
COLORS = dict(zip([*NAMES, "sigmoid"], sns.color_palette("colorblind", 7)))


def claims(result: Result) -> dict[str, float]:
    numbers = {}
    for name in ("tanh", "elu", "erf", "sigmoid"):
        numbers[f"{name}_sigma_w"], numbers[f"{name}_q"] = (float(value) for value in result[f"{name}_point"])
    numbers["silu_stable_from"] = float(result["silu_sigma_b"][~result["silu_is_stable"]].max())
    numbers["chaotic_fixed_point"] = float(result["chaotic_fixed_point"][0])
    numbers["largest_map_on_diagonal_error"] = max(
        abs(float(result[f"{name}_map"][-1]) - 1) for name in ("relu", "tanh", "elu", "ordered", "chaotic")
    )
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.8)
    draw_curves(axes[0, 0], result)
    draw_sigmoid(axes[0, 1], result)
    draw_phases(figure, axes[1, 0], result)
    draw_maps(axes[1, 1], result)
    return figure


def draw_curves(axis: Axes, result: Result) -> None:
    for name, label in NAMES.items():
        if name == "relu":
            axis.plot(0, np.sqrt(2), "o", color=COLORS[name], label=label, clip_on=False)
            continue
        sigma_b, sigma_w, stable = (result[f"{name}_{key}"] for key in ("sigma_b", "sigma_w", "is_stable"))
        axis.plot(sigma_b, np.where(stable, sigma_w, np.nan), color=COLORS[name], label=label)
        axis.plot(sigma_b, np.where(stable, np.nan, sigma_w), ":", color=COLORS[name])
    axis.set(xlim=(0, 1.5), ylim=(0.8, 2.2), xlabel=r"$\sigma_b$", ylabel=r"$\sigma_w$", title="edge of chaos")
    axis.legend(ncols=2, loc="lower right")


def draw_sigmoid(axis: Axes, result: Result) -> None:
    axis.plot(result["sigmoid_sigma_b"], result["sigmoid_sigma_w"], color=COLORS["sigmoid"], label="sigmoid")
    axis.set(xlim=(0, 6), ylim=(0, 14), xlabel=r"$\sigma_b$", ylabel=r"$\sigma_w$", title="edge of chaos, sigmoid")
    axis.legend(loc="lower right")


def draw_phases(figure: Figure, axis: Axes, result: Result) -> None:
    chi = np.log(result["chi"])
    mesh = axis.pcolormesh(
        result["sigma_b"], result["sigma_w"], chi.T, cmap="RdBu_r", vmin=-2, vmax=2, shading="gouraud", rasterized=True
    )
    axis.contour(result["sigma_b"], result["sigma_w"], chi.T, levels=[0], colors="#202020", linestyles="--")
    axis.plot(result["tanh_sigma_b"], result["tanh_sigma_w"], color=COLORS["tanh"], linewidth=1)
    axis.set(xlim=(0.02, 1.5), ylim=(0.5, 3), xlabel=r"$\sigma_b$", ylabel=r"$\sigma_w$", title="phases of tanh")
    axis.text(1.1, 0.75, "ordered", color="white")
    axis.text(0.1, 2.7, "chaotic")
    figure.colorbar(mesh, ax=axis, label=r"$\log\ \chi$")


def draw_maps(axis: Axes, result: Result) -> None:
    c = result["c"]
    for name in result["maps"]:
        axis.plot(c, result[f"{name}_map"], color=COLORS[str(name)], label=f"{NAMES[str(name)]}, edge")
    for phase, pattern in (("ordered", "--"), ("chaotic", "-.")):
        axis.plot(c, result[f"{phase}_map"], pattern, color=COLORS["tanh"], label=f"tanh, {phase}")
    axis.plot([0, 1], [0, 1], color="#7f7f7f", linewidth=0.8)
    fixed = float(result["chaotic_fixed_point"][0])
    axis.plot(fixed, fixed, "o", color=COLORS["tanh"], markersize=4)
    axis.set(
        xlabel="correlation $c$", ylabel="$f(c)$ one layer on", title="correlation maps", xlim=(0, 1), ylim=(0, 1.02)
    )
    axis.legend(loc="lower right")
