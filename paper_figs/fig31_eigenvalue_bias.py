"""Extreme eigenvalues of a sample covariance lie outside the true ones.

Paper: Hayou, arXiv:1708.03551.
Figure: none of theirs is reproduced.
Claim: eigenvalues linspace(1, 2, p), twice as many Gaussian samples as dimensions, 1000 draws: mean of the largest
sample eigenvalue over the true one and of the smallest, bars two standard errors (smaller than the markers); 1 would
be unbiased (a). A spike of 5 in the identity: how often the sample overestimates it, at p/m = 0.01 and 0.5 (b): a
statement with probability 1 needs p/m > 0; and its mean against l (1 + q/(l - 1)) (c).
Refuted by: a ratio on the other side of 1; a spike's mean more than four standard errors from the formula at p >= 100.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOW, HIGH = "#0173b2", "#de8f05"


def claims(result: Result) -> dict[str, float]:
    means, errors = result["ratios"][:, 0], result["ratios"][:, 1]
    cases, spikes = result["spike_cases"], result["spike_mean"]
    wanted = 5 * (1 + cases[:, 0] / cases[:, 1] / 4)
    large = (cases[:, 0] >= 100) & (cases[:, 0] / cases[:, 1] > 0.1)
    return {
        "largest_least_excess_in_errors": float(((means[:, 1] - 1) / errors[:, 1]).min()),
        "smallest_least_deficit_in_errors": float(((1 - means[:, 0]) / errors[:, 0]).min()),
        "largest_at_20": float(means[result["sizes"].tolist().index(20), 1]),
        "smallest_at_20": float(means[result["sizes"].tolist().index(20), 0]),
        "spike_departure": float(np.abs(spikes[:, 0] / wanted - 1)[large].max()),
        "share_at_200_of_400": float(result["spike_share"][cases[:, 0].tolist().index(200)]),
        "share_at_20_of_2000": float(result["spike_share"][cases[:, 0].tolist().index(20)]),
        "divisor_m_at_one": float(result["divisor_m_at_one"]),
        "identity_against_edges": float(np.abs(result["identity"] / result["edges"] - 1).max()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 3, height=2.8)
    means, errors = result["ratios"][:, 0], result["ratios"][:, 1]
    for i, (color, label) in enumerate(((LOW, "smallest"), (HIGH, "largest"))):
        axes[0, 0].errorbar(
            result["sizes"], means[:, i], 2 * errors[:, i], fmt="o-", color=color, markersize=4, label=label
        )
    axes[0, 0].axhline(1, color="#7f7f7f", linewidth=0.8)
    axes[0, 0].set(
        xscale="log", xlabel="dimension $p$, $p/m = 1/2$", ylabel="sample over true eigenvalue", ylim=(0, None)
    )
    cases = result["spike_cases"]
    for ratio, color, marker in ((0.01, LOW, "s"), (0.5, HIGH, "o")):
        chosen = np.isclose(cases[:, 0] / cases[:, 1], ratio)
        p, (mean, error) = cases[chosen, 0], result["spike_mean"][chosen].T
        label = f"$p/m = {ratio:g}$"
        axes[0, 1].plot(p, result["spike_share"][chosen], f"{marker}-", color=color, markersize=4, label=label)
        axes[0, 2].errorbar(p, mean, 2 * error, fmt=marker, color=color, markersize=4, label=label)
        axes[0, 2].axhline(5 * (1 + ratio / 4), color=color, linestyle=":", linewidth=1)
    axes[0, 1].set(xscale="log", xlabel="dimension $p$", ylabel="share above the true spike", ylim=(0.4, 1.02))
    axes[0, 2].axhline(5, color="#7f7f7f", linewidth=0.8)
    axes[0, 2].set(xscale="log", xlabel="dimension $p$", ylabel="mean of the sample's spike")
    for axis in axes.flat:
        axis.legend(fontsize="x-small")
    return figure
