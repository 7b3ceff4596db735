"""The loss of SGD as it is really run, predicted before training.

Paper: none; the stochastic differential equations of the literature are written for plain SGD and independent batches.
Figure: none.
Claim: with heavy-ball and Nesterov momentum of 0.9, weight decay, a cosine schedule, shuffled epochs and fresh label
noise of standard deviation 0.5 the moment recursion, computed from the network at initialization, is the expected loss
of SGD on the linearized network (1000 runs at laptop scale) within Monte-Carlo error, for shuffled epochs, where it
rests on a closure, within 3 %; and that of the real ReLU network on digits (128 runs) within 5 % or 4 standard errors
while the loss is above a tenth of its start, train and test. Learning rates are 0.4 of the largest one that is stable
in mean square with that momentum; the schedule falls from 0.8 of it to zero; decay takes 6 % of the weights in all.
Black: mean of the real runs, its band from the 5 % to the 95 % quantile; blue: the prediction, its band the same
quantiles by a Gamma law of the predicted mean and variance; gray: mean of linearized runs, the control. Dotted: the
recursion told of plain SGD over the same time, the word of the panel ignored. Below each loss the relative error,
(curve - measured) / measured, linear up to 5 % (thin lines) and logarithmic beyond; its gray band is 3 standard errors
of the measured mean. Shaded: the measured loss is below a tenth of its start, where the linearization itself errs;
reported as it is. Decay errs there most: it shrinks the weights and with them the kernel that is taken as constant, so
that late the training loss is no better predicted than without decay.
Refuted by: a recorded step at which the recursion leaves the Monte-Carlo error of the linearized runs, or, above a
tenth of the first loss, is off the real runs by more than 5 % and by more than 4 standard errors; or a prediction that
ignores the word of the panel doing as well against the linearized runs.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.result import Result
from paper_figs import style

SIDES = ("train", "test")
TOLERANCE = 0.05
N_ERRORS = 4
TENTH = 0.1
TITLES = {
    "momentum": "momentum 0.9",
    "nesterov": "Nesterov 0.9",
    "weight_decay": "weight decay",
    "cosine": "cosine schedule",
    "shuffled": "shuffled epochs",
    "label_noise": "label noise 0.5",
}
IGNORED: dict[str, Any] = {"color": "#b06a00", "linestyle": ":", "label": "the same for plain SGD"}


def claims(result: Result) -> dict[str, float]:
    panels = [str(panel) for panel in result["panels"]]
    numbers = {}
    exact = [panel for panel in panels if panel != "shuffled"]
    numbers["recursion_against_linearized_z"] = max(
        largest_z(result, p, side, "predicted") for p in exact for side in SIDES
    )
    numbers["shuffled_against_linearized"] = max(control_error(result, "shuffled", side, "predicted") for side in SIDES)
    numbers["shuffled_ignored_against_linearized"] = control_error(result, "shuffled", "train", "without")
    numbers["least_z_of_ignored_word"] = min(largest_z(result, panel, "train", "without") for panel in panels)
    mean = result["weight_decay_train_measured"][:, -1].mean()
    numbers["weight_decay_late_error"] = float(result["weight_decay_train_predicted"][-1] / mean - 1)
    for panel in panels:
        numbers[f"{panel}_disagreement"] = max(disagreement(result, panel, side) for side in SIDES)
    return numbers


def claimed(result: Result, panel: str, side: str) -> np.ndarray:
    """The steps up to which the measured loss has been above a tenth of its start, as a mask [T]."""
    mean = result[f"{panel}_{side}_measured"].mean(0)
    return np.logical_and.accumulate(mean > TENTH * mean[0])


def standard_error(samples: np.ndarray) -> np.ndarray:
    return np.asarray(samples.std(0, ddof=1) / np.sqrt(len(samples)))


def largest_z(result: Result, panel: str, side: str, name: str) -> float:
    """Of a prediction against the mean of the linearized runs; step 0 has no spread."""
    runs = result[f"{panel}_{side}_linearized"][:, 1:]
    difference = result[f"{panel}_{side}_{name}"][1:] - runs.mean(0)
    return float(np.abs(difference / standard_error(runs)).max())


def control_error(result: Result, panel: str, side: str, name: str) -> float:
    """Largest relative error of a prediction against the mean of the linearized runs."""
    return float(np.abs(result[f"{panel}_{side}_{name}"] / result[f"{panel}_{side}_linearized"].mean(0) - 1).max())


def disagreement(result: Result, panel: str, side: str) -> float:
    """The largest of min(|error| / 5 %, |error| / 4 standard errors) where it is claimed: at most 1 is agreement."""
    runs = result[f"{panel}_{side}_measured"]
    difference = np.abs(result[f"{panel}_{side}_predicted"] - runs.mean(0))
    allowed = np.maximum(TOLERANCE * runs.mean(0), N_ERRORS * standard_error(runs))
    return float((difference / allowed)[claimed(result, panel, side)].max())


def draw(result: Result) -> Figure:
    panels = [str(panel) for panel in result["panels"]]
    ratios = {"height_ratios": [1.3, 1, 1.3, 1]}
    figure, axes = style.panels(4, 3, height=7.6, sharex=True, sharey="row", gridspec_kw=ratios)
    for i, panel in enumerate(panels):
        upper, column = 2 * (i // 3), i % 3
        axes[upper, column].set_title(f"{TITLES[panel]}, lr {float(result[f'{panel}_lr']):.2g}", fontsize="small")
        draw_loss(axes[upper, column], result, panel)
        draw_error(axes[upper + 1, column], result, panel)
    for column in range(3):
        axes[-1, column].set_xlabel("step")
    for row in (0, 2):
        axes[row, 0].set_ylabel("train loss")
        axes[row + 1, 0].set_ylabel("relative error")
    for row in (0, 2):
        axes[row, 0].set_ylim(*loss_range(result, panels[3 * row // 2 : 3 * row // 2 + 3]))
    style.legend_above(figure, axes, columns=4)
    return figure


def loss_range(result: Result, panels: list[str]) -> tuple[float, float]:
    """Around the measured losses; a prediction that ignores a word may leave it."""
    runs = [np.quantile(result[f"{panel}_train_measured"], [0.05, 0.95], axis=0) for panel in panels]
    return 0.6 * min(float(low.min()) for low, _ in runs), 2 * max(float(high.max()) for _, high in runs)


def draw_loss(axis: Axes, result: Result, panel: str) -> None:
    steps, runs = result[f"{panel}_steps"][1:], result[f"{panel}_train_measured"][:, 1:]
    low, high = np.quantile(runs, [0.05, 0.95], axis=0)
    style.band(axis, steps, runs.mean(0), "measured", low=low, high=high)
    style.curve(axis, steps, result[f"{panel}_train_linearized"].mean(0)[1:], "linearized", linewidth=2.5)
    low, high = result[f"{panel}_train_quantiles"][:, 1:]
    style.band(axis, steps, result[f"{panel}_train_predicted"][1:], "MomentRecursion", low=low, high=high)
    axis.plot(steps, result[f"{panel}_train_without"][1:], **IGNORED)
    axis.set(xscale="log", yscale="log")
    shade_unclaimed(axis, result, panel)


def draw_error(axis: Axes, result: Result, panel: str) -> None:
    steps, runs = result[f"{panel}_steps"][1:], result[f"{panel}_train_measured"][:, 1:]
    mean, error = runs.mean(0), 3 * standard_error(runs)
    axis.fill_between(steps, -error / mean, error / mean, color="#202020", alpha=0.2, linewidth=0)
    style.curve(axis, steps, result[f"{panel}_train_linearized"].mean(0)[1:] / mean - 1, "linearized", linewidth=2.5)
    style.curve(axis, steps, result[f"{panel}_train_predicted"][1:] / mean - 1, "MomentRecursion")
    axis.plot(steps, result[f"{panel}_train_without"][1:] / mean - 1, **IGNORED)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=TOLERANCE, linscale=0.6)
    axis.set_ylim(-1, 10)
    axis.yaxis.set_major_locator(FixedLocator([-1, -0.3, -TOLERANCE, TOLERANCE, 0.3, 1, 10]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f} %"))
    for level in (-TOLERANCE, TOLERANCE):
        axis.axhline(level, color="#202020", linewidth=0.6)
    shade_unclaimed(axis, result, panel)


def shade_unclaimed(axis: Axes, result: Result, panel: str) -> None:
    """Gray where the measured loss is below a tenth of its start."""
    steps, inside = result[f"{panel}_steps"], claimed(result, panel, "train")
    axis.set_xlim(1, steps[-1])
    if not inside.all():
        axis.axvspan(float(steps[inside][-1]), float(steps[-1]), color="#ececec", zorder=0, linewidth=0)
