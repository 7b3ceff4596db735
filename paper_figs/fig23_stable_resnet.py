"""Residual networks at extreme sparsity.

Paper: Hayou, Ton, Doucet and Teh, arXiv:2002.08797; Hayou et al., arXiv:2010.12859 (stable scaling).
Figure: after their comparison of residual networks with and without the factor L^{-1/2}, on digits.
Claim: test accuracy of a residual ReLU network pruned by SNIP at initialization and trained by SGD with momentum (the
best of three learning rates), against sparsity (a), and what SNIP keeps of the first layer (b). Without the factor the
scores of the blocks outgrow those of the first layer, which is emptied, and nothing trains; with it SNIP trains even at
99.9 %, where blocks are empty and the skip connections carry the signal. Lines: mean, dots: seeds.
Refuted by: the unscaled network above the stable one at 99.9 %, or the stable one at chance there.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOOKS = {"none": ("#d55e00", "no scaling"), "stable": ("#0173b2", "stable, $L^{-1/2}$")}


def claims(result: Result) -> dict[str, float]:
    stable, unscaled = result["stable_accuracy"], result["none_accuracy"]
    return {
        "stable_at_90": float(stable[:, 0].mean()),
        "stable_at_999": float(stable[:, -1].min()),
        "unscaled_at_999": float(unscaled[:, -1].max()),
        "stable_above_unscaled_at_90": float(stable[:, 0].mean() - unscaled[:, 0].mean()),
        "unscaled_first_layer_at_999": float(result["none_first"][:, -1].max()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=2.8)
    places = np.arange(len(result["sparsities"]))
    for scaling, (color, label) in LOOKS.items():
        for axis, name in ((axes[0, 0], "accuracy"), (axes[0, 1], "first")):
            found = result[f"{scaling}_{name}"]
            axis.plot(places, found.mean(0), "-", color=color, label=label)
            axis.plot(np.repeat(places[None], len(found), 0).ravel(), found.ravel(), "o", ms=3, color=color)
    axes[0, 0].axhline(0.1, color="#7f7f7f", linewidth=0.8, linestyle=":")
    axes[0, 0].set(ylim=(0, 1), ylabel="test accuracy", title="trained by SGD")
    axes[0, 1].set(ylabel="share kept of the first layer", title="why")
    axes[0, 1].set_yscale("symlog", linthresh=1e-4)
    for axis in axes[0]:
        axis.set_xticks(places, [f"{100 * float(s):g} %" for s in result["sparsities"]])
        axis.set_xlabel("weights removed")
    style.legend_above(figure, axes[:1, :1], columns=2)
    return figure
