"""How wide is wide: from the empirical to the analytic kernel, and the kernel's constancy during training.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654.
Figure: their figure 1, the kernel during SGD at t = 0, 100 and 1000 for growing width.
Claim: the relative distance of the empirical tangent kernel to that of infinite width falls like width^-1/2 (a), and
the distance that the kernel moves in 100 and 1000 steps of SGD falls with width too (b). Lines: mean, bands: smallest
to largest of the seeds; networks of three hidden layers on the edge of chaos, half of the largest stable step.
Refuted by: a fitted exponent of the distance outside -0.5 +- 0.15, or a kernel that moves as far when it is wider.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style
from paper_figs.fig11_edge_of_chaos import COLORS, NAMES


def exponent(widths: np.ndarray, values: np.ndarray) -> float:
    """The slope of log values in log widths, by least squares."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def claims(result: Result) -> dict[str, float]:
    numbers = {}
    for name in map(str, result["activations"]):
        numbers[f"{name}_exponent"] = exponent(result["widths"], result[f"{name}_error"].mean(0))
        numbers[f"{name}_movement_exponent"] = exponent(
            result["train_widths"], result[f"{name}_change"][..., -1].mean(0)
        )
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=3.6)
    for name in map(str, result["activations"]):
        banded(axes[0, 0], result["widths"], result[f"{name}_error"], color=COLORS[name], label=NAMES[name])
        for index, time in enumerate(result["times"]):
            pattern = ("--", "-")[index]
            label = f"{NAMES[name]}, t = {time}"
            change = result[f"{name}_change"][..., index]
            banded(axes[0, 1], result["train_widths"], change, color=COLORS[name], label=label, pattern=pattern)
    widths = result["widths"].astype(float)
    line = result["relu_error"].mean(0)[0] * (widths / widths[0]) ** -0.5
    axes[0, 0].plot(widths, line, ":", color="#7f7f7f", label="width$^{-1/2}$")
    axes[0, 0].set_ylabel("distance to the analytic kernel")
    axes[0, 1].set_ylabel("change of the kernel since t = 0")
    axes[0, 1].set_ylim(3e-3, None)
    for axis, title in zip(axes[0], ("at initialization", "during SGD")):
        axis.set(xscale="log", yscale="log", xlabel="width", title=title)
        axis.set_xticks(result["widths"], [str(width) for width in result["widths"]], minor=False)
        axis.set_xticks([], minor=True)
        axis.legend(loc="lower left")
    return figure


def banded(axis: Axes, x: np.ndarray, samples: np.ndarray, *, color: object, label: str, pattern: str = "-") -> None:
    axis.plot(x, samples.mean(0), pattern, color=color, label=label)
    axis.fill_between(x, samples.min(0), samples.max(0), color=color, alpha=0.2, linewidth=0)
