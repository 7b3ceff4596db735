"""Where the frozen kernel is right, and where the moving kernel is needed.

Paper: Woodworth et al., arXiv:2002.09277; Chizat, Oyallon and Bach, arXiv:1812.07956.
Figure: none of theirs.
Claim: diagonal linear networks of 40 coefficients, 20 examples, batches of 2, lr = 0.3 of the mean-square limit, 400
steps, 256 runs. Relative error of the predicted training loss at the last step, frozen and moving kernel, over z =
max|beta_l2| / a^D; bars are two standard errors of the runs, the gray band 5 % (a). Test loss, the same (b). Share of
the loss that the linearization makes after 60 steps, real against linearized runs on the same batches (c): it falls
with slope -2 in a^D for these networks, whose symmetry kills the first order, with slope -1 in the output scale for a
tanh network, and not like that for ReLU, whose kinks have no scale.
Refuted by: slopes of the last two doublings other than -2 and -1 within 0.1; a moving kernel off by more than 5 % and
two standard errors at z = 7.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

MARKERS = {2: "o", 3: "s"}
FAMILIES = {
    "diagonal2": ("#0173b2", "o-", "diagonal, $D = 2$"),
    "diagonal3": ("#de8f05", "s-", "diagonal, $D = 3$"),
    "diagonal4": ("#cc78bc", "^-", "diagonal, $D = 4$"),
    "tanh": ("#202020", "D-", "tanh network"),
    "relu": ("#7f7f7f", "x--", "ReLU network"),
}


def claims(result: Result) -> dict[str, float]:
    z, moving, error = (result[f"diagonal2_{key}"] for key in ("z", "moving", "standard_error"))
    seven = int(np.abs(z - 6.95).argmin())
    numbers = {
        "moving_error_at_7": float(abs(moving[seven, -1])),
        "moving_error_at_7_in_errors_beyond_5_percent": float((abs(moving[seven, -1]) - 0.05) / error[seven, -1]),
        "frozen_error_at_7": float(result["diagonal2_frozen"][seven, -1]),
        "frozen_test_error_at_7": float(result["diagonal2_frozen_test"][seven, -1]),
        "frozen_error_below_1": float(np.abs(result["diagonal2_frozen_test"][z < 1.2, -1]).max()),
        "tanh_slope": float(result["slope_tanh_slopes"][-2:].mean()),
        "relu_slope_departure": float(np.abs(result["slope_relu_slopes"][-2:] + 1).max()),
    }
    for depth in (2, 3, 4):
        if f"slope_diagonal{depth}_slopes" in result:
            worst = np.abs(result[f"slope_diagonal{depth}_slopes"][-2:] + 2).max()
            numbers[f"slope_departure_depth_{depth}"] = float(worst)
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=3.0)
    draw_errors(axes[0, 0], result, "", "training loss")
    draw_errors(axes[0, 1], result, "_test", "test loss")
    axes[0, 0].set_ylabel("predicted / measured - 1")
    axis = axes[0, 2]
    for family, (color, line, label) in FAMILIES.items():
        if f"slope_{family}_share" in result:
            scale, share = result[f"slope_{family}_scale"], result[f"slope_{family}_share"]
            axis.plot(scale, share, line, color=color, label=label, markersize=3.5)
    scale = np.array([1.0, 8.0])
    axis.plot(scale, 3e-5 * scale**-2.0, ":", color="#202020", linewidth=1)
    axis.annotate("slope -2", (1.0, 3e-5), xytext=(-14, -28), textcoords="offset points", fontsize="x-small")
    scale = np.array([10.0, 250.0])
    axis.plot(scale, 0.1 / scale, ":", color="#202020", linewidth=1)
    axis.annotate("-1", (250.0, 4e-4), xytext=(-2, 6), textcoords="offset points", fontsize="x-small")
    axis.set(xscale="log", yscale="log", xlabel="$a^D$, or output scale", ylabel="share of the linearization")
    axis.legend(fontsize="xx-small", loc="lower right")
    return figure


def draw_errors(axis: Axes, result: Result, side: str, title: str) -> None:
    axis.axhspan(-0.05, 0.05, color="#7f7f7f", alpha=0.2, linewidth=0)
    for depth, marker in MARKERS.items():
        if f"diagonal{depth}_z" not in result:
            continue
        z, error = result[f"diagonal{depth}_z"], 2 * result[f"diagonal{depth}_standard_error"][:, -1]
        for key, look in (("frozen", "MomentRecursion"), ("moving", "MovingKernel")):
            values = result[f"diagonal{depth}_{key}{side}"][:, -1]
            color = style.look(look)["color"]
            name = "frozen kernel" if key == "frozen" else "moving kernel"
            bars = error if not side else np.zeros_like(error)
            label = f"{name}, $D = {depth}$"
            axis.errorbar(z, values, bars, fmt=f"{marker}-", color=color, markersize=3.5, label=label, linewidth=1)
    axis.set(xscale="log", xlabel=r"$z = \max|\beta_{\ell_2}| / a^D$", title=title)
    axis.legend(fontsize="xx-small", loc="upper left")
