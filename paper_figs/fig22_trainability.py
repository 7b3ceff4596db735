"""Whether deep pruned networks train.

Paper: Hayou, Ton, Doucet and Teh, arXiv:2002.08797 (rescaling); Tanaka et al., arXiv:2006.05467 (extreme sparsity).
Figure: after their comparisons of test accuracy with and without rescaling, on digits and MNIST.
Claim: test accuracy of deep networks pruned at 90 % and trained by Adam, without rescaling and rescaled to the edge of
chaos by layer or by neuron (a): it helps tanh after SNIP and ReLU after Magnitude; after SNIP on deep ReLU, whose masks
know which units are active, it does not, because its assumption fails. MNIST, eight tanh layers, 99.9 % (b): SNIP
leaves not one path and stays at chance, SynFlow trains, rescaled a little better on average. Bars: mean, dots: seeds.
Refuted by: rescaling that does not help tanh, SNIP above chance at 99.9 % on MNIST, or SynFlow at chance.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

NORMALIZERS = {
    "none": ("#7f7f7f", "not rescaled"),
    "layer": ("#de8f05", "by layer"),
    "neuron": ("#0173b2", "by neuron"),
}
SETTINGS = {"tanh_snip": "tanh\nSNIP", "relu_magnitude": "ReLU\nMagnitude", "relu_snip": "ReLU\nSNIP"}
EXTREME = {"mnist_snip": "SNIP", "mnist_synflow": "SynFlow"}


def claims(result: Result) -> dict[str, float]:
    numbers = {}
    for name in SETTINGS:
        found = result[name].mean(0)
        numbers[f"{name}_gain"] = float(found[-1] - found[0])
    if "mnist_snip" in result:
        numbers["mnist_snip_accuracy"] = float(result["mnist_snip"][:, 0].max())
        numbers["mnist_snip_live"] = float(result["mnist_snip_live"].max())
        numbers["mnist_synflow_rescaled"] = float(result["mnist_synflow"][:, 1].min())
        numbers["mnist_synflow_gain"] = float(np.diff(result["mnist_synflow"].mean(0))[0])
    return numbers


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=3.2)
    bars(axes[0, 0], [result[name] for name in SETTINGS], list(SETTINGS.values()), list(NORMALIZERS))
    axes[0, 0].set(ylabel="test accuracy", title="digits, 90 % removed")
    if "mnist_snip" in result:
        bars(axes[0, 1], [result[name] for name in EXTREME], list(EXTREME.values()), ["none", "neuron"])
        axes[0, 1].set(title="MNIST, 99.9 % removed")
    else:
        axes[0, 1].set_axis_off()
    style.legend_above(figure, axes[:1, :1], columns=3)
    return figure


def bars(axis: Axes, groups: list[np.ndarray], names: list[str], normalizers: list[str]) -> None:
    """Accuracies [seed, normalizer] of each group side by side."""
    width = 0.8 / len(normalizers)
    for column, normalizer in enumerate(normalizers):
        color, label = NORMALIZERS[normalizer]
        at = np.arange(len(groups)) + (column - (len(normalizers) - 1) / 2) * width
        axis.bar(at, [group[:, column].mean() for group in groups], 0.9 * width, color=color, label=label, alpha=0.75)
        for place, group in zip(at, groups):
            axis.plot(np.full(len(group), place), group[:, column], "o", ms=3, color="#202020")
    axis.axhline(0.1, color="#7f7f7f", linewidth=0.8, linestyle=":")
    axis.set(ylim=(0, 1))
    axis.set_xticks(np.arange(len(groups)), names)
