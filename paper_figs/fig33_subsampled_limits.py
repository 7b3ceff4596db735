"""The full-batch limit on the learning rate from a few examples.

Paper: Hayou, arXiv:1708.03551, for the bias; Lawley (1956) for its correction.
Figure: none of theirs.
Claim: relative error of the limit 2 / l_1 that m examples give, mean over draws, bars two standard errors: digits
centered by one number (a), Gaussian features of 64 dimensions with equal eigenvalues (b) and with i^-0.7 (c). Raw,
the limit is too low: safe. Lawley's correction takes most of that away where the largest eigenvalue is separated and
changes nothing where it is not; being a reciprocal, the corrected limit is still one to three percent too high on
digits. Linear shrinkage is right for a flat spectrum and makes the limit too high for a decaying one, on digits too;
the analytical estimator does so in (c) and not on digits. Estimates of the sharpness from 50 digits as the package
makes them, with their standard errors, 20 draws (d); crosses: raw.
Refuted by: Lawley that does not halve the raw error on digits at m = 10 and 20; linear shrinkage that helps there;
standard errors that are not those of the estimates.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOOKS = {
    "raw": ("#7f7f7f", "s-", "raw"),
    "Lawley": ("#cc3311", "o-", "Lawley"),
    "LedoitWolf": ("#0173b2", "^--", "Ledoit-Wolf"),
    "AnalyticalNonlinear": ("#56b4e9", "v-.", "analytical"),
}


def claims(result: Result) -> dict[str, float]:
    at = {name: k for k, name in enumerate(result["methods"].tolist())}
    digits = np.abs(result["digits"][0])
    z = (result["package"][:, 0] - 1) / result["package"][:, 1]
    largest = result["model_sizes"].tolist().index(64)
    return {
        "lawley_over_raw_at_10": float(digits[0, at["Lawley"]] / digits[0, at["raw"]]),
        "lawley_over_raw_at_20": float(digits[1, at["Lawley"]] / digits[1, at["raw"]]),
        "ledoit_wolf_over_raw_at_20": float(digits[1, at["LedoitWolf"]] / digits[1, at["raw"]]),
        "flat_raw": float(result["flat"][0, largest, at["raw"]]),
        "flat_ledoit_wolf": float(result["flat"][0, largest, at["LedoitWolf"]]),
        "decaying_lawley": float(result["decaying"][0, largest, at["Lawley"]]),
        "decaying_ledoit_wolf": float(result["decaying"][0, largest, at["LedoitWolf"]]),
        "package_largest_error": float(np.abs(result["package"][:, 0] - 1).max()),
        "package_rms_z": float(np.sqrt((z**2).mean())),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 2, height=5.2)
    panels = [("digits", "sizes", "digits"), ("flat", "model_sizes", "equal eigenvalues")]
    panels.append(("decaying", "model_sizes", r"eigenvalues $i^{-0.7}$"))
    for axis, (key, sizes, title) in zip(axes.flat, panels):
        for k, name in enumerate(result["methods"].tolist()):
            color, line, label = LOOKS[name]
            mean, error = result[key][:, :, k]
            axis.errorbar(result[sizes], 100 * mean, 200 * error, fmt=line, color=color, markersize=4, label=label)
        axis.axhline(0, color="#202020", linewidth=0.8)
        axis.set(xscale="log", xlabel="examples $m$", ylabel="error of the limit (%)", title=title)
        axis.set_xticks(result[sizes], [str(m) for m in result[sizes]])
        axis.xaxis.minorticks_off()
    axes[0, 0].legend(fontsize="x-small")
    axis, found = axes[1, 1], result["package"]
    draws = np.arange(len(found))
    axis.errorbar(draws, found[:, 0], found[:, 1], fmt="o", color="#cc3311", markersize=3.5, label="estimate, one s.e.")
    axis.plot(draws, found[:, 2], "x", color="#7f7f7f", markersize=4, label="raw")
    axis.axhline(1, color="#202020", linewidth=0.8)
    axis.set(xlabel="draw", ylabel="sharpness over the true one", title="digits, 50 examples")
    axis.legend(fontsize="x-small")
    return figure
