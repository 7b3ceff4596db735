"""What a prediction will get wrong, told before a single run.

Paper: none; the criteria are those of the literature (lazy training, gradient noise scale, mean-square stability).
Figure: none.
Claim: ``diagnose`` knows from the network at initialization, full-batch descent and the predictions themselves whether
a frozen kernel will do, whether a moving one will, or whether only a measurement helps, and the error to expect. The
two constants were fitted to one half of the settings (one hidden ReLU layer of 32 to 512 neurons, two
parametrizations, batches of 2 and 8, 0.15 to 0.75 of the mean-square limit, momentum 0 and 0.9) and are checked on the
other (two hidden tanh layers of 48 and 320, other digits, batches of 4 and 16, 0.1 to 0.6 of the limit, other lengths).
(a) Error of the moving kernel, the largest over the recorded steps and relative to the measured training loss, against
the feedback, kernel drift times the odds of noise in the expected loss; line: what nine of ten settings of the
calibration stay below. (b) Measured against expected error of the frozen kernel; on and below the line the promise is
kept. (c) The settings of the check by advice and by what measurement says is the cheapest prediction within 5 %: on the
diagonal the advice is right, below it too cautious, above it too bold.
Measured is the exact loss of the linearized network plus real minus linearized runs on the same batches (32 at laptop
scale), which holds little sampling error; gray in (a): settings whose error is within two standard errors of zero.
Refuted by: advice that is too bold in more than one of ten settings of the check; errors beyond the expected ones in
more than two of ten.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

HALVES = ("calibration", "check")
LOOKS = {"calibration": ("#7f7f7f", "o", "calibration"), "check": ("#0173b2", "D", "check")}
LEVEL = 0.9
"""Of the calibration's settings below the expected error."""


def claims(result: Result) -> dict[str, float]:
    scale, power = fit(result)
    table = confusion(result, "check")
    bold = np.triu(table, 1).sum()
    numbers = {
        "fitted_scale": scale,
        "fitted_power": power,
        "check_settings": float(table.sum()),
        "check_right": float(np.trace(table) / table.sum()),
        "check_too_bold": float(bold / table.sum()),
        "check_kept_when_advised": kept(result, "check"),
        "calibration_too_bold": float(
            np.triu(confusion(result, "calibration"), 1).sum() / confusion(result, "calibration").sum()
        ),
        "check_moving_below_expected": below_expected(result, "check", "moving"),
        "check_frozen_below_expected": below_expected(result, "check", "frozen"),
        "drift_cut": cut(result, "kernel_drift"),
        "drift_cut_right": cut_right(result, "kernel_drift"),
        "laziness_cut": cut(result, "laziness"),
        "laziness_cut_right": cut_right(result, "laziness"),
    }
    return numbers


def fit(result: Result) -> tuple[float, float]:
    """Power by least squares in logarithms, scale at the 90 % quantile of what is left, of the calibration."""
    x, y = result["calibration_feedback"], result["calibration_measured_moving"]
    known = np.isfinite(x) & (x > 0) & np.isfinite(y) & (y > 0)
    log_x, log_y = np.log(x[known]), np.log(y[known])
    power = np.polyfit(log_x, log_y, 1)[0]
    return float(np.exp(np.quantile(log_y - power * log_x, LEVEL))), float(power)


def cheapest(result: Result, half: str) -> np.ndarray:
    """By measurement: 0 frozen kernel, 1 moving kernel, 2 neither is within the tolerance."""
    frozen, moving = (result[f"{half}_measured_{kind}"] <= result["tolerance"] for kind in ("frozen", "moving"))
    return np.where(frozen, 0, np.where(moving, 1, 2))


def confusion(result: Result, half: str) -> np.ndarray:
    """Settings by advice (rows) and by what the measurement says (columns), [3, 3]."""
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (result[f"{half}_advised"], cheapest(result, half)), 1)
    return table


def kept(result: Result, half: str) -> float:
    """Share of the settings with an advised predictor whose error is within the tolerance."""
    advised = result[f"{half}_advised"]
    errors = np.stack([result[f"{half}_measured_{kind}"] for kind in ("frozen", "moving")])
    some = advised < 2
    return float((errors[advised[some], np.flatnonzero(some)] <= result["tolerance"]).mean()) if some.any() else 1.0


def below_expected(result: Result, half: str, kind: str) -> float:
    """Share of the settings, where an error is expected at all, whose measured error is at most that."""
    expected, measured = result[f"{half}_expected_{kind}"], result[f"{half}_measured_{kind}"]
    some = np.isfinite(expected)
    return float((measured[some] <= expected[some]).mean())


def cut(result: Result, name: str) -> float:
    """The value of one check that best parts frozen kernels within the tolerance from the others, calibration half."""
    values, good = result[f"calibration_{name}"], cheapest(result, "calibration") == 0
    order = np.sort(values)
    candidates = np.sqrt(order[1:] * order[:-1])
    return float(max(candidates, key=lambda at: balanced(values <= at, good)))


def cut_right(result: Result, name: str) -> float:
    """How often that value is right on the other half, each class with the same weight."""
    return balanced(result[f"check_{name}"] <= cut(result, name), cheapest(result, "check") == 0)


def balanced(said: np.ndarray, true: np.ndarray) -> float:
    """The mean of both classes' shares, of those that are there."""
    shares = [part.mean() for part in (said[true], ~said[~true]) if len(part)]
    return float(np.mean(shares))


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.9, width_ratios=[1.2, 1.2, 1])
    draw_moving(axes[0, 0], result)
    draw_frozen(axes[0, 1], result)
    draw_confusion(axes[0, 2], result)
    return figure


def draw_moving(axis: Axes, result: Result) -> None:
    scale, power = fit(result)
    for half in HALVES:
        color, marker, label = LOOKS[half]
        x, y = result[f"{half}_feedback"], result[f"{half}_measured_moving"]
        sure = y > 2 * result[f"{half}_standard_error"]
        axis.plot(x[sure], y[sure], marker, color=color, markersize=3, label=label, alpha=0.8)
        axis.plot(x[~sure], y[~sure], marker, color="#d0d0d0", markersize=3, zorder=0)
    line = np.geomspace(*axis.get_xlim(), 2) if axis.get_xlim()[0] > 0 else np.array([1e-5, 10.0])
    axis.plot(line, scale * line**power, color="#202020", linewidth=1, label="expected")
    axis.axhline(float(result["tolerance"]), color="#202020", linewidth=0.6, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="feedback", ylabel="relative error", title="moving kernel")
    axis.legend(loc="upper left")


def draw_frozen(axis: Axes, result: Result) -> None:
    for half in HALVES:
        color, marker, _ = LOOKS[half]
        x, y = result[f"{half}_expected_frozen"], result[f"{half}_measured_frozen"]
        some = np.isfinite(x)
        axis.plot(x[some], y[some], marker, color=color, markersize=3, alpha=0.8)
    ends = np.array([1e-3, 10.0])
    axis.plot(ends, ends, color="#202020", linewidth=1)
    axis.axhline(float(result["tolerance"]), color="#202020", linewidth=0.6, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="expected error", ylabel="relative error", title="frozen kernel")


def draw_confusion(axis: Axes, result: Result) -> None:
    table = confusion(result, "check")
    axis.imshow(table, cmap="Blues", vmax=1.3 * table.max())
    for (row, column), count in np.ndenumerate(table):
        axis.text(column, row, str(count), ha="center", va="center", fontsize=9)
    names = ["frozen", "moving", "measure"]
    axis.set_xticks(range(3), names)
    axis.set_yticks(range(3), names)
    axis.tick_params(labelsize=7)
    axis.set(xlabel="measurement says", ylabel="diagnosis advises", title="check")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
