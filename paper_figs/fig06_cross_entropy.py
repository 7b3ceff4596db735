"""Cross-entropy of ten classes, loss and accuracy predicted before training.

Paper: Hayou, Doucet, Rousseau, arXiv:1905.13654, writes the stochastic differential equation for any loss and solves
it for squared error only.
Figure: none.
Claim: under cross-entropy on ten digits a wide ReLU network (NTK parametrization, one hidden layer of 2048 units, 64
training examples, batches of 8, learning rate 0.3 of the mean-square limit near the initial outputs) has the loss that
the Gaussian closure, a mean and a covariance and no sampling, and 500 paths of the stochastic differential equation
predict from its state at initialization: within 3 % or 3 standard errors of the mean of 128 real runs at every recorded
step, train and test. Predicted accuracies are off by at most 3 points (closure) and 5 points (paths), most in the first
steps, where the noise of single batches is skewed. Full-batch gradient descent of the linearized model misses the loss
by a tenth or more and the accuracy by some ten points. Upper row: the loss; band: 5 % to 95 % quantile of the real
runs.
Middle row: relative error, (curve - measured) / measured; gray band: 3 standard errors of the measured mean, thin
lines: 3 %. Lower row: the fraction of examples whose largest output is their class. Gray: runs of the linearized
model, the control; by it the closure itself errs by less than 2 %, the rest is the linearization.
Refuted by: a recorded step at which the loss predicted by closure or paths is off the measured mean by more than 3 %
and by more than 3 standard errors, or the accuracy by more than these points; or gradient descent doing as well.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from experiments.result import Result
from paper_figs import style

SIDES = ("train", "test")
THEORIES = ("SDEPaths", "GaussianClosure")
TOLERANCE, N_ERRORS = 0.03, 3
NAMES = {"digits": "digits", "mnist": "MNIST"}


def claims(result: Result) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for panel in map(str, result["panels"]):
        own = {}
        for name in THEORIES:
            own[f"{name}_disagreement"] = max(disagreement(result, panel, side, name) for side in SIDES)
        for name in map(str, result["dynamics"]):
            own[f"{name}_accuracy_error"] = max(missed_accuracy(result, panel, side, name) for side in SIDES)
        own["closure_against_linearized"] = max(control_error(result, panel, side, "GaussianClosure") for side in SIDES)
        own["descent_against_linearized"] = control_error(result, panel, "train", "GradientDescent")
        numbers |= {f"{panel}_{key}": value for key, value in own.items()}
    return numbers


def standard_error(samples: np.ndarray) -> np.ndarray:
    return np.asarray(samples.std(0, ddof=1) / np.sqrt(len(samples)))


def disagreement(result: Result, panel: str, side: str, name: str) -> float:
    """The largest of min(|error| / 3 %, |error| / 3 standard errors): at most 1 is agreement."""
    runs = result[f"{panel}_{side}_measured"]
    difference = np.abs(result[f"{panel}_{side}_{name}"] - runs.mean(0))[1:]
    allowed = np.maximum(TOLERANCE * runs.mean(0), N_ERRORS * standard_error(runs))[1:]
    return float((difference / allowed).max())


def missed_accuracy(result: Result, panel: str, side: str, name: str) -> float:
    """Largest error of the accuracy."""
    measured = result[f"{panel}_{side}_accuracy_measured"].mean(0)
    return float(np.abs(result[f"{panel}_{side}_accuracy_{name}"] - measured).max())


def control_error(result: Result, panel: str, side: str, name: str) -> float:
    """Largest relative error against the mean of the linearized runs."""
    return float(np.abs(result[f"{panel}_{side}_{name}"] / result[f"{panel}_{side}_linearized"].mean(0) - 1).max())


def draw(result: Result) -> Figure:
    columns = [(str(panel), side) for panel in result["panels"] for side in SIDES]
    ratios = {"height_ratios": [1.3, 1, 1]}
    figure, axes = style.panels(3, len(columns), height=6.2, sharex=True, sharey="row", gridspec_kw=ratios)
    for column, (panel, side) in enumerate(columns):
        axes[0, column].set_title(f"{NAMES[panel]}, {side}, lr {float(result[f'{panel}_lr']):.2g}", fontsize="small")
        draw_loss(axes[0, column], result, panel, side)
        draw_error(axes[1, column], result, panel, side)
        draw_accuracy(axes[2, column], result, panel, side)
        axes[2, column].set_xlabel("step")
    for row, words in enumerate(("cross-entropy", "relative error", "accuracy")):
        axes[row, 0].set_ylabel(words)
    style.legend_above(figure, axes, columns=3)
    return figure


def draw_loss(axis: Axes, result: Result, panel: str, side: str) -> None:
    steps, runs = result[f"{panel}_steps"][1:], result[f"{panel}_{side}_measured"][:, 1:]
    low, high = np.quantile(runs, [0.05, 0.95], axis=0)
    style.band(axis, steps, runs.mean(0), "measured", low=low, high=high)
    style.curve(axis, steps, result[f"{panel}_{side}_linearized"].mean(0)[1:], "linearized", linewidth=2.5)
    for name in map(str, result["dynamics"]):
        style.curve(axis, steps, result[f"{panel}_{side}_{name}"][1:], name)
    axis.set(xscale="log", yscale="log")
    axis.set_xlim(1, steps[-1])


def draw_error(axis: Axes, result: Result, panel: str, side: str) -> None:
    steps, runs = result[f"{panel}_steps"][1:], result[f"{panel}_{side}_measured"][:, 1:]
    mean, error = runs.mean(0), N_ERRORS * standard_error(runs)
    axis.fill_between(steps, -error / mean, error / mean, color="#202020", alpha=0.2, linewidth=0)
    style.curve(axis, steps, result[f"{panel}_{side}_linearized"].mean(0)[1:] / mean - 1, "linearized", linewidth=2.5)
    for name in map(str, result["dynamics"]):
        style.curve(axis, steps, result[f"{panel}_{side}_{name}"][1:] / mean - 1, name)
    for level in (-TOLERANCE, TOLERANCE):
        axis.axhline(level, color="#202020", linewidth=0.6)
    axis.set_ylim(-0.25, 0.1)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw_accuracy(axis: Axes, result: Result, panel: str, side: str) -> None:
    steps, runs = result[f"{panel}_steps"][1:], result[f"{panel}_{side}_accuracy_measured"][:, 1:]
    low, high = np.quantile(runs, [0.05, 0.95], axis=0)
    style.band(axis, steps, runs.mean(0), "measured", low=low, high=high)
    for name in map(str, result["dynamics"]):
        style.curve(axis, steps, result[f"{panel}_{side}_accuracy_{name}"][1:], name)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
