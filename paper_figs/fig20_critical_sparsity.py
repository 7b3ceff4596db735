"""The sparsity at which SNIP empties a layer.

Paper: Hayou, Ton, Doucet and Teh, arXiv:2002.08797.
Figure: none of its figures; its theorem that off the edge of chaos sensitivity-based pruning empties a layer at a
sparsity that falls with depth, and on the edge does not.
Claim: the exact critical sparsity of one-shot SNIP (digits, cross-entropy) against depth. Ordered and chaotic tanh
networks lose a layer at less and less sparsity, networks on the edge of chaos do not. ReLU without biases is on the
edge at any sigma_w as far as its masks go; what falls is ordered ReLU with biases. Lines: mean, bands: smallest to
largest of the seeds.
Refuted by: a critical sparsity of ordered tanh above .5, or on the edge below .95, at depth 40.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOOKS = {
    "tanh_ordered": ("#0173b2", "--", "tanh, ordered"),
    "tanh_edge": ("#0173b2", "-", "tanh, edge of chaos"),
    "tanh_chaotic": ("#0173b2", ":", "tanh, chaotic"),
    "relu_ordered": ("#d55e00", "--", "ReLU with biases, ordered"),
    "relu_edge": ("#d55e00", "-", "ReLU, edge of chaos"),
}


def claims(result: Result) -> dict[str, float]:
    deepest = {name: result[name][:, -1] for name in LOOKS}
    return {
        "tanh_ordered_largest": float(deepest["tanh_ordered"].max()),
        "tanh_edge_smallest": float(deepest["tanh_edge"].min()),
        "tanh_chaotic_mean": float(deepest["tanh_chaotic"].mean()),
        "relu_edge_smallest": float(deepest["relu_edge"].min()),
        "relu_edge_above_ordered": float(deepest["relu_edge"].min() - deepest["relu_ordered"].max()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=3.2)
    depths = result["depths"]
    for name, (color, pattern, label) in LOOKS.items():
        found = result[name]
        axes[0, 0].plot(depths, found.mean(0), pattern, color=color, marker="o", ms=3, label=label)
        axes[0, 0].fill_between(depths, found.min(0), found.max(0), color=color, alpha=0.2, linewidth=0)
        kept = 1 - found
        axes[0, 1].plot(depths, kept.mean(0), pattern, color=color, marker="o", ms=3)
        axes[0, 1].fill_between(depths, kept.min(0), kept.max(0), color=color, alpha=0.2, linewidth=0)
    axes[0, 0].set(ylim=(0, 1.02), ylabel="critical sparsity", title="when a layer is empty")
    axes[0, 1].set(yscale="log", ylabel="smallest share to be kept", title="the same, as what is left")
    for axis in axes[0]:
        axis.set(xscale="log", xlabel="hidden layers")
        axis.set_xticks(depths, [str(depth) for depth in np.asarray(depths)])
        axis.minorticks_off()
    style.legend_above(figure, axes[:1, :1], columns=3)
    return figure
