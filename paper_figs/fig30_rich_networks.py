"""The rich regime of nonlinear networks and of matrix factorizations.

Paper: Woodworth et al., arXiv:2002.09277.
Figure: theirs of test error over the scale, and of matrix factorization over scale and width, at a smaller size.
Claim: a ReLU network of 100 neurons in two copies of opposite sign, output scaled, teacher of two units, 80 examples
in 10 dimensions, full-batch descent to a training loss of 1e-4; test error over the variance, 3 draws and their mean
(a): it falls in the rich regime. U V^T of several widths, fitted to 60 of 100 entries of a matrix of rank 1 from
entries of standard deviation a: excess of the nuclear norm over the least possible, relative to the largest scale,
over a^2 width (b), where wide factors fall together (width 20 is too narrow for that), and over a^2 sqrt(width), the
size of a random output (c), where they do not.
Refuted by: a test error that does not fall at small scales; a better collapse over a^2 sqrt(width).
"""

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style


def excess(result: Result) -> np.ndarray:
    """Nuclear norm less 1, over that of the largest scale, [widths, sizes]."""
    norms = result["nuclear_norm"].mean(-1) - 1
    return np.asarray(norms / norms[:, -1:])


def spread(values: np.ndarray, sizes: np.ndarray, shifts: np.ndarray) -> float:
    """Mean gap between the curves of the two largest widths, over log sizes shifted for each width."""
    at = np.log(sizes)
    common = np.linspace(at[0] + shifts.max(), at[-2] + shifts.min(), 40)
    curves = [np.interp(common, at + shift, each) for shift, each in zip(shifts, values)]
    return float(np.abs(np.ptp(curves, axis=0)).mean())


def claims(result: Result) -> dict[str, float]:
    error = result["test_error"].mean(1)
    numbers = {
        "rich_over_kernel_test_error": float(error[0] / error[-1]),
        "largest_train_loss": float(result["train_loss"].max()),
        "rich_excess": float(excess(result)[-1, 0]),
    }
    if len(result["widths"]) > 1:
        values, sizes, widths = excess(result)[-2:], result["sizes"], result["widths"][-2:].astype(float)
        kept, moved = spread(values, sizes, np.zeros(2)), spread(values, sizes, -0.5 * np.log(widths / widths[0]))
        numbers["collapse_over_the_other"] = kept / moved
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.9)
    axis, scales = axes[0, 0], result["scales"]
    axis.plot(scales, result["test_error"], ".", color="#7f7f7f", markersize=4)
    axis.plot(scales, result["test_error"].mean(1), "o-", color="#202020", markersize=4)
    axis.set(xscale="log", yscale="log", xlabel="output scale", ylabel="test error / variance")
    sizes, values = result["sizes"], excess(result)
    for i, (width, color) in enumerate(zip(result["widths"], sns.color_palette("crest", len(result["widths"])))):
        for panel, factor in ((axes[0, 1], 1.0), (axes[0, 2], float(width) ** -0.5)):
            panel.plot(sizes[:-1] * factor, values[i, :-1], "o-", color=color, markersize=4, label=f"width {width}")
    axes[0, 1].set(xscale="log", xlabel=r"$a^2\,\mathrm{width}$", ylabel="excess nuclear norm", ylim=(0, 1.05))
    axes[0, 2].set(xscale="log", xlabel=r"$a^2\,\sqrt{\mathrm{width}}$", ylabel="excess nuclear norm", ylim=(0, 1.05))
    for panel in axes[0, 1:]:
        panel.legend(fontsize="x-small")
    return figure
