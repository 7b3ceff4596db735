"""What the empirical kernel costs: seconds and bytes against examples, outputs and width, and other tools.

Paper: none.
Figure: none; engineering of this library.
Claim: from layer structure the kernel costs what its matrix products cost. Against the recipe of torch.func (all
Jacobians, one product) the advantage in seconds (a to c) and in peak memory (d to f) grows with the width, and both
kernels are equal to rounding. What is not swept stays at 64 examples, 8 outputs and width 256; two hidden layers,
float32; the least of several calls in turns. (g): four jobs by other tools, one thread, fresh processes, medians of
the committed benchmark with the smallest and largest.
Refuted by: kernels that differ by more than rounding from one backward pass per output, an advantage that is less than
twofold at the largest sizes, or one that does not grow with the width.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

TOOLS = {
    "ours": ("#0072b2", "sgdsde"),
    "layer_structure": ("#202020", "by hand"),
    "neural_tangents": ("#009e73", "neural-tangents"),
    "nngeometry": ("#cc79a7", "nngeometry"),
    "torch_func": ("#d55e00", "torch.func"),
    "backpack": ("#8c6d31", "BackPACK"),
}
METHODS = {"sgdsde": "ours", "torch_func": "torch_func"}
LABELS = {"examples": "examples", "outputs": "outputs", "width": "width"}
CASES = {
    "mlp_one_output": "64-4096-1\nn = 512",
    "mlp_trace": "784-512-512-10\nn = 256, trace",
    "mlp_full": "784-512-512-10\nn = 256, full",
    "cnn_full": "CNN 32-64-64\nn = 64, full",
}


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """The slope of log values in log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def claims(result: Result) -> dict[str, float]:
    numbers = {
        "backward_pass_error": float(result["backward_pass_error"]),
        "largest_difference": float(result["largest_difference"]),
    }
    for sweep in map(str, result["sweeps"]):
        seconds, held = result[f"{sweep}_seconds"], result[f"{sweep}_bytes"]
        numbers[f"speedup_at_most_{sweep}"] = float(seconds[-1, 1] / seconds[-1, 0])
        if np.isfinite(held).all():
            numbers[f"saving_at_most_{sweep}"] = float(held[-1, 1] / max(held[-1, 0], 1.0))
    width = result["width_seconds"]
    numbers["width_exponent_of_speedup"] = exponent(result["width"], width[:, 1] / width[:, 0])
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(3, 3, height=7.4)
    for column, sweep in enumerate(map(str, result["sweeps"])):
        for row, (quantity, scale, label) in enumerate((("seconds", 1.0, "seconds"), ("bytes", 2**20, "peak MiB"))):
            axis = axes[row, column]
            for index, method in enumerate(map(str, result["methods"])):
                color, name = TOOLS[METHODS[method]]
                values = result[f"{sweep}_{quantity}"][:, index] / scale
                axis.plot(result[sweep], np.where(values > 0, values, np.nan), "o-", ms=3, color=color, label=name)
            axis.set(xscale="log", yscale="log", xlabel=LABELS[sweep], ylabel=label if column == 0 else "")
            axis.set_xticks(result[sweep], [str(value) for value in result[sweep]], minor=False)
            axis.set_xticks([], minor=True)
    axes[0, 0].legend(loc="upper left")
    for row in (0, 1):
        low = min(axis.get_ylim()[0] for axis in axes[row])
        high = max(axis.get_ylim()[1] for axis in axes[row])
        for axis in axes[row]:
            axis.set_ylim(low, high)
    others(figure, axes, result)
    return figure


def others(figure: Figure, axes: np.ndarray, result: Result) -> None:
    """The committed comparison as bars over the whole last row."""
    grid = axes[2, 0].get_gridspec()
    for axis in axes[2]:
        axis.remove()
    axis = figure.add_subplot(grid[2, :])
    axis.annotate("g", (0, 1), xytext=(-22, 6), xycoords="axes fraction", textcoords="offset points", fontweight="bold")
    bars(axis, result)


def bars(axis: Axes, result: Result) -> None:
    tools = [str(tool) for tool in result["peer_tools"]]
    shown = [name for name in TOOLS if name in tools]
    cases = [str(case) for case in result["peer_cases"]]
    positions = np.arange(len(cases))
    width = 0.8 / len(shown)
    for index, name in enumerate(shown):
        median, low, high = result["peer_seconds"][:, tools.index(name)].T
        color, label = TOOLS[name]
        place = positions + (index - (len(shown) - 1) / 2) * width
        axis.bar(place, median, width, color=color, label=label)
        axis.errorbar(place, median, [median - low, high - median], fmt="none", ecolor="#808080", elinewidth=1)
    axis.set_xticks(positions, [CASES.get(case, case) for case in cases])
    axis.set(yscale="log", ylabel="seconds", title="one thread, float32")
    axis.legend(loc="upper left", ncols=2)
