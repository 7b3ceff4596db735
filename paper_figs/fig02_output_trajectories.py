"""Single outputs of the network along SGD, with their spread.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654, describe each output of a wide network under SGD as a stochastic
process, mean-reverting where its noise is taken as constant.
Figure: none of theirs.
Claim: mean and two-sigma band of every output, from the network at initialization. Noise that follows the state, step
by step (the moment recursion; 500 paths with one Euler-Maruyama step for each of SGD's), has the spread of the
linearized network's SGD within Monte-Carlo error (1000 runs) and that of the real network (64 runs at laptop scale).
At half of the largest stable learning rate the equations in continuous time are 10 to 20 % too narrow, and so is noise
of the mean path, which leaves out the noise that the noise itself makes; noise frozen at the start does not die out and
is too wide by a large factor late. Upper panels: the outputs of the first four training and the first two test
digits (not chosen), their targets as thin lines; five single runs (thin), mean and two-sigma band of the runs (black,
gray band), edges of the predicted two-sigma bands and the predicted mean (one sigma is a standard deviation over runs).
Lower panels: the standard deviation, root mean square over all outputs of a set, its gray band 2 standard errors of the
runs; and the fraction of all training outputs and runs inside each predicted two-sigma band (95.4 % if Gaussian).
Refuted by: a variance of the recursion beyond the Monte-Carlo error of the linearized runs; a band of the recursion
that covers the real outputs as badly as the band of frozen noise.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.result import Result
from paper_figs import style

SIDES = ("train", "test")
SHOWN_RUNS = 5
DRAWN_BANDS = ("OrnsteinUhlenbeck(init)", "OrnsteinUhlenbeck(mean_path)", "MomentEquations(1)", "MomentRecursion")
"""In the upper panels; the lower ones have every dynamics."""


def claims(result: Result) -> dict[str, float]:
    recursion, frozen = row(result, "MomentRecursion"), row(result, "OrnsteinUhlenbeck(init)")
    mean_path = row(result, "OrnsteinUhlenbeck(mean_path)")
    real = result["train_measured_squares"].sum(0) / (len(result["train_measured_squares"]) - 1)
    ratios = np.sqrt(result["train_variance"][:, -1] / real[-1])
    numbers = {
        "variance_against_linearized_z": max(largest_z(result, side) for side in SIDES),
        "late_std_ratio_recursion": float(ratios[recursion]),
        "late_std_ratio_mean_path": float(ratios[mean_path]),
        "late_std_ratio_frozen": float(ratios[frozen]),
    }
    for side in SIDES:
        numbers[f"{side}_coverage_recursion"] = float(result[f"{side}_coverage"][recursion, 1:].mean())
    numbers["late_train_coverage_recursion"] = float(result["train_coverage"][recursion, -1])
    numbers["late_train_coverage_frozen"] = float(result["train_coverage"][frozen, -1])
    return numbers


def row(result: Result, name: str) -> int:
    return [str(each) for each in result["dynamics"]].index(name)


def largest_z(result: Result, side: str) -> float:
    """Of the recursion's mean variance of the outputs, against squared distances of linearized runs from the mean."""
    squares = result[f"{side}_linearized_squares"][:, 1:]
    difference = result[f"{side}_variance"][row(result, "MomentRecursion"), 1:] - squares.mean(0)
    return float(np.abs(difference / (squares.std(0, ddof=1) / np.sqrt(len(squares)))).max())


def draw(result: Result) -> Figure:
    figure, axes = style.panels(3, 3, height=6.8, sharex=True)
    places = [(side, i) for side in SIDES for i in range(len(result[f"{side}_targets"]))]
    for axis, (side, i) in zip(axes.flat, places):
        draw_output(axis, result, side, i)
    for axis in axes[1:2].flat:
        axis.tick_params(labelbottom=False)
    for axis in axes[:2, 0]:
        axis.set_ylabel("output")
    for axis, side in zip(axes[2], SIDES):
        draw_spread(axis, result, side)
    draw_coverage(axes[2, 2], result)
    for axis in axes[2]:
        axis.set_xlabel("step")
    style.legend_above(figure, axes, columns=3)
    return figure


def draw_output(axis: Axes, result: Result, side: str, i: int) -> None:
    steps, runs = result["steps"][1:], result[f"{side}_measured"][:, 1:, i]
    mean, std = runs.mean(0), runs.std(0, ddof=1)
    style.band(axis, steps, mean, "measured", low=mean - 2 * std, high=mean + 2 * std)
    axis.plot(steps, runs[:SHOWN_RUNS].T, color="#202020", alpha=0.35, linewidth=0.5)
    for name in DRAWN_BANDS:
        j = row(result, name)
        mean, std = result[f"{side}_means"][j, 1:, i], result[f"{side}_stds"][j, 1:, i]
        style.curve(axis, steps, mean + 2 * std, name, linewidth=1.3)
        style.curve(axis, steps, mean - 2 * std, name, linewidth=1.3, label=None)
        if name == "MomentRecursion":
            style.curve(axis, steps, mean, name, linewidth=1.3, label=None)
    axis.axhline(result[f"{side}_targets"][i], color="#202020", linewidth=0.6)
    axis.set_xscale("log")
    axis.set_title(f"{'training' if side == 'train' else 'test'} example {i + 1}", fontsize="small")


def draw_spread(axis: Axes, result: Result, side: str) -> None:
    steps, squares = result["steps"][1:], result[f"{side}_measured_squares"][:, 1:]
    variance = squares.sum(0) / (len(squares) - 1)
    error = 2 * squares.std(0, ddof=1) / np.sqrt(len(squares))
    low, high = (np.sqrt(np.clip(variance + sign * error, 0, None)) for sign in (-1, 1))
    style.band(axis, steps, np.sqrt(variance), "measured", low=low, high=high)
    control = np.sqrt(result[f"{side}_linearized_squares"].mean(0))[1:]
    style.curve(axis, steps, control, "linearized", linewidth=2.5)
    for j, name in enumerate(result["dynamics"]):
        style.curve(axis, steps, np.sqrt(result[f"{side}_variance"][j, 1:]), str(name), linewidth=1.3)
    axis.set_ylim(0, None)
    axis.set_title(f"standard deviation, {side}", fontsize="small")


def draw_coverage(axis: Axes, result: Result) -> None:
    for j, name in enumerate(result["dynamics"]):
        style.curve(axis, result["steps"][1:], result["train_coverage"][j, 1:], str(name), linewidth=1.3)
    axis.axhline(0.954, color="#202020", linewidth=0.6)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_ylim(0.5, 1.02)
    axis.set_title("inside two sigma, train", fontsize="small")
