"""Which deep networks train.

Paper: Hayou, Doucet and Rousseau, arXiv:1902.06853, their table of test accuracies at depth 200 and width 300.
Figure: the ordering of that table: ELU and tanh on the edge of chaos far above ReLU; softplus and sigmoid at chance.
Claim: test accuracy after training, against depth (a), and during training at the largest depth, on the edge (b) and
off it (c); one learning rate, lines: mean, bands: smallest to largest of the seeds. Softplus and sigmoid start from
sigma_w = 1, sigma_b = 0. SiLU's point on the edge is an unstable fixed point of the variance, which deep networks of
finite width leave. The kernel of infinite width explains on against off: the condition number of K^L, and the time that
gradient flow needs to a tenth of the first loss in units of the fastest mode's, stay moderate on the edge and explode
in the ordered phase (d). It does not explain why ReLU is behind tanh and ELU: at infinite width its kernel is as well
conditioned, so that the cause must be sought at finite width, where fluctuations grow with depth / width.
Refuted by: bands of ELU or tanh that touch those of ReLU, or of ReLU those of softplus and sigmoid, at the largest
depth; or an ordered kernel that is as well conditioned as one on the edge.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style
from paper_figs.fig11_edge_of_chaos import COLORS

NAMES = {"elu": "ELU", "tanh": "tanh", "silu": "SiLU", "relu": "ReLU", "softplus": "softplus", "sigmoid": "sigmoid"}
OFF = {"tanh_ordered": "tanh, ordered", "tanh_chaotic": "tanh, chaotic", "relu_ordered": "ReLU, ordered"}
LOOK = {name: COLORS.get(name, "#7f7f7f") for name in NAMES} | {"softplus": "#202020"}
PATTERNS = {"tanh_ordered": "--", "tanh_chaotic": "-.", "relu_ordered": "--"}


def final(result: Result, name: str) -> np.ndarray:
    """Accuracy of each seed after training at the largest depth."""
    return np.asarray(result[f"{name}_{result['depths'][-1]}_accuracy"][:, -1])


def claims(result: Result) -> dict[str, float]:
    usual = max(final(result, name).max() for name in ("softplus", "sigmoid"))
    smooth = min(final(result, name).min() for name in ("elu", "tanh"))
    conditions = {name: float(result[f"{name}_kernel"][0, -1]) for name in ("relu", "elu", "tanh", "tanh_ordered")}
    return {
        "smooth_above_relu": float(smooth - final(result, "relu").max()),
        "relu_above_usual": float(final(result, "relu").min() - usual),
        "usual_accuracy": float(usual),
        "condition_on_the_edge": max(conditions[name] for name in ("relu", "elu", "tanh")),
        "condition_ordered": conditions["tanh_ordered"],
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.8)
    depth = int(result["depths"][-1])
    draw_depths(axes[0, 0], result)
    for axis, names, title in ((axes[0, 1], NAMES, "on the edge"), (axes[1, 0], OFF, "off the edge")):
        for name, label in names.items():
            key = name.split("_")[0]
            pattern = PATTERNS.get(name, "-")
            banded(axis, result["steps"], result[f"{name}_{depth}_accuracy"], color=LOOK[key], label=label, ls=pattern)
        axis.set(ylim=(0, 1), xlabel="step", ylabel="test accuracy", title=f"{title}, depth {depth}")
    axes[1, 0].legend()
    draw_kernels(axes[1, 1], result)
    style.legend_above(figure, axes[:1, :1], columns=6)
    return figure


def banded(axis: Axes, x: np.ndarray, samples: np.ndarray, *, color: object, label: str, ls: str = "-") -> None:
    axis.plot(x, samples.mean(0), color=color, label=label, linestyle=ls)
    axis.fill_between(x, samples.min(0), samples.max(0), color=color, alpha=0.2, linewidth=0)


def draw_depths(axis: Axes, result: Result) -> None:
    for name, label in NAMES.items():
        samples = np.stack([result[f"{name}_{depth}_accuracy"][:, -1] for depth in result["depths"]], 1)
        banded(axis, result["depths"], samples, color=LOOK[name], label=label)
    data, width = {"mnist": "MNIST"}.get(str(result["dataset"]), str(result["dataset"])), int(result["width"])
    axis.set(
        ylim=(0, 1), xlabel="depth", ylabel="test accuracy", title=f"{data}, width {width}, {result['steps'][-1]} steps"
    )
    axis.set_xticks(result["depths"])


def draw_kernels(axis: Axes, result: Result) -> None:
    depths = result["kernel_depths"]
    for name in ("relu", "elu", "tanh"):
        condition, time = result[f"{name}_kernel"]
        axis.plot(depths, time, color=LOOK[name], label=f"{NAMES[name]}, time")
        axis.plot(depths, condition, ":", color=LOOK[name], label=f"{NAMES[name]}, condition")
    condition, time = result["tanh_ordered_kernel"]
    finite = np.isfinite(time)
    axis.plot(depths[finite], time[finite], "--", color=LOOK["tanh"], label="tanh ordered, time")
    axis.set(xscale="log", yscale="log", xlabel="depth", title="predicted by the kernel of infinite width")
    axis.set_ylabel("condition number, time")
    axis.set_xlim(1, 2000)
    axis.legend(fontsize="x-small", loc="upper right")
