"""What the empirical kernel costs: seconds and bytes against examples, outputs and width, and other tools.

Paper: none.
Figure: none; engineering of this library.
Claim: from layer structure the kernel costs what its matrix products cost. Against the recipe of torch.func (all
Jacobians, one product) the advantage in seconds (a to c) and in peak memory (d to f) grows with the width, and both
kernels are equal to rounding: an MLP of two hidden layers, float32, one thread, the least of several calls in turns.
(g): the committed benchmark of other tools, float32, fresh processes, medians with the smallest and largest; MLPs
64-4096-1 at n = 512 and 784-512-512-10 at n = 256 (trace over outputs, and full), CNN 32-64-64 with 10 outputs at
n = 64. (h): errors where layers share weights, relative to the largest entry; the line is rounding in float32.
Refuted by: kernels that differ by more than rounding from one backward pass per output, shared weights among them, an
advantage that is less than fivefold at the largest sizes, or one that does not grow with the width.
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
CASES = {
    "mlp_one_output": "MLP\n1 output",
    "mlp_trace": "MLP\ntrace",
    "mlp_full": "MLP\nfull",
    "cnn_full": "CNN\nfull",
    "tied_weights": "tied\nweights",
    "reused_layer": "layer\nused twice",
}


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """The slope of log values in log sizes, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def claims(result: Result) -> dict[str, float]:
    numbers = {
        "backward_pass_error": float(result["backward_pass_error"]),
        "largest_difference": float(result["largest_difference"]),
        "error_with_shared_weights": float(result["shared_errors"][:, list(result["peer_tools"]).index("ours")].max()),
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
    held = dict(zip(map(str, result["sweeps"]), map(int, result["held"])))
    for column, sweep in enumerate(held):
        others = ", ".join(f"{value} {name}" for name, value in held.items() if name not in (sweep, "width"))
        others += "" if sweep == "width" else f", width {held['width']}"
        for row, (quantity, scale, label) in enumerate((("seconds", 1.0, "seconds"), ("bytes", 2**20, "peak MiB"))):
            axis = axes[row, column]
            for index, method in enumerate(map(str, result["methods"])):
                color, name = TOOLS[METHODS[method]]
                values = result[f"{sweep}_{quantity}"][:, index] / scale
                axis.plot(result[sweep], np.where(values > 0, values, np.nan), "o-", ms=3, color=color, label=name)
            axis.set(xscale="log", yscale="log", xlabel=sweep, ylabel=label if column == 0 else "")
            axis.set_xticks(result[sweep], [str(value) for value in result[sweep]], minor=False)
            axis.set_xticks([], minor=True)
        axes[0, column].set_title(others)
    axes[0, 0].legend(loc="upper left")
    for row in (0, 1):
        low = min(axis.get_ylim()[0] for axis in axes[row])
        high = max(axis.get_ylim()[1] for axis in axes[row])
        for axis in axes[row]:
            axis.set_ylim(low, high)
    draw_peers(figure, axes[2], result)
    return figure


def draw_peers(figure: Figure, row: np.ndarray, result: Result) -> None:
    """The committed comparison: seconds over two columns, errors in the third."""
    grid = row[0].get_gridspec()
    row[0].remove()
    row[1].remove()
    axis = figure.add_subplot(grid[2, :2])
    axis.annotate("g", (0, 1), xytext=(-22, 6), xycoords="axes fraction", textcoords="offset points", fontweight="bold")
    row[2].texts[0].set_text("h")
    dots(axis, result, result["peer_cases"], result["peer_seconds"])
    axis.set(ylabel="seconds", title="other tools, one thread")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.35)
    axis.legend(loc="upper left", ncols=3)
    dots(row[2], result, result["shared_cases"], np.repeat(result["shared_errors"][..., None], 3, axis=2))
    row[2].axhline(np.finfo(np.float32).eps, color="#808080", linestyle=":", linewidth=1)
    row[2].set(ylabel="error", title="shared weights")


def dots(axis: Axes, result: Result, cases: np.ndarray, values: np.ndarray) -> None:
    """A column of dots per case, one per tool, with bars from the smallest to the largest [case, tool, 3]."""
    tools = [str(tool) for tool in result["peer_tools"]]
    shown = [name for name in TOOLS if name in tools]
    for index, name in enumerate(shown):
        median, low, high = values[:, tools.index(name)].T
        color, label = TOOLS[name]
        place = np.arange(len(cases)) + 0.1 * (index - (len(shown) - 1) / 2)
        axis.errorbar(place, median, [median - low, high - median], fmt="o", ms=4, color=color, label=label)
    axis.set_yscale("log")
    axis.set_xticks(np.arange(len(cases)), [CASES.get(str(case), str(case)) for case in cases])
    axis.set_xlim(-0.5, len(cases) - 0.5)
