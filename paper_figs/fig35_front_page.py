"""The loss of minibatch SGD: measured, predicted before training, and as gradient flow would have it.

Paper: none; the first panel of fig01 with what a reader needs first.
Figure: none.
Claim: the prediction, made from the network at initialization, follows the mean of the real runs (64 at laptop scale)
within 3 % or 3 standard errors while the loss is above a tenth of its start; gradient flow, which ignores minibatches,
is off by a third there. ReLU network of width 1024 on 512 digits, batches of 8, half of the largest learning rate that
is stable in mean square. Band: from the 5 % to the 95 % quantile of the runs. Below the dotted line, a tenth of the
first loss, nothing is claimed.
Refuted by: a recorded step above a tenth of the first loss at which the prediction is off by more than 3 % and by more
than 3 standard errors of the real runs, or gradient flow doing as well there.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from experiments.result import Result
from paper_figs import style
from paper_figs.fig01_loss_prediction import TENTH, agreement_with_real, claimed, error, measured, predicted

EXPERIMENT = "fig01_loss_prediction"
PANEL = "digits_8"


def claims(result: Result) -> dict[str, float]:
    flow = error(result, PANEL, "train", "GradientFlow")[claimed(result, PANEL, "train")]
    return {
        "disagreement": agreement_with_real(result, PANEL, "train", "MomentRecursion"),
        "gradient_flow_error": float(np.abs(flow).max()),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 1, height=3.4)
    axis, steps, runs = axes[0, 0], result[f"{PANEL}_steps"], measured(result, PANEL, "train")
    low, high = np.quantile(runs, (0.05, 0.95), axis=0)
    label = f"measured: {len(runs)} runs, mean and 90 % band"
    style.band(axis, steps, runs.mean(0), "measured", low=low, high=high, label=label, linewidth=2.5)
    recursion, flow = (predicted(result, PANEL, "train", name) for name in ("MomentRecursion", "GradientFlow"))
    style.curve(axis, steps, recursion, "MomentRecursion", label="predicted before training", linewidth=2)
    style.curve(axis, steps, flow, "GradientFlow", label="gradient flow, without minibatch noise")
    axis.axhline(TENTH * runs.mean(0)[0], color="#7f7f7f", linestyle=":", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1, linscale=0.3)
    axis.set_yscale("log")
    axis.set_xticks([tick for tick in (0, 1, 10, 100, 1000) if tick < steps[-1]] + [int(steps[-1])])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set(xlim=(0, steps[-1]), xlabel="step of SGD", ylabel="training loss")
    axis.legend(loc="lower left")
    return figure
