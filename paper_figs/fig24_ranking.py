"""Masks ranked by predicted loss, where that works and where it does not; kernel transfer.

Paper: Gebhart, Saxena and Schrater, arXiv:2101.10552 (the trace of the path kernel); Liu and Zenke, arXiv:2006.08228
(transfer).
Figure: none; nobody has predicted what a mask does to training.
Claim: fifteen masks of a network on 64 digits, five criteria at three sparsities; loss after 300 steps predicted
without training against the mean of eight runs. At one learning rate for all (a) the prediction ranks them; at .3 of
each mask's own stability limit (b) it does not, since pruned networks leave the linear regime there. What else ranks
them at one rate (c): Spearman correlation with the measured loss, one bar a network; "convergence from the architecture
alone" by the trace of the path kernel is not reproduced. Neural tangent transfer of 64-100-10 to 5 % (d): both
distances on test examples fall.
Refuted by: a Spearman correlation below .9 at one learning rate, or one not above that of the path kernel.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.result import Result
from paper_figs import style

COLORS = {"random": "#7f7f7f", "snip": "#d55e00", "grasp": "#cc78bc", "synflow": "#0173b2", "synflow2": "#029e73"}
NAMES = {"random": "Random", "snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow", "synflow2": "SynFlow, power 2"}
MARKERS = "os^Dv"
TICKS = [0.2, 0.3, 0.5, 0.7, 1.0]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one of the two is constant."""
    ranks = []
    for values in (a, b):
        smaller = (values[:, None] > values).sum(1)
        ranks.append(smaller + (values[:, None] == values).sum(1) / 2)
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) > 0 for rank in ranks) else 0.0


def correlations(result: Result) -> dict[str, np.ndarray]:
    """With the measured training loss at one rate, by what ranks, [network]."""
    ranked_by = {
        "predicted loss": result["one_predicted"],
        "Tr K": -result["kernel_trace"],
        "sparsity": result["sparsity"],
        r"Tr $\Pi$": -result["path_kernel_trace"],
    }
    measured = result["one_measured"]
    return {
        name: np.array([spearman(row, loss) for row, loss in zip(values, measured)])
        for name, values in ranked_by.items()
    }


def claims(result: Result) -> dict[str, float]:
    found = correlations(result)
    own = [spearman(*pair) for pair in zip(result["own_predicted"], result["own_measured"])]
    test = [spearman(*pair) for pair in zip(result["one_test_predicted"], result["one_test_measured"])]
    error = np.abs(result["one_predicted"] / result["one_measured"] - 1)
    own_error = np.abs(np.log(result["own_predicted"] / result["own_measured"]))
    return {
        "spearman_at_one_rate": float(found["predicted loss"].min()),
        "spearman_of_test_loss": float(min(test)),
        "spearman_above_path_kernel": float((found["predicted loss"] - found[r"Tr $\Pi$"]).min()),
        "largest_error_at_one_rate": float(error.max()),
        "spearman_at_own_rates": float(min(own)),
        "largest_factor_at_own_rates": float(np.exp(own_error.max())),
        "transfer_output_ratio": float(result["transfer_outputs"][-1] / result["transfer_outputs"][0]),
        "transfer_kernel_ratio": float(result["transfer_kernel"][-1] / result["transfer_kernel"][0]),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.6)
    scatter(axes[0, 0], result, "one", "one learning rate")
    scatter(axes[0, 1], result, "own", "each mask's own rate")
    found = correlations(result)
    for place, values in enumerate(found.values()):
        at = place + (np.arange(len(values)) - (len(values) - 1) / 2) * 0.3
        axes[1, 0].bar(at, values, 0.27, color="#0173b2" if place == 0 else "#a0a0a0")
    axes[1, 0].set_xticks(range(len(found)), list(found))
    axes[1, 0].axhline(0, color="#202020", linewidth=0.8)
    axes[1, 0].set(ylim=(-0.2, 1.05), ylabel="Spearman correlation", title="what ranks the masks")
    steps = result["transfer_steps"]
    for name, color in (("outputs", "#0173b2"), ("kernel", "#d55e00")):
        curve = result[f"transfer_{name}"]
        axes[1, 1].plot(steps, curve / curve[0], color=color, label=f"distance of {name}")
    axes[1, 1].set(ylim=(0, 1.1), xlabel="step of Adam", ylabel="part of the start", title="neural tangent transfer")
    axes[1, 1].legend()
    style.legend_above(figure, axes[:1, :1], columns=5)
    return figure


def scatter(axis: Axes, result: Result, label: str, title: str) -> None:
    """Measured against predicted losses, a color a criterion, a marker a network."""
    names = [str(name).split()[0] for name in result["names"]]
    for network, marker in zip(range(len(result["sparsity"])), MARKERS):
        for name, color in COLORS.items():
            chosen = [place for place, other in enumerate(names) if other == name]
            x, y = (result[f"{label}_{kind}"][network][chosen] for kind in ("predicted", "measured"))
            axis.plot(x, y, marker, ms=4, color=color, label=NAMES[name] if network == 0 else None)
    values = np.concatenate([result[f"{label}_{kind}"].ravel() for kind in ("predicted", "measured")])
    ends = np.array([0.8 * values.min(), 1.25 * values.max()])
    axis.plot(ends, ends, color="#7f7f7f", linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlabel="predicted loss", ylabel="measured loss", title=title)
    if values.min() > 0.1:  # less than a decade: numbers in place of powers
        for side in (axis.xaxis, axis.yaxis):
            side.set_ticks(TICKS, [f"{tick:g}" for tick in TICKS])
            side.set_minor_formatter(NullFormatter())
        axis.set(xlim=tuple(ends), ylim=tuple(ends))
