"""The noise of minibatch gradients, seen in the outputs of the network.

Paper: Hayou, Doucet and Rousseau, arXiv:1905.13654 (the covariance that drives the stochastic differential equation).
Figure: none of theirs.
Claim: the covariance of a minibatch gradient, pushed forward to the outputs, is (phi/B) K (diag(r^2)/n - r r^T/n^2) K
with the network's kernel K and output gradient r at the same weights: at the start, and along training, of a real ReLU
network on digits. Real minibatches are drawn, each gradient is a backward pass; nothing of the formula enters. First
row: its eigenvalues, and those of the covariance of the draws; inset: their ratio, the band being the range of 20
covariances of as many Gaussian draws from the formula, the error of sampling alone. Second row: 200 entries chosen at
random, in units of the mean variance, with 2 standard errors. Third row: in the coordinates that the formula makes
independent with variance 1, every entry of the leading modes' measured covariance minus the identity, in standard
errors, beside the normal density; a formula with a batch twice as large would be off by the printed number of standard
errors on the diagonal. Fourth row: quantiles along the leading mode against normal ones: at small batches the noise is
not Gaussian, its excess kurtosis is that of single examples over B, but its covariance is all that mean and variance of
a linear network see.
Refuted by: deviations in the third row that are wider than the normal density; eigenvalues outside the band beyond
what the non-Gaussian draws explain; an excess kurtosis that differs from that of single examples over B.
"""

from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

POINTS = ("start", "trained")
FORMULA = style.look("MomentRecursion")["color"]
MEASURED = style.look("measured")["color"]


def claims(result: Result) -> dict[str, float]:
    keys = [f"{point}_{case}" for point in POINTS for case in result["cases"]]
    deviations = [result[f"{key}_z"] for key in keys]
    wrong = [result[f"{key}_z_of_doubled_batch"] for key in keys]
    numbers = {
        "least_rms_z": min(rms(z) for z in deviations),
        "largest_rms_z": max(rms(z) for z in deviations),
        "largest_z": max(float(np.abs(z).max()) for z in deviations),
        "least_rms_z_of_doubled_batch": min(rms(z) for z in wrong),
        "largest_trace_error": max(abs(float(result[f"{key}_trace_ratio"]) - 1) for key in keys),
    }
    small = str(result["cases"][0])
    for point in POINTS:
        numbers[f"{point}_kurtosis"] = float(result[f"{point}_{small}_kurtosis_exact"][0])
        difference = result[f"{point}_{small}_kurtosis"] - result[f"{point}_{small}_kurtosis_exact"]
        numbers[f"{point}_kurtosis_rms_z"] = rms(difference / result[f"{point}_{small}_kurtosis_error"])
    return numbers


def rms(z: np.ndarray) -> float:
    return float(np.sqrt((z**2).mean()))


def draw(result: Result) -> Figure:
    figure, axes = style.panels(4, 2, height=8.2)
    case = str(result["cases"][0])
    for column, point in enumerate(POINTS):
        key = f"{point}_{case}"
        when = "at the start" if point == "start" else f"after {int(result['n_steps'])} steps"
        axes[0, column].set_title(f"{when}, loss {float(result[f'{point}_loss']):.2g}", fontsize="small")
        draw_spectrum(axes[0, column], result, key)
        draw_entries(axes[1, column], result, key)
        draw_deviations(axes[2, column], result, key)
        draw_quantiles(axes[3, column], result, point)
    return figure


def draw_spectrum(axis: Axes, result: Result, key: str) -> None:
    values = result[f"{key}_formula_values"]
    # The batch mean of all examples has no noise: that direction is rounding.
    positive = values > 1e-10 * values[0]
    rank = np.arange(1, positive.sum() + 1)
    low, high = result[f"{key}_sampled_values"][:, positive]
    axis.fill_between(rank, low, high, color=FORMULA, alpha=0.35, linewidth=0, label="its sampling error")
    axis.plot(rank, values[positive], color=FORMULA, label="formula")
    measured = result[f"{key}_measured_values"][positive]
    axis.plot(rank, measured, ".", color=MEASURED, markersize=2.5, label=f"{result['draws']} batches")
    axis.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue")
    axis.legend(loc="upper right", fontsize="x-small")
    inset = axis.inset_axes((0.08, 0.12, 0.5, 0.42))
    inset.fill_between(rank, low / values[positive], high / values[positive], color=FORMULA, alpha=0.35, linewidth=0)
    inset.plot(rank, measured / values[positive], ".", color=MEASURED, markersize=2)
    inset.axhline(1, color=FORMULA, linewidth=0.8)
    inset.set(xscale="log", xticklabels=[])
    inset.set_title("measured / formula", fontsize="x-small", pad=2)
    inset.tick_params(labelsize="xx-small", pad=1)
    inset.yaxis.tick_right()


def draw_entries(axis: Axes, result: Result, key: str) -> None:
    formula, found = result[f"{key}_entries_formula"], result[f"{key}_entries_measured"]
    limits = (min(formula.min(), found.min()), max(formula.max(), found.max()))
    axis.plot(limits, limits, color=FORMULA, linewidth=1)
    axis.errorbar(
        formula,
        found,
        yerr=2 * result[f"{key}_entries_error"],
        fmt=".",
        color=MEASURED,
        markersize=3,
        elinewidth=0.5,
        alpha=0.7,
    )
    axis.set(xlabel="entry of the formula", ylabel="measured")


def draw_deviations(axis: Axes, result: Result, key: str) -> None:
    z, wrong = result[f"{key}_z"], result[f"{key}_z_of_doubled_batch"]
    grid = np.linspace(-5, 5, 201)
    axis.hist(z, 40, range=(-5, 5), density=True, color=MEASURED, alpha=0.35, label=f"{len(z)} entries")
    axis.plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color=FORMULA, label="normal")
    off = np.sort(wrong)[::-1][: int(np.sqrt(2 * len(wrong)))]
    text = f"with twice the batch\nthe diagonal is off\nby {off.min():.0f} to {off.max():.0f}"
    axis.annotate(text, (0.02, 0.97), xycoords="axes fraction", va="top", fontsize="x-small")
    axis.set(xlabel="deviation in standard errors", ylabel="density", xlim=(-5, 5))
    axis.legend(loc="upper right", fontsize="x-small")


def draw_quantiles(axis: Axes, result: Result, point: str) -> None:
    for case, marker in zip(result["cases"], ("o", "s")):
        key = f"{point}_{case}"
        normal = [NormalDist().inv_cdf(float(p)) for p in result[f"{key}_probabilities"]]
        batch_size, sampling = str(case).split("_", 1)
        kurtosis = float(result[f"{key}_kurtosis"][0])
        label = f"B = {batch_size} {sampling.replace('_', ' ')},\nexcess kurtosis {kurtosis:+.2f}"
        face = MEASURED if marker == "o" else "none"
        axis.plot(
            normal, result[f"{key}_quantiles"], marker, color=MEASURED, markerfacecolor=face, markersize=3, label=label
        )
    axis.plot(normal, normal, color=FORMULA, linewidth=1)
    axis.set(xlabel="normal quantile", ylabel="quantile, leading mode")
    axis.legend(loc="upper left", fontsize="x-small")
