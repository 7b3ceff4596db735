"""The loss of minibatch SGD, predicted before training.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654, train with the stochastic differential equation of SGD.
Figure: none of theirs; gradient flow is what kernel theories of infinite width predict.
Claim: the moment recursion, computed from the network at initialization, is the expected loss of SGD on the linearized
network (1000 runs) within Monte-Carlo error at every step, and that of the real network (64 runs at laptop scale)
within 3 % or 3 standard errors while the loss is above a tenth of its start, train and test; linearized runs on the
batches of the real ones, a comparison almost free of chance, are within 3 % there too. The shading begins where
the measured loss falls below that tenth: there the linearization itself errs, and the rest is reported as it is.
Learning rates are half of the largest one that is stable in mean square. Black: mean of the real runs, its band from
the 5 % to the 95 % quantile of the runs. Below each loss the relative error, (curve - measured) / measured, linear up
to 3 % (thin lines) and logarithmic beyond; its gray band is 3 standard errors of the measured mean. Gray curve: the
mean of the linearized runs, the control. The Ornstein-Uhlenbeck process whose noise stays what it was at the
start is too high by a large factor late, since the noise of SGD shrinks with the residual. The equations in continuous
time are too low by up to 16 % and noise of the mean path by up to 24 %: half of the limit is no small learning rate,
where the second order is no better than the first. SDE paths: 500 paths, one Euler-Maruyama step for each of SGD's.
First and second column: a ReLU network with one
hidden layer of 1024 on 512 digits. Third, where MNIST's files are there: a convolutional network of 192 channels on 256
images of 14 x 14 pixels; the numbers named mnist_mlp are of a ReLU network of width 2048 on the same images.
Refuted by: a recorded step at which the recursion leaves the Monte-Carlo error of the linearized runs, or, above a
tenth of the first loss, is off by more than 3 % and by more than 3 standard errors of the real runs; gradient flow
doing as well there; or an expected loss after one step that differs from the average over all n single-example steps.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments.result import Result
from paper_figs import style

SIDES = ("train", "test")
TOLERANCE = 0.03
TENTH = 0.1
DRAWN = ("digits_8", "digits_2", "mnist_cnn")


def claims(result: Result) -> dict[str, float]:
    panels = [str(panel) for panel in result["panels"]]
    numbers = {
        "recursion_against_linearized_z": max(largest_z(result, panel, side) for panel in panels for side in SIDES),
        "first_step_against_enumeration": max(first_step_error(result, panel) for panel in panels),
        "descent_against_matrix_power": max(descent_error(result, panel) for panel in panels),
    }
    for panel in panels:
        agreement = [agreement_with_real(result, panel, side, "MomentRecursion") for side in SIDES]
        numbers[f"{panel}_disagreement"] = max(agreement)
        flow = error(result, panel, "train", "GradientFlow")[claimed(result, panel, "train")]
        numbers[f"{panel}_gradient_flow_error"] = float(np.abs(flow).max())
        numbers[f"{panel}_late_ou_ratio"] = float(1 + error(result, panel, "train", "OrnsteinUhlenbeck(init)")[-1])
        paired = [linearization_error(result, panel, side) for side in SIDES]
        inside = [error[claimed(result, panel, side)] for error, side in zip(paired, SIDES)]
        numbers[f"{panel}_linearization_error"] = float(max(np.abs(each).max() for each in inside))
        numbers[f"{panel}_late_linearization_error"] = float(paired[0][-1])
    return numbers


def measured(result: Result, panel: str, side: str) -> np.ndarray:
    """Losses of the real runs, [n_runs, T]."""
    return result[f"{panel}_{side}_measured"]


def predicted(result: Result, panel: str, side: str, name: str) -> np.ndarray:
    row = list(result["dynamics"]).index(name)
    return np.asarray(result[f"{panel}_{side}_predicted"][row])


def claimed(result: Result, panel: str, side: str) -> np.ndarray:
    """The steps up to which the measured loss has been above a tenth of its start, as a mask [T]."""
    mean = measured(result, panel, side).mean(0)
    return np.logical_and.accumulate(mean > TENTH * mean[0])


def error(result: Result, panel: str, side: str, name: str) -> np.ndarray:
    """(predicted - measured) / measured, [T]."""
    return predicted(result, panel, side, name) / measured(result, panel, side).mean(0) - 1


def standard_error(samples: np.ndarray) -> np.ndarray:
    return np.asarray(samples.std(0, ddof=1) / np.sqrt(len(samples)))


def largest_z(result: Result, panel: str, side: str) -> float:
    """Of the recursion against the mean of the linearized runs, by the runs' own spread; step 0 has none."""
    runs = result[f"{panel}_{side}_linearized"][:, 1:]
    difference = predicted(result, panel, side, "MomentRecursion")[1:] - runs.mean(0)
    return float(np.abs(difference / standard_error(runs)).max())


def agreement_with_real(result: Result, panel: str, side: str, name: str) -> float:
    """The largest of min(|error| / 3 %, |error| / 3 standard errors) where it is claimed: at most 1 is agreement."""
    runs = measured(result, panel, side)
    difference = np.abs(predicted(result, panel, side, name) - runs.mean(0))
    allowed = np.maximum(TOLERANCE * runs.mean(0), 3 * standard_error(runs))
    return float((difference / allowed)[claimed(result, panel, side)].max())


def first_step_error(result: Result, panel: str) -> float:
    assert result[f"{panel}_steps"][1] == 1
    return float(abs(predicted(result, panel, "train", "MomentRecursion")[1] / result[f"{panel}_first_step"] - 1))


def descent_error(result: Result, panel: str) -> float:
    return float(abs(predicted(result, panel, "train", "GradientDescent")[-1] / result[f"{panel}_descent"] - 1))


def linearization_error(result: Result, panel: str, side: str) -> np.ndarray:
    """Relative error of the linearized runs on the batches of the real ones, [T]: almost free of Monte-Carlo error."""
    runs = measured(result, panel, side)
    return np.asarray(result[f"{panel}_{side}_linearized"][: len(runs)].mean(0) / runs.mean(0) - 1)


def draw(result: Result) -> Figure:
    panels = [panel for panel in DRAWN if panel in result["panels"]]
    ratios = {"height_ratios": [1.25, 1, 1.25, 1]}
    figure, axes = style.panels(4, len(panels), height=9.0, sharex="col", sharey="row", gridspec_kw=ratios)
    for column, panel in enumerate(panels):
        axes[0, column].set_title(title(result, panel), fontsize="small", pad=14)
        for row, side in enumerate(SIDES):
            draw_losses(axes[2 * row, column], result, panel, side)
            draw_errors(axes[2 * row + 1, column], result, panel, side)
        axes[-1, column].set_xlabel("step")
    for row, side in enumerate(SIDES):
        axes[2 * row, 0].set_ylabel(f"{side} loss")
        axes[2 * row + 1, 0].set_ylabel(f"error, {side} loss")
    style.legend_above(figure, axes, columns=3)
    return figure


def title(result: Result, panel: str) -> str:
    data = {"digits": "digits, ReLU network", "mnist": "MNIST, convolutional"}[panel.split("_")[0]]
    batch_size, lr = int(result[f"{panel}_batch_size"]), float(result[f"{panel}_lr"])
    return f"{data}\nbatch {batch_size}, learning rate {lr:.3f}"


def draw_losses(axis: Axes, result: Result, panel: str, side: str) -> None:
    steps, runs = result[f"{panel}_steps"], measured(result, panel, side)
    low, high = np.quantile(runs[:, 1:], [0.05, 0.95], axis=0)
    style.band(axis, steps[1:], runs.mean(0)[1:], "measured", low=low, high=high)
    style.curve(axis, steps[1:], result[f"{panel}_{side}_linearized"].mean(0)[1:], "linearized", linewidth=2.5)
    for name in result["dynamics"]:
        style.curve(axis, steps[1:], predicted(result, panel, side, str(name))[1:], str(name), linewidth=1.2)
    axis.set(xscale="log", yscale="log")
    axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    shade_unclaimed(axis, result, panel, side)


def draw_errors(axis: Axes, result: Result, panel: str, side: str) -> None:
    steps, runs = result[f"{panel}_steps"], measured(result, panel, side)
    mean = runs.mean(0)
    axis.fill_between(
        steps[1:],
        *(3 * sign * standard_error(runs)[1:] / mean[1:] for sign in (-1, 1)),
        color="#202020",
        alpha=0.2,
        linewidth=0,
    )
    control = result[f"{panel}_{side}_linearized"].mean(0) / mean - 1
    style.curve(axis, steps[1:], control[1:], "linearized", linewidth=2.5)
    for name in result["dynamics"]:
        style.curve(axis, steps[1:], error(result, panel, side, str(name))[1:], str(name), linewidth=1.2)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=TOLERANCE, linscale=0.6)
    axis.set_ylim(-1, 30)
    axis.yaxis.set_major_locator(FixedLocator([-0.3, -0.03, 0.03, 0.3, 3, 30]))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f} %"))
    for level in (-TOLERANCE, TOLERANCE):
        axis.axhline(level, color="#202020", linewidth=0.6)
    shade_unclaimed(axis, result, panel, side)


def shade_unclaimed(axis: Axes, result: Result, panel: str, side: str) -> None:
    """Gray where the measured loss is below a tenth of its start."""
    steps, inside = result[f"{panel}_steps"], claimed(result, panel, side)
    axis.set_xlim(1, steps[-1])
    if not inside.all():
        axis.axvspan(float(steps[inside][-1]), float(steps[-1]), color="#ececec", zorder=0, linewidth=0)
