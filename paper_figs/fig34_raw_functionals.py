"""Linear functionals of the gradient noise need no cleaning.

Paper: Hayou, arXiv:1708.03551, for what is biased.
Figure: none of theirs.
Claim: noise of single-example gradients of a ReLU network on 400 digits in output space, from m examples, divisor m -
1; mean over 300 subsamples against the covariance of all, bars two standard errors. The trace and the floor tr(H^+
Sigma) are unbiased as they are (a). Eigenvalues need not be: the second is far too large; and linear shrinkage, which
helps a matrix in the mean square, spoils the floor by orders of magnitude, since it lifts directions in which the
outputs hardly move and the floor weighs these most (b, symmetric logarithm).
Refuted by: a trace or floor more than three standard errors from zero at two sizes; a floor that shrinkage leaves
alone.
"""

import numpy as np
from matplotlib.figure import Figure

from experiments.result import Result
from paper_figs import style

LOOKS = {
    "trace": ("#0173b2", "o-", "trace"),
    "floor": ("#de8f05", "s-", r"floor $\mathrm{tr}(H^+\Sigma)$"),
    "floor_shrunk": ("#cc3311", "s--", "floor, shrunk"),
    "largest": ("#202020", "^-", "largest eigenvalue"),
    "second": ("#7f7f7f", "v-", "second eigenvalue"),
}


def claims(result: Result) -> dict[str, float]:
    at = {name: k for k, name in enumerate(result["keys"].tolist())}
    z = np.abs(result["error"] / result["standard_error"])
    return {
        "trace_second_largest_z": float(np.sort(z[:, at["trace"]])[-2]),
        "floor_second_largest_z": float(np.sort(z[:, at["floor"]])[-2]),
        "trace_error": float(np.abs(result["error"][:, at["trace"]]).max()),
        "shrunk_floor_error": float(result["error"][0, at["floor_shrunk"]]),
        "second_eigenvalue_error": float(result["error"][0, at["second"]]),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(1, 2, height=2.9)
    keys = result["keys"].tolist()
    for axis, names in ((axes[0, 0], ("trace", "floor")), (axes[0, 1], ("largest", "second", "floor_shrunk"))):
        for name in names:
            color, line, label = LOOKS[name]
            mean, error = (result[each][:, keys.index(name)] for each in ("error", "standard_error"))
            axis.errorbar(result["sizes"], 100 * mean, 200 * error, fmt=line, color=color, markersize=4, label=label)
        axis.axhline(0, color="#202020", linewidth=0.8)
        axis.set(xscale="log", xlabel="examples $m$", ylabel="error (%)")
        axis.set_xticks(result["sizes"], [str(m) for m in result["sizes"]])
        axis.xaxis.minorticks_off()
        axis.legend(fontsize="x-small")
    axes[0, 1].set_yscale("symlog", linthresh=10)
    axes[0, 1].set_ylim(-30, None)
    axes[0, 1].legend(fontsize="x-small", loc="center right", bbox_to_anchor=(1, 0.62))
    return figure
