"""Where the error of a prediction comes from.

Paper: none; the terms are those of the chain from real SGD to the theory that predicts it.
Figure: none.
Claim: the gap between the mean loss of real runs (128 at laptop scale, digits, batches of 8, cross-entropy batches of
1) and a prediction is a sum of terms, each a difference of two curves that can be computed, with its standard error.
(a) The moment recursion on a wide network (0.4 of the mean-square limit): its error is the runs' own sampling error
early and the linearization late; no other term exists. (b) An Ornstein-Uhlenbeck process on the same runs adds the
discretization, SGD against its SDE, and the frozen noise, which does not see that fluctuations make noise. (c) A moving
kernel on a narrow network (0.2 of the limit): the kernel's motion takes back what the linearization loses. (d)
Cross-entropy with batches of single examples, predicted by sample paths: there the shape of the noise, not only its
covariance, is a term.
Stacked areas: the terms in per cent of the measured training loss, positive upwards, negative downwards; black: the
gap with two standard errors. Terms that are exactly zero are not drawn.
Refuted by: terms that do not add up to the gap; a linearization term of a model that is linear; noise terms of whole
batches; a Monte-Carlo term beyond chance; a moving kernel that takes back nothing.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOOKS = {
    "linearization": ("#0173b2", "linearization"),
    "monte_carlo": ("#b5b5b5", "Monte-Carlo"),
    "non_gaussian": ("#de8f05", "non-Gaussian noise"),
    "discretization": ("#029e73", "discretization"),
    "frozen_noise": ("#d55e00", "frozen noise"),
    "closure": ("#cc78bc", "closure, sampled paths"),
    "kernel_motion": ("#56b4e9", "kernel motion"),
}
TITLES = {
    "recursion": "moment recursion, wide network",
    "frozen_noise": "Ornstein-Uhlenbeck, wide network",
    "moving_kernel": "moving kernel, narrow network",
    "cross_entropy": "sample paths, cross-entropy, B = 1",
}
SIDES = ("train", "test")


def claims(result: Result) -> dict[str, float]:
    panels = [str(panel) for panel in result["panels"]]
    numbers = {
        "largest_sum_error": max(sum_error(result, panel, side) for panel in panels for side in SIDES),
        "linear_model_terms": float(result["linear_terms"]),
        "whole_batch_terms": float(result["whole_terms"]),
        "largest_monte_carlo_z": max(
            largest_z(result, panel, side, "monte_carlo") for panel in panels for side in SIDES
        ),
        "recursion_other_terms": other_terms(result, "recursion"),
        "frozen_noise_share": share_at_end(result, "frozen_noise", "frozen_noise"),
        "frozen_discretization": share_at_end(result, "frozen_noise", "discretization"),
        "kernel_motion_takes_back": taken_back(result),
        "cross_entropy_closure_z": largest_z(result, "cross_entropy", "train", "closure"),
        "cross_entropy_non_gaussian_z": largest_z(result, "cross_entropy", "train", "non_gaussian"),
    }
    return numbers


def term(result: Result, panel: str, side: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Value and standard error, [T]."""
    row = [str(known) for known in result[f"{panel}_terms"]].index(name)
    return result[f"{panel}_{side}_terms"][row], result[f"{panel}_{side}_errors"][row]


def gap(result: Result, panel: str, side: str) -> np.ndarray:
    return np.asarray(result[f"{panel}_{side}_measured"] - result[f"{panel}_{side}_predicted"])


def sum_error(result: Result, panel: str, side: str) -> float:
    """Of the terms against the gap, relative to the first loss."""
    difference = result[f"{panel}_{side}_terms"].sum(0) - gap(result, panel, side)
    return float(np.abs(difference).max() / result[f"{panel}_{side}_measured"][0])


def largest_z(result: Result, panel: str, side: str, name: str) -> float:
    """Of a term in its standard errors; step 0 has none."""
    value, error = term(result, panel, side, name)
    return float(np.abs(value[1:] / error[1:]).max())


def other_terms(result: Result, panel: str) -> float:
    """The largest term but those that a measurement always has, relative to the measured loss."""
    names = [name for name in LOOKS if name not in ("linearization", "monte_carlo")]
    measured = result[f"{panel}_train_measured"]
    return max(float(np.abs(term(result, panel, "train", name)[0] / measured).max()) for name in names)


def share_at_end(result: Result, panel: str, name: str) -> float:
    """A term at the last step, relative to the measured loss."""
    return float(term(result, panel, "train", name)[0][-1] / result[f"{panel}_train_measured"][-1])


def taken_back(result: Result) -> float:
    """What the moving kernel makes good of the linearization, at the last step: 1 is all of it."""
    kernel, linear = (term(result, "moving_kernel", "train", n)[0][-1] for n in ("kernel_motion", "linearization"))
    return float(-kernel / linear)


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.4)
    for axis, panel in zip(axes.flat, result["panels"]):
        draw_panel(axis, result, str(panel))
    for axis in axes[:, 0]:
        axis.set_ylabel("measured - predicted\n[% of measured]")
    for axis in axes[1]:
        axis.set_xlabel("step")
    style.legend_above(figure, axes, columns=4)
    return figure


def draw_panel(axis: Axes, result: Result, panel: str) -> None:
    steps, scale = result[f"{panel}_steps"], 100 / result[f"{panel}_train_measured"]
    up, down = np.zeros(len(steps)), np.zeros(len(steps))
    for name, (color, label) in LOOKS.items():
        value = scale * term(result, panel, "train", name)[0]
        if not np.any(value):
            continue
        above, below = up + np.maximum(value, 0), down + np.minimum(value, 0)
        axis.fill_between(steps[1:], up[1:], above[1:], color=color, label=label, alpha=0.75, linewidth=0)
        axis.fill_between(steps[1:], down[1:], below[1:], color=color, alpha=0.75, linewidth=0)
        up, down = above, below
    error = 2 * scale * result[f"{panel}_train_gap_error"]
    whole = scale * gap(result, panel, "train")
    axis.errorbar(
        steps[1:],
        whole[1:],
        error[1:],
        color="#202020",
        linewidth=1.2,
        elinewidth=0.6,
        capsize=1,
        label="gap, two standard errors",
    )
    axis.axhline(0, color="#202020", linewidth=0.6)
    axis.set(xscale="log", xlim=(1, steps[-1]), title=TITLES[panel])
