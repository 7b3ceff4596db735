"""SGD against its stochastic differential equation, in real runs.

Paper: Li, Malladi, Arora, On the Validity of Modeling SGD with Stochastic Differential Equations, arXiv:2102.12470.
Figure: SVAG with l = 1, 2, 4, 8 in the manner of its figures, on digits; the controls are ours.
Claim: at a fixed learning rate, half of the largest one that is stable in mean square, real runs of SVAG (a wide ReLU
network on digits, batches of 8) move from SGD at l = 1 to the prediction of the SDE of first order as l grows, and at
every l they are where the linearized model says: the moment recursion of SGD with learning rate lr/l and batches of
8/l, which has the same first two moments. What separates SGD from its SDE here is the finite step. Noise of the same
covariance but without batches (a Gaussian weight for every example of the full gradient) gives real runs with SGD's
first two moments: the mean outputs and their total variance agree within chance.
(a) Mean loss of real runs (128 at laptop scale) over that of the SDE, minus one, in the estimate whose sampling error
is small: real minus linearized runs on the same batches, plus the exact expectation of the latter; bands of two
standard errors. Dashed: that expectation alone. (b) The same at the last step against l; gray squares: plain means of
the real runs; dotted the slope -1 of a scheme of first order. (c) Total variance of the training outputs over runs in
units of SGD's, after one step and at the end: noisy gradients, and the same with twice the batch size, which must not
agree. Bars: two standard errors.
Refuted by: linearized runs at some l off the recursion, or plain means of real runs beyond chance from the estimate; a
gap to the SDE that does not shrink with l; a noisy gradient whose moments are told from SGD's; twice the batch passing
for it.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

COLORS = ("#202020", "#3b528b", "#21918c", "#5ec962")
"""Of l = 1, 2, 4, 8: SGD in the color of measurements."""

GROUPS = 16
"""Of runs, for the error of a variance."""


def claims(result: Result) -> dict[str, float]:
    gaps = {factor: exact_gap(result, factor) for factor in result["amplified"].tolist()}
    real = {factor: real_gap(result, factor) for factor in gaps}
    numbers = {
        "linearized_z": max(largest_z(result, "linearized", factor) for factor in gaps),
        "real_z": max(largest_z(result, "real", factor) for factor in gaps),
        "linearization": max(abs(real[factor][0] - gaps[factor]) for factor in gaps),
        "sgd_gap": gaps[1],
        "gap_ratio_from_4_to_8": gaps[8] / gaps[4],
        "real_gap_of_8_over_1": real[8][0] / real[1][0],
        "least_drop_z": min(drop_z(real[factor], real[2 * factor]) for factor in (1, 2, 4)),
        "noisy_mean_z": max(mean_z(result, "noisy", at) for at in (0, 1)),
        "noisy_variance_z": max(abs(variance_z(result, "noisy", at)) for at in (0, 1)),
        "double_batch_variance_z": max(variance_z(result, "noisy_double_batch", at) for at in (0, 1)),
        "double_batch_variance": float(variance_ratio(result, "noisy_double_batch", 0)[0]),
    }
    return numbers


def standard_error(samples: np.ndarray) -> np.ndarray:
    return np.asarray(samples.std(0, ddof=1) / np.sqrt(len(samples)))


def largest_z(result: Result, name: str, factor: int) -> float:
    """Of plain means against the exact expectation (linearized) or the estimate of small error (real), after step 0."""
    runs = result[f"{name}_{factor}"][:, 1:]
    expected = result[f"exact_{factor}"] if name == "linearized" else estimate(result, factor)[0]
    return float(np.abs((runs.mean(0) - expected[1:]) / standard_error(runs)).max())


def estimate(result: Result, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected loss of real SVAG, [T], from runs paired with linearized ones, and its standard error."""
    real = result[f"real_{factor}"]
    difference = real - result[f"linearized_{factor}"][: len(real)]
    return result[f"exact_{factor}"] + difference.mean(0), standard_error(difference)


def exact_gap(result: Result, factor: int) -> float:
    """Expected loss of SVAG on the linearized model over that of the SDE, minus one, at the last step."""
    return float(result[f"exact_{factor}"][-1] / result["sde"][-1] - 1)


def real_gap(result: Result, factor: int) -> tuple[float, float]:
    """The same of real runs, with its standard error."""
    value, error = estimate(result, factor)
    return float(value[-1] / result["sde"][-1] - 1), float(error[-1] / result["sde"][-1])


def drop_z(one: tuple[float, float], two: tuple[float, float]) -> float:
    """By how many standard errors the second gap is smaller."""
    return (one[0] - two[0]) / float(np.hypot(one[1], two[1]))


def mean_z(result: Result, name: str, at: int) -> float:
    """The largest score over the mean outputs, one an example."""
    runs, others = result["outputs_sgd"][:, at], result[f"outputs_{name}"][:, at]
    error = np.hypot(standard_error(runs), standard_error(others))
    return float(np.abs((runs.mean(0) - others.mean(0)) / error).max())


def variance_ratio(result: Result, name: str, at: int) -> tuple[float, float]:
    """Total variance of the outputs in units of SGD's, with its standard error from groups of runs."""
    totals = []
    for key in (name, "sgd"):
        runs = result[f"outputs_{key}"][:, at]
        centered = np.square(runs - runs.mean(0)).sum(1) * len(runs) / (len(runs) - 1)
        groups = np.array([group.mean() for group in np.array_split(centered, min(GROUPS, len(runs) // 2))])
        totals.append((centered.mean(), groups.std(ddof=1) / np.sqrt(len(groups))))
    (a, da), (b, db) = totals
    return float(a / b), float(a / b * np.hypot(da / a, db / b))


def variance_z(result: Result, name: str, at: int) -> float:
    ratio, error = variance_ratio(result, name, at)
    return (ratio - 1) / error


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.9, width_ratios=[1.5, 1, 1])
    draw_courses(axes[0, 0], result)
    draw_order(axes[0, 1], result)
    draw_controls(axes[0, 2], result)
    return figure


def draw_courses(axis: Axes, result: Result) -> None:
    steps, sde = result["steps"][1:], result["sde"][1:]
    for factor, color in zip(result["amplified"].tolist(), COLORS):
        value, error = (part[1:] for part in estimate(result, factor))
        mean, band = 100 * (value / sde - 1), 200 * error / sde
        axis.plot(steps, mean, color=color, label=f"l = {factor}" + (", SGD" if factor == 1 else ""))
        axis.fill_between(steps, mean - band, mean + band, color=color, alpha=0.25, linewidth=0)
        axis.plot(steps, 100 * (result[f"exact_{factor}"][1:] / sde - 1), color=color, linewidth=0.8, linestyle="--")
    axis.axhline(0, color="#76b7b2", linewidth=2, zorder=0)
    axis.set(xscale="log", xlim=(1, steps[-1]), xlabel="step", ylabel="loss over the SDE's, minus 1 [%]")
    axis.set_title("real runs of SVAG")
    axis.legend(loc="lower right")


def draw_order(axis: Axes, result: Result) -> None:
    factors = result["amplified"]
    exact = np.array([exact_gap(result, factor) for factor in factors.tolist()])
    axis.plot(factors, 100 * exact, color="#7f7f7f", linestyle="--", label="linearized, exact")
    real = np.array([real_gap(result, factor) for factor in factors.tolist()])
    look: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2}
    axis.errorbar(factors, 100 * real[:, 0], 200 * real[:, 1], color="#202020", label="real", **look)
    plain = np.stack([result[f"real_{factor}"][:, -1] for factor in factors]) / result["sde"][-1] - 1
    error = 200 * plain.std(1, ddof=1) / np.sqrt(plain.shape[1])
    look |= {"fmt": "s", "markersize": 3, "elinewidth": 0.7, "zorder": 0}
    axis.errorbar(1.08 * factors, 100 * plain.mean(1), error, color="#b0b0b0", label="real, plain means", **look)
    axis.plot(factors, 100 * exact[-1] * factors[-1] / factors, color="#202020", linestyle=":", linewidth=0.8)
    axis.axhline(0, color="#76b7b2", linewidth=2, zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(factors, [str(factor) for factor in factors])
    axis.minorticks_off()
    axis.set(xlabel="l", title=f"at step {int(result['steps'][-1])}")
    axis.legend(loc="upper right")


def draw_controls(axis: Axes, result: Result) -> None:
    bars = {"noisy": "noisy, B", "noisy_double_batch": "noisy, 2B"}
    for at, color in enumerate(("#9ecae1", "#0173b2")):
        pairs = np.array([variance_ratio(result, name, at) for name in bars])
        places = np.arange(len(bars)) + 0.36 * (at - 0.5)
        label = f"step {int(result['control_steps'][at])}"
        axis.bar(places, pairs[:, 0], 0.34, yerr=2 * pairs[:, 1], color=color, capsize=2, label=label)
    axis.axhline(1, color="#202020", linewidth=1)
    axis.set_xticks(range(len(bars)), list(bars.values()))
    axis.set(title="variance over SGD's", ylim=(0, 1.6))
    axis.legend(loc="upper right")
