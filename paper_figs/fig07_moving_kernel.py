"""The loss of networks that learn features, predicted before training.

Paper: none; predictions with the kernel of initialization are Hayou, Doucet, Rousseau, arXiv:1905.13654.
Figure: none.
Claim: for ten-output networks of one hidden layer in the standard parametrization (tanh and ReLU, widths 32 to 1024 at
laptop scale, digits, batch 8, learning rate 0.4 of the mean-square limit at initialization) the moving kernel is the
expected loss of real SGD (128 runs at laptop scale), train and test, within 2 % where the kernel moves by up to 0.3 of
itself and within 5 % where it moves by up to 0.8, or within 4 standard errors; the frozen kernel and full-batch descent
are off by tens of per cent on the narrow networks.
a, b: the narrowest networks. Black: mean of the real runs, its band from the 5 % to the 95 % quantile. d, e: relative
error, (curve - measured) / measured; the gray band is 3 standard errors of the measured mean. c: largest relative error
of the training loss over all recorded steps against the largest relative change of the kernel along full-batch descent
(Frobenius norm), one point a network: circles tanh, squares ReLU, open for MNIST. f: what each ingredient
buys and costs (seconds of one core) on the two narrowest networks: kernel of the path around full-batch descent; the
mean gradient over the noise; the mean outputs too; the mean kernel too (the default).
Refuted by: a recorded step at which the moving kernel is off by more than that, or a frozen kernel that does as well on
the narrow networks.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.result import Result
from paper_figs import style

KINDS = ("GradientDescent", "MomentRecursion", "MovingKernel")
SIDES = ("train", "test")
INGREDIENTS = {
    "kernel_of_path": "kernel of path",
    "mean_gradient": "+ gradient",
    "mean_outputs": "+ outputs",
    "MovingKernel": "+ kernel",
}
N_ERRORS = 4
LITTLE_DRIFT, LITTLE_TOLERANCE = 0.3, 0.02
DRIFT, TOLERANCE = 0.8, 0.05
MARKERS = {"tanh": "o", "relu": "s"}


def claims(result: Result) -> dict[str, float]:
    digits, mnist = cells(result, "digits"), cells(result, "mnist")
    narrow = [cell for cell in digits if f"{cell}_seconds_MovingKernel" in result]
    numbers = {
        "largest_drift": max(drift(result, cell) for cell in digits),
        "disagreement": max(disagreement(result, cell, side) for cell in digits for side in SIDES),
        "largest_error": max(largest_error(result, cell, "MovingKernel") for cell in digits),
        "least_narrow_frozen_error": min(largest_error(result, cell, "MomentRecursion") for cell in narrow),
        "least_narrow_descent_error": min(largest_error(result, cell, "GradientDescent") for cell in narrow),
        "drift_of_widest_by_narrowest": max(
            drift(result, f"digits_{name}_{widest(digits)}") / drift(result, cell)
            for cell in narrow
            for name in [cell.split("_")[1]]
        ),
    }
    for cell in narrow:
        for kind in INGREDIENTS:
            numbers[f"{cell.split('_')[1]}_{kind}_error"] = largest_error(result, cell, kind)
    if mnist:
        numbers["mnist_disagreement"] = max(disagreement(result, cell, side) for cell in mnist for side in SIDES)
    return numbers


def cells(result: Result, data: str) -> list[str]:
    return [str(cell) for cell in result["cells"] if str(cell).startswith(data)]


def widest(names: list[str]) -> int:
    return max(int(name.split("_")[2]) for name in names)


def drift(result: Result, cell: str) -> float:
    return float(result[f"{cell}_drift"])


def errors(result: Result, cell: str, side: str, kind: str) -> np.ndarray:
    """Relative error at each step."""
    return np.asarray(result[f"{cell}_{side}_{kind}"] / result[f"{cell}_{side}_measured"].mean(0) - 1)


def largest_error(result: Result, cell: str, kind: str) -> float:
    return float(np.abs(errors(result, cell, "train", kind)).max())


def standard_error(result: Result, cell: str, side: str) -> np.ndarray:
    """Of the measured mean, relative to it."""
    runs = result[f"{cell}_{side}_measured"]
    return np.asarray(runs.std(0, ddof=1) / np.sqrt(len(runs)) / runs.mean(0))


def disagreement(result: Result, cell: str, side: str) -> float:
    """The largest of min(|error| / tolerance, |error| / 4 standard errors): at most 1 is agreement."""
    tolerance = LITTLE_TOLERANCE if drift(result, cell) <= LITTLE_DRIFT else TOLERANCE
    allowed = np.maximum(tolerance, N_ERRORS * standard_error(result, cell, side))
    return float((np.abs(errors(result, cell, side, "MovingKernel")) / allowed).max())


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 3, height=5.0)
    narrow = [cell for cell in cells(result, "digits") if f"{cell}_seconds_MovingKernel" in result]
    for column, cell in enumerate(narrow):
        _, activation, width = cell.split("_")
        axes[0, column].set_title(
            f"{activation}, width {width}, lr {float(result[f'{cell}_lr']):.2g}", fontsize="small"
        )
        draw_loss(axes[0, column], result, cell)
        draw_error(axes[1, column], result, cell)
    axes[0, 0].set_ylabel("train loss")
    axes[1, 0].set_ylabel("relative error")
    draw_drift(axes[0, 2], result)
    draw_ingredients(axes[1, 2], result, narrow)
    style.legend_above(figure, axes[:, :2], columns=4)
    return figure


def draw_loss(axis: Axes, result: Result, cell: str) -> None:
    steps, runs = result["steps"][1:], result[f"{cell}_train_measured"][:, 1:]
    low, high = np.quantile(runs, [0.05, 0.95], axis=0)
    style.band(axis, steps, runs.mean(0), "measured", low=low, high=high)
    for kind in KINDS:
        style.curve(axis, steps, result[f"{cell}_train_{kind}"][1:], kind)
    axis.set(xscale="log", yscale="log", ylim=(0.5 * low.min(), 1.5 * high.max()))


def draw_error(axis: Axes, result: Result, cell: str) -> None:
    steps, band = result["steps"][1:], 3 * standard_error(result, cell, "train")[1:]
    axis.fill_between(steps, -band, band, color="#202020", alpha=0.2, linewidth=0)
    for kind in KINDS:
        style.curve(axis, steps, errors(result, cell, "train", kind)[1:], kind)
    axis.set_xscale("log")
    axis.set_xlabel("step")
    percent(axis)
    axis.set_ylim(-1, 2)


def percent(axis: Axes) -> None:
    axis.set_yscale("symlog", linthresh=TOLERANCE, linscale=0.8)
    axis.yaxis.set_major_locator(FixedLocator([-1, -0.3, -TOLERANCE, 0, TOLERANCE, 0.3, 1]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f} %"))
    for level in (-TOLERANCE, TOLERANCE):
        axis.axhline(level, color="#202020", linewidth=0.6)


def draw_drift(axis: Axes, result: Result) -> None:
    for cell in (str(name) for name in result["cells"]):
        data, activation, _ = cell.split("_")
        for kind in KINDS:
            color = style.look(kind)["color"]
            face = color if data == "digits" else "none"
            error = largest_error(result, cell, kind)
            axis.plot(drift(result, cell), error, MARKERS[activation], color=color, markerfacecolor=face, markersize=5)
    axis.set(xscale="log", yscale="log", xlabel="kernel drift", ylabel="largest error, train")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.axhline(TOLERANCE, color="#202020", linewidth=0.6)


def draw_ingredients(axis: Axes, result: Result, narrow: list[str]) -> None:
    places, color = np.arange(len(INGREDIENTS)), style.look("MovingKernel")["color"]
    found = np.array([[largest_error(result, cell, kind) for kind in INGREDIENTS] for cell in narrow])
    for cell, values in zip(narrow, found):
        activation = cell.split("_")[1]
        axis.plot(places, values, MARKERS[activation] + ":", color=color, markersize=5, label=activation)
        for x, y, kind in zip(places, values, INGREDIENTS):
            text = f"{float(result[f'{cell}_seconds_{kind}']):.1f} s"
            shift = (0, 6) if y == found[:, x].max() else (0, -12)
            axis.annotate(text, (x, y), shift, textcoords="offset points", fontsize="x-small", ha="center")
    axis.set(yscale="log", ylabel="largest error, train")
    axis.set_xticks(places, list(INGREDIENTS.values()), rotation=25, ha="right", fontsize="small")
    axis.margins(x=0.15, y=0.25)
    axis.yaxis.set_major_locator(FixedLocator([0.005, 0.01, 0.02, 0.05, 0.1]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.legend()
