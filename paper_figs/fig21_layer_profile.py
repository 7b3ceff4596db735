"""What SNIP keeps of each layer.

Paper: Hayou, Ton, Doucet and Teh, arXiv:2002.08797.
Figure: none; its recursion for m_l, the second moment of the scores of layer l, drawn.
Claim: the share of weights that one-shot SNIP keeps of each layer at 90 %, measured (dots: mean, bars: standard
deviation over networks) and predicted from m_l and the law of a product of a weight, a gradient, phi' and phi (lines;
infinite width, one example, random gradients at the outputs). Order keeps the last layers, chaos the first ones. A ReLU
network without biases keeps the very same weights whatever sigma_w is: "out of the edge of chaos" is not a property
that its masks can have.
Refuted by: a layer whose mean share is off by more than .06, or masks of bias-free ReLU networks that differ.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

PANELS = {
    "tanh": {
        "tanh_ordered": ("#0173b2", "ordered"),
        "tanh_edge": ("#029e73", "edge of chaos"),
        "tanh_chaotic": ("#d55e00", "chaotic"),
    },
    "ReLU": {
        "relu_ordered": ("#0173b2", "ordered, with biases"),
        "relu_sigma_edge": ("#029e73", r"no biases, $\sigma_w = 1, \sqrt{2}, 2$"),
    },
}


def claims(result: Result) -> dict[str, float]:
    numbers = {}
    for phase in map(str, result["phases"]):
        error = np.abs(result[f"{phase}_measured"].mean(0) - result[f"{phase}_law"])
        numbers[f"{phase}_largest_error"] = float(error.max())
    numbers["bias_free_agreement"] = float(result["bias_free_agreement"].min())
    numbers["ordered_last_layer"] = float(result["tanh_ordered_measured"].mean(0)[-1])
    numbers["chaotic_first_layer"] = float(result["tanh_chaotic_measured"].mean(0)[0])
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=3.0, sharey=True)
    layers = np.arange(1, int(result["depth"]) + 1)
    for axis, (title, phases) in zip(axes[0], PANELS.items()):
        for phase, (color, label) in phases.items():
            measured = result[f"{phase}_measured"]
            axis.plot(layers, result[f"{phase}_law"], color=color, label=label)
            axis.errorbar(layers, measured.mean(0), measured.std(0), fmt="o", ms=3, color=color, elinewidth=0.8)
        axis.axhline(0.1, color="#7f7f7f", linewidth=0.8, linestyle=":")
        axis.set(xlabel="layer", title=f"{title}, {len(layers)} layers")
        axis.legend(loc="upper center")
    axes[0, 0].set(ylabel="share kept at 90 % sparsity", ylim=(-0.02, 0.85))
    return figure
