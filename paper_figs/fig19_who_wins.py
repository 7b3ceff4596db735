"""Who wins: predicting, interpolating or measuring the mean training loss, by what each costs.

Paper: none.
Figure: none; engineering of this library.
Claim: on small networks real runs are cheaper than every prediction of the same error: a batch of 64 of them costs a
few plain runs. Batches of large networks save nothing: R runs cost R plain runs and the evaluations of their losses,
and there the frozen kernel, where it hardly moves, costs less than the runs that would be as accurate.
Horizontal: processor time of one thread in plain runs of torch.optim.SGD of the same setting; bars span the timings of
a plain run before and after. Vertical: largest relative error of the mean training loss over the recorded steps.
*Predicted*: no run at all; bars are two standard errors of the truth. *Interpolated*: runs at five other learning rates
and batch sizes, charged to this one setting; every other in the box is then free. *Measured*: runs of this setting,
median and 16 to 84 % of means of R = 1, 4, 16, 64 drawn from the runs of the truth; open circles: not timed, cost in
proportion to that of 4 runs. Gray: below two standard errors of the truth, where errors cannot be told from none; the
truth is the mean of runs of other seeds, with linearized runs of the same batches as control at steps where that lowers
the spread. ReLU networks on digits (2,048 examples and more: MNIST), targets +1 and -1, B = 8; drift: |K - K_0| / |K_0|
after one run. Last panel: total cost of several learning rates by `predict_many`; as many runs as have its error.
Refuted by: a small network on which a prediction is cheaper than runs of its accuracy; a large one, 1,024 examples and
little drift, where runs are cheaper.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

PREDICTED = {
    "frozen": ("MomentRecursion", "o", "predicted: frozen kernel"),
    "moving": ("MovingKernel", "s", "predicted: moving kernel"),
    "surface": ("EnsembleSurface", "D", "interpolated: surface"),
}
SMALL, LARGE = 1e4, 1e6
"""Weights."""


def claims(result: Result) -> dict[str, float]:
    weights, methods = result["weights"], result["methods"].tolist()
    small, large = np.flatnonzero(weights < SMALL), np.flatnonzero(weights > LARGE)
    numbers = {"largest_truth_error": float(result["truth_error"].max())}
    for name in methods:
        prices = np.array([price(result, i, methods.index(name)) for i in map(int, small)])
        if np.isfinite(prices).any():
            numbers[f"small_least_price_{name}"] = float(np.nanmin(prices))
    numbers["small_cost_of_64_runs"] = float(run_costs(result, int(small[-1]))[-1])
    frozen, moving = (result["error"][:, methods.index(name), 1] for name in ("frozen", "moving"))
    rich = result["start"] == "torch"
    numbers["rich_frozen_error"] = float(frozen[rich].min())
    numbers["rich_moving_error"] = float(np.nanmax(moving[rich]))
    for i in map(int, large):
        which = "large" if result["n_train"][i] <= 1024 else f"n_{result['n_train'][i]}"
        if rich[i]:
            continue
        numbers[f"{which}_frozen_error"] = float(frozen[i])
        numbers[f"{which}_price_frozen"] = price(result, i, methods.index("frozen"))
        numbers[f"{which}_saved_by_a_batch"] = float(1 - run_costs(result, i)[1] / (4 * run_costs(result, i)[0]))
    for i in map(int, np.flatnonzero(np.isfinite(result["sweep"][:, 1, 0]))):
        if weights[i] > SMALL:
            numbers["settings_until_frozen_wins"] = settings_until(result, i)
    return numbers


def run_costs(result: Result, i: int) -> np.ndarray:
    """Cost of R = 1, 4, 16, 64 runs; where not timed, in proportion to the largest number timed."""
    cost, runs = result["run_cost"][i, :, 1].copy(), result["runs"]
    last = np.flatnonzero(np.isfinite(cost))[-1]
    cost[last + 1 :] = cost[last] * runs[last + 1 :] / runs[last]
    return np.asarray(cost)


def equivalent_runs(result: Result, i: int, error: float) -> float:
    """Number of runs whose mean has this error, by that of 64 runs and 1 / sqrt(R)."""
    return float(result["runs"][-1] * (result["run_error"][i, -1, 1] / error) ** 2)


def cost_of_runs(result: Result, i: int, count: float) -> float:
    """Linear between the numbers timed and beyond the last; fewer than one run cost one."""
    runs, cost = result["runs"], run_costs(result, i)
    slope = (cost[-1] - cost[-2]) / (runs[-1] - runs[-2])
    return float(np.interp(count, runs, cost) + slope * max(count - runs[-1], 0.0))


def price(result: Result, i: int, method: int) -> float:
    """Cost over that of as many runs as have the same error; the upper end of an error that the truth blurs."""
    cost, (low, middle, high) = result["cost"][i, method, 1], result["error"][i, method]
    error = middle if low > 0 else high
    return float(cost / cost_of_runs(result, i, equivalent_runs(result, i, error))) if np.isfinite(cost) else np.nan


def settings_until(result: Result, i: int) -> float:
    """Number of settings from which one sweep of the frozen kernel is cheaper than runs of its error at each."""
    count = np.geomspace(1, 1e4, 4001)
    wins = sweep_cost(result, i, count) < count * cost_at_the_error(result, i)
    dear = np.flatnonzero(~wins)
    if not len(dear):
        return 1.0
    return float(count[dear[-1] + 1]) if dear[-1] + 1 < len(count) else float("inf")


def sweep_cost(result: Result, i: int, count: np.ndarray) -> np.ndarray:
    """Cost of that many settings in one sweep: linear between the numbers timed, and on beyond the last."""
    sweep = result["sweep"][i]
    at, cost = sweep[np.isfinite(sweep[:, 0])].T
    slope = max((cost[-1] - cost[-2]) / (at[-1] - at[-2]), 0.0)
    return np.asarray(np.interp(count, at, cost) + slope * np.maximum(count - at[-1], 0))


def cost_at_the_error(result: Result, i: int) -> float:
    """Cost of the runs of one setting whose mean has the error of the frozen kernel."""
    return cost_of_runs(result, i, equivalent_runs(result, i, frozen_error(result, i)))


def frozen_error(result: Result, i: int) -> float:
    """The upper end where the truth blurs it."""
    low, middle, high = result["error"][i, result["methods"].tolist().index("frozen")]
    return float(middle if low > 0 else high)


def draw(result: Result) -> Figure:
    count = len(result["name"])
    rows = -(-(count + 1) // 4)
    figure, axes = style.panels(rows, 4, height=2.3 * rows + 0.4)
    for i in range(count):
        draw_setting(axes.flat[i], result, i)
    draw_sweep(axes.flat[count], result)
    for axis in axes.flat[count + 1 :]:
        axis.set_visible(False)
    style.legend_above(figure, axes, columns=3)
    return figure


def draw_setting(axis: Axes, result: Result, i: int) -> None:
    axis.axhspan(1e-4, 2 * result["truth_error"][i], color="#e4e4e4", zorder=0, linewidth=0)
    for method, name in enumerate(result["methods"].tolist()):
        draw_method(axis, result, i, method, name)
    draw_runs(axis, result, i)
    start = "torch init." if result["start"][i] == "torch" else "NTK init."
    title = f"{result['weights'][i]:,} weights, n = {result['n_train'][i]:,}\n{start}, drift {result['drift'][i]:.2g}, "
    axis.set_title(title + f"{result['n_steps'][i]} steps", fontsize=6)
    axis.set(xscale="log", yscale="log", ylim=(1e-3, 60), xlim=(0.1, 1000))
    axis.set_xlabel("cost / plain runs", fontsize=7)
    axis.set_ylabel("largest relative error", fontsize=7)
    axis.tick_params(labelsize=6)


def draw_runs(axis: Axes, result: Result, i: int) -> None:
    cost, error = run_costs(result, i), result["run_error"][i]
    timed = np.isfinite(result["run_cost"][i, :, 1])
    color = style.look("measured")["color"]
    axis.plot(cost, error[:, 1], color=color, linewidth=0.8)
    across = np.nan_to_num(bars(result["run_cost"][i]))
    for chosen, face, label in ((timed, color, "measured: mean of R runs"), (~timed, "white", "measured, not timed")):
        if chosen.any():
            words = {"color": color, "markerfacecolor": face, "markersize": 3.5, "elinewidth": 0.8, "label": label}
            axis.errorbar(cost[chosen], error[chosen, 1], bars(error[chosen]), across[:, chosen], fmt="o", **words)
    for x, y, runs in zip(cost, error[:, 1], result["runs"]):
        axis.annotate(str(runs), (x, y), (-4, -2), textcoords="offset points", ha="right", va="top", fontsize=5.5)


def draw_method(axis: Axes, result: Result, i: int, method: int, name: str) -> None:
    cost, error = result["cost"][i, method], result["error"][i, method]
    look, marker, label = PREDICTED[name]
    color = style.look(look)["color"]
    if np.isfinite(error[1]):
        words = {"color": color, "markersize": 5, "elinewidth": 0.8, "label": label}
        axis.errorbar(cost[1], error[1], bars(error[None]), bars(cost[None]), fmt=marker, **words)
    elif np.isfinite(cost[1]):
        axis.plot(cost[1], 30, marker, color=color, markerfacecolor="white", markersize=5)
        axis.annotate(
            "refused", (cost[1], 30), (0, -9), textcoords="offset points", ha="center", fontsize=5, color=color
        )


def bars(values: np.ndarray) -> np.ndarray:
    """Lengths below and above the middle of [low, middle, high] rows, as ``errorbar`` takes them."""
    return np.stack([values[:, 1] - values[:, 0], values[:, 2] - values[:, 1]])


def draw_sweep(axis: Axes, result: Result) -> None:
    i = int(np.flatnonzero(np.isfinite(result["sweep"][:, 1, 0]))[-1])
    count, sweep = np.geomspace(1, 100, 200), result["sweep"][i]
    frozen = style.look("MomentRecursion")["color"]
    axis.plot(count, sweep_cost(result, i, count), color=frozen, linewidth=1)
    axis.plot(sweep[:, 0], sweep[:, 1], "o", color=frozen, markersize=4)
    axis.plot(count, cost_at_the_error(result, i) * count, color=style.look("measured")["color"], linewidth=1)
    surface = result["methods"].tolist().index("surface")
    if np.isfinite(result["error"][i, surface, 1]):
        axis.axhline(result["cost"][i, surface, 1], color=style.look("EnsembleSurface")["color"], linewidth=1)
    network = f"{result['weights'][i]:,} weights, n = {result['n_train'][i]:,}"
    axis.set_title(f"{network}\nmany settings, error {frozen_error(result, i):.1%}", fontsize=6)
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel("settings", fontsize=7)
    axis.set_ylabel("total cost / plain runs", fontsize=7)
    axis.tick_params(labelsize=6)
