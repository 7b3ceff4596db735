"""From a kernel on disk to the loss of a network with ten outputs, through its leading eigenpairs.

Paper: none.
Figure: none; engineering of this library.
Claim: the kernel summed over the ten outputs, made in tiles on disk, half of them deleted and made again, has the same
bits as before and is the dense one. The recursion summed over outputs on K_0 (x) I_10 predicts the expected loss of
real SGD (one-hot digits, a ReLU network of one hidden layer, batches of a tenth to a quarter of the data at a tenth of
the mean-square limit) within a few percent. On the leading eigenpairs only, the prediction is off from that on all of
them by less than the bound that is reported with it, and by no less than a fifth of it.
(a) Eigenvalues in units of the largest, and the share of the trace that is left out. (b) Expected training loss: real
runs, prediction on all eigenpairs and on some; thin, the test loss and its prediction on all. (c) Error of truncation
(solid) and its bound (dotted).
Refuted by: bits that differ after resuming, an error above its bound or below a fifth of it, or a prediction that is
off the measured loss by more than 5 % and 4 standard errors.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

RANKS = ("#d55e00", "#009e73", "#cc79a7")
TOLERANCE = 0.05
N_ERRORS = 4


def claims(result: Result) -> dict[str, float]:
    error = np.abs(result["train_truncated"] - result["train_predicted"])[:, 1:]
    bound = result["truncation_error"][:, 1:]
    difference = np.abs(result["train_predicted"] - result["train_measured"])
    allowed = np.maximum(TOLERANCE * result["train_measured"], N_ERRORS * result["train_standard_error"])
    return {
        "same_bits": float(result["same_bits"]),
        "kernel_error": float(result["kernel_error"]),
        "largest_residual": float(result["largest_residual"]),
        "least_bound_over_error": float((bound / error).min()),
        "largest_bound_over_error": float((bound / error).max()),
        "disagreement": float((difference / allowed).max()),
        "relative_error": float((difference / result["train_measured"]).max()),
        "test_relative_error": float(np.abs(result["test_predicted"] / result["test_measured"] - 1).max()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=3.2)
    draw_spectrum(axes[0, 0], result)
    draw_losses(axes[0, 1], result)
    draw_errors(axes[0, 2], result)
    style.legend_above(figure, axes, columns=4)
    return figure


def draw_spectrum(axis: Axes, result: Result) -> None:
    values = result["eigenvalues"]
    number = np.arange(1, len(values) + 1)
    axis.loglog(number, values / values[0], color="#0072b2", label="eigenvalue")
    axis.loglog(number, 1 - result["share_of_trace"], color="#0072b2", linestyle=":", label="share left out")
    for rank, color in zip(result["ranks"], RANKS):
        axis.axvline(rank, color=color, linewidth=0.8)
    axis.set(xlabel="eigenpairs", title="spectrum")


def draw_losses(axis: Axes, result: Result) -> None:
    steps = result["steps"][1:]
    style.curve(axis, steps, result["train_measured"][1:], "measured", linewidth=2.5)
    axis.plot(steps, result["test_measured"][1:], color="#202020", linewidth=0.8, label="measured, test")
    style.curve(axis, steps, result["train_predicted"][1:], "MomentRecursion")
    axis.plot(steps, result["test_predicted"][1:], color="#0072b2", linestyle="--", linewidth=0.8)
    for rank, color, curve in zip(result["ranks"], RANKS, result["train_truncated"]):
        axis.plot(steps, curve[1:], color=color, linewidth=1, label=f"{rank} eigenpairs")
    axis.set(xscale="log", yscale="log", xlabel="step", title="loss")


def draw_errors(axis: Axes, result: Result) -> None:
    steps = result["steps"][1:]
    errors = np.abs(result["train_truncated"] - result["train_predicted"])[:, 1:]
    for rank, color, error, bound in zip(result["ranks"], RANKS, errors, result["truncation_error"][:, 1:]):
        axis.loglog(steps, error, color=color, label=f"{rank} eigenpairs")
        axis.loglog(steps, bound, color=color, linestyle=":")
    axis.set(xlabel="step", title="error of truncation")
