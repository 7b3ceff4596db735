"""What a prediction gets wrong, and what is cheapest, told for ten plain runs.

Paper: none.
Figure: none.
Claim: a few runs of the network and of its linearization on the same batches tell the error of the frozen kernel
within a factor of 2.5, kernel drift and spread that of the moving one, and the advice is right in four of five
everyday trainings
(torch's own initialization; dense, convolution, layer norm, attention, and wide networks in NTK parametrization;
squared error with one and ten outputs, cross-entropy; momentum 0 and 0.9; shuffled and independent batches).
Constants were settled on two thirds of the settings (gray), and are checked on the rest (blue).
(a) Largest relative error of the mean training loss of the frozen kernel over the recorded steps, measured by 64 runs
of network and of linearized model on the same batches, against the one that was expected; lines: equal, and a factor
of 2.5.
(b) The same for the moving kernel; in faint color where its error is within two standard errors of the 64 runs. (c)
Settings of the check by advice (rows) and by what measurement says is the cheapest way within 5 % (columns). An
advice is right if its error is within 5 % and its cost at most twice that of the cheapest such way, plus one run. (d)
Cost of the diagnosis itself, in plain runs.
Refuted by: advice that breaks its tolerance in more than one of twenty settings of the check; a cost above ten runs
in most.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

FROZEN, MOVING, INTERPOLATE, MEASURE = range(4)
FACTOR = 2.5
"""Between expected and measured error."""

SLACK = 1.0
"""Plain runs that no advice is blamed for."""

NAMES = ("frozen", "moving", "measure")


def claims(result: Result) -> dict[str, float]:
    check = result["is_check"]
    numbers = {
        "settings": float(len(check)),
        "check_settings": float(check.sum()),
        "largest_cost": float(result["cost"].max()),
        "median_cost": float(np.median(result["cost"])),
        "frozen_within_factor": within_factor(result, "frozen", check),
        "moving_within_factor": within_factor(result, "moving", check),
        "check_right": float(is_right(result)[check].mean()),
        "check_too_bold": float(is_bold(result)[check].mean()),
        "settled_too_bold": float(is_bold(result)[~check].mean()),
        "fitted_scale": fit(result)[0],
        "fitted_drift_power": fit(result)[1],
        "fitted_spread_power": fit(result)[2],
    }
    return {name: value for name, value in numbers.items() if np.isfinite(value)}


def known(result: Result, kind: str) -> np.ndarray:
    """Settings with an expected error whose measured one is more than sampling error."""
    measured, expected = result[f"measured_{kind}"], result[f"expected_{kind}"]
    sure = np.ones(len(measured), dtype=bool) if kind == "frozen" else measured > 2 * result["standard_error"]
    return np.isfinite(measured) & np.isfinite(expected) & (expected > 0) & (measured > 0) & sure


def within_factor(result: Result, kind: str, some: np.ndarray) -> float:
    """Share of settings whose expected error is within the factor of the measured one; NaN without any."""
    rows = known(result, kind) & some
    ratio = result[f"expected_{kind}"][rows] / result[f"measured_{kind}"][rows]
    return float(((ratio < FACTOR) & (ratio > 1 / FACTOR)).mean()) if len(ratio) else np.nan


def fit(result: Result) -> tuple[float, float, float]:
    """Scale and powers of the moving kernel's error in drift and spread, by least squares in logarithms."""
    rows = known(result, "moving") & ~result["is_check"] & (result["drift"] > 0) & (result["spread"] > 0)
    if rows.sum() < 10:
        return np.nan, np.nan, np.nan
    columns = [np.ones(rows.sum()), np.log(result["drift"][rows]), np.log(result["spread"][rows])]
    found = np.linalg.lstsq(np.stack(columns, 1), np.log(result["measured_moving"][rows]), rcond=None)[0]
    return float(np.exp(found[0])), float(found[1]), float(found[2])


def measuring_cost(result: Result) -> np.ndarray:
    """Plain runs that the measurement takes which two standard errors within the tolerance ask for."""
    runs = np.maximum(4, np.ceil((2 * result["measured_spread"] / result["tolerance"]) ** 2))
    return np.where(np.isfinite(runs), runs, 4) * result["run_cost"]


def cheapest(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """By measurement: the cheapest way within the tolerance, and its cost."""
    costs = np.stack([result["frozen_cost"], result["moving_cost"], measuring_cost(result)])
    for row, kind in enumerate(("frozen", "moving")):
        costs[row] = np.where(result[f"measured_{kind}"] <= result["tolerance"], costs[row], np.inf)
    return np.array([FROZEN, MOVING, MEASURE])[costs.argmin(0)], costs.min(0)


def is_bold(result: Result) -> np.ndarray:
    """Advice whose error is beyond the tolerance: a prediction's, or two standard errors of too few runs by half."""
    advised, tolerance = result["advised"], result["tolerance"]
    short = 2 * result["measured_spread"] / np.sqrt(np.maximum(result["n_runs"], 1)) > 1.5 * tolerance
    beyond = [result[f"measured_{kind}"] - 2 * result["standard_error"] > tolerance for kind in ("frozen", "moving")]
    return np.select([advised == FROZEN, advised == MOVING], beyond, short & np.isfinite(result["measured_spread"]))


def is_right(result: Result) -> np.ndarray:
    """Advice within the tolerance, at a cost of at most twice that of the cheapest such way, and one run."""
    costs = np.stack([result["frozen_cost"], result["moving_cost"], measuring_cost(result)])
    row = np.where(result["advised"] == MEASURE, 2, result["advised"])
    cost = costs[row, np.arange(len(row))]
    return ~is_bold(result) & (cost <= 2 * cheapest(result)[1] + SLACK)


def confusion(result: Result) -> np.ndarray:
    """Settings of the check by advice (rows) and by the cheapest way that measurement shows (columns), [3, 3]."""
    table, check = np.zeros((3, 3), dtype=int), result["is_check"]
    place = {FROZEN: 0, MOVING: 1, INTERPOLATE: 2, MEASURE: 2}
    for advised, true in zip(result["advised"][check], cheapest(result)[0][check]):
        table[place[int(advised)], place[int(true)]] += 1
    return table


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.4)
    draw_errors(axes[0, 0], result, "frozen")
    draw_errors(axes[0, 1], result, "moving")
    draw_confusion(axes[1, 0], result)
    draw_costs(axes[1, 1], result)
    return figure


def draw_errors(axis: Axes, result: Result, kind: str) -> None:
    x, y = result[f"expected_{kind}"], result[f"measured_{kind}"]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    for some, color, label in (
        (~result["is_check"], "#7f7f7f", "settled on"),
        (result["is_check"], "#0173b2", "check"),
    ):
        sure = good & some & known(result, kind)
        axis.plot(x[sure], y[sure], "o", color=color, markersize=3, alpha=0.9, label=label)
        axis.plot(x[good & some & ~sure], y[good & some & ~sure], "o", color=color, markersize=3, alpha=0.25)
    seen = np.concatenate([x[good], y[good], [1e-2, 1e-1]])  # whole decades, two at least
    ends = 10.0 ** np.array([np.floor(np.log10(seen.min() / 1.5)), np.ceil(np.log10(seen.max() * 1.5))])
    for factor, look in ((1.0, "-"), (FACTOR, ":"), (1 / FACTOR, ":")):
        axis.plot(ends, factor * ends, look, color="#202020", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="expected error", ylabel="measured error", title=f"{kind} kernel")
    axis.set(xlim=ends, ylim=ends)
    axis.legend(loc="upper left")


def draw_confusion(axis: Axes, result: Result) -> None:
    table = confusion(result)
    axis.imshow(table, cmap="Blues", vmax=1.3 * max(table.max(), 1))
    for (row, column), count in np.ndenumerate(table):
        axis.text(column, row, str(count), ha="center", va="center", fontsize=9)
    axis.set_xticks(range(3), NAMES, rotation=30)
    axis.set_yticks(range(3), NAMES)
    axis.tick_params(labelsize=7, length=0)
    axis.set(xlabel="cheapest within 5 %", ylabel="advised", title="check")
    axis.spines[:].set_visible(False)


def draw_costs(axis: Axes, result: Result) -> None:
    costs = np.sort(result["cost"])
    axis.plot(costs, (np.arange(len(costs)) + 1) / len(costs), drawstyle="steps-post", color="#202020")
    axis.axvline(10, color="#202020", linewidth=0.6, linestyle=":")
    axis.set(
        xlabel="cost in plain runs", ylabel="share of settings", title="the diagnosis", xlim=(0, None), ylim=(0, 1.02)
    )
