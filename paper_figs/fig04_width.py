"""Kernel and linearization error against width.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654, whose equations hold for infinite width, where the kernel stays
what it was; Jacot, Gabriel and Hongler, arXiv:1806.07572.
Figure: none of theirs.
Claim: networks with one hidden layer in the NTK parametrization, digits, one learning rate, the same batches and number
of steps at every width, 8 initializations each. The kernel of a network drifts along SGD from its start, |K_t - K_0| /
|K_0| in Frobenius norm, and SGD of the real network leaves SGD of the linearized one on the same batches, |f - f_lin| /
|f_lin - f_0| over all training outputs and runs; both fall as a power of the width. Exponents are least squares slopes
of the logarithms, one for each initialization; printed are their mean and 95 % interval (Student, 8 initializations).
None is presupposed. To compare with, dashed lines have slopes -3/4 and -1. For tanh -1 is expected at large width:
the sum over neurons of small changes with random signs. For ReLU -3/4: the derivative changes only at neurons that
cross zero, about the root of the width of them, by 1 and with random signs. Left: the drift along training of ReLU
networks, geometric means over initializations. Middle and right: every initialization after the last step as a point,
geometric means as lines.
Refuted by: a drift or a gap that does not fall with the width; an exponent far from these; a plain loop of
torch.optim.SGD on the same batches that ends anywhere else than the ensemble's run.
"""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.result import Result
from paper_figs import style

QUANTITIES = {"drift": "kernel drift", "gap": "gap, real to linearized"}
LOOKS = {"relu": ("#202020", "o", "-", "ReLU"), "tanh": ("#7f7f7f", "s", "-", "tanh")}
GUIDES = {"relu": (-0.75, "-3/4"), "tanh": (-1.0, "-1")}


def claims(result: Result) -> dict[str, float]:
    loops = [result[f"{activation}_by_hand"].max() for activation in LOOKS]
    numbers = {"ensemble_against_torch_loop": float(max(loops))}
    for activation in LOOKS:
        for key in QUANTITIES:
            name = f"{activation}_{key}"
            numbers[f"{name}_exponent"] = float(result[f"{name}_slope"])
            numbers[f"{name}_half_interval"] = float(result[f"{name}_slope_high"] - result[f"{name}_slope"])
            numbers[f"{name}_at_widest"] = float(geometric_mean(result[name][-1:, :, -1])[0])
    return numbers


def geometric_mean(values: np.ndarray) -> np.ndarray:
    """Over initializations, the second dimension."""
    return np.asarray(np.exp(np.log(values).mean(1)))


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=3.0)
    draw_along_training(axes[0, 0], result)
    for axis, (key, label) in zip(axes[0, 1:], QUANTITIES.items()):
        for activation in LOOKS:
            draw_against_width(axis, result, activation, key)
        draw_guides(axis, result, key)
        widths = result["widths"]
        axis.set(xscale="log", yscale="log", xlabel="width", ylabel=label)
        axis.set_xticks(widths, [str(width) for width in widths], fontsize="small")
        axis.xaxis.minorticks_off()
        axis.legend(loc="lower left", fontsize="x-small", title="exponent (95 % interval)", title_fontsize="x-small")
    for axis in axes.flat:
        low, high = axis.get_ylim()
        axis.set_ylim(low / 3, high)
        axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    return figure


def draw_along_training(axis: Axes, result: Result) -> None:
    steps, widths = result["steps"][1:], result["widths"]
    for width, drift, color in zip(widths, result["relu_drift"], sns.color_palette("crest", len(widths))):
        axis.plot(steps, geometric_mean(drift[None, :, 1:])[0], ".-", color=color, label=str(width))
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel="kernel drift")
    axis.set_title("ReLU", fontsize="small")
    spacing = {"handlelength": 1.0, "columnspacing": 1.0, "handletextpad": 0.4}
    axis.legend(title="width", fontsize="x-small", title_fontsize="x-small", ncols=3, loc="lower right", **spacing)


def draw_against_width(axis: Axes, result: Result, activation: str, key: str) -> None:
    widths, values = result["widths"], result[f"{activation}_{key}"][..., -1]
    color, marker, line, label = LOOKS[activation]
    low, slope, high = (float(result[f"{activation}_{key}_slope{end}"]) for end in ("_low", "", "_high"))
    axis.plot(widths, values, marker, color=color, alpha=0.35, markersize=2.5, markeredgewidth=0)
    axis.plot(widths, geometric_mean(values), line, color=color, label=f"{label} {slope:.2f} ({low:.2f}, {high:.2f})")


def draw_guides(axis: Axes, result: Result, key: str) -> None:
    """The two expected slopes, from one point above the data."""
    widths = result["widths"]
    first = widths[len(widths) // 2 - 1]
    top = 1.6 * max(result[f"{activation}_{key}"][len(widths) // 2 - 1, :, -1].max() for activation in LOOKS)
    for activation, (power, name) in GUIDES.items():
        end = top * (widths[-1] / first) ** power
        color = LOOKS[activation][0]
        axis.plot([first, widths[-1]], [top, end], "--", color=color, linewidth=0.8)
        axis.annotate(
            name,
            (widths[-1], end),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize="x-small",
            color=color,
            annotation_clip=False,
        )
