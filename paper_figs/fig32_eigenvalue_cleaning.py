"""Cleaned eigenvalues: what a prior gains inside and loses outside.

Paper: Hayou, arXiv:1708.02985, whose network and training set are not reproduced; this autoencoder is the package's
own.
Figure: none of theirs.
Claim: correlation matrices of dimension 30, 300 fresh ones a law, m Gaussian samples each. Mean of sum (lhat - l)^2 /
p against the true eigenvalues, bars two standard errors: factor models, the prior of one autoencoder (a), power-law
spectra (b), Toeplitz matrices (c), inverse Wishart matrices (d), the identity (e). The autoencoder trained on factor
models is several times better than RIE inside its prior and worse on the identity and the inverse Wishart law;
trained on six laws it is good on all of them. Bias of the largest eigenvalue, factor models (f). RIE and the
shrinkers aim at the oracle values u^T C u and are scored against the true ones here.
Refuted by: an autoencoder that is not twice as good as RIE on factor models at m <= 20; one that does not lose
outside.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.result import Result
from paper_figs import style

LOOKS = {
    "sample": ("#7f7f7f", "-", "sample"),
    "LedoitWolf": ("#0173b2", "--", "Ledoit-Wolf"),
    "AnalyticalNonlinear": ("#56b4e9", "-.", "analytical"),
    "RIE": ("#de8f05", "-", "RIE"),
    "factor prior": ("#cc3311", "o-", "autoencoder, factor prior"),
    "mixed prior": ("#009988", "s-", "autoencoder, mixed prior"),
    "oracle": ("#202020", ":", r"oracle $u^T C u$"),
}
TITLES = {
    "factor": "factor models",
    "power": r"eigenvalues $i^{-1.2}$",
    "toeplitz": "Toeplitz",
    "inverse_wishart": "inverse Wishart",
    "identity": "identity",
}


def claims(result: Result) -> dict[str, float]:
    at = {name: k for k, name in enumerate(result["methods"].tolist())}
    law = {name: i for i, name in enumerate(result["laws"].tolist())}
    error, gap = result["error"], result["rie_less_autoencoder"]
    ratio = error[..., at["RIE"]] / error[..., at["factor prior"]]
    return {
        "gain_inside_at_half": float(ratio[law["factor"], 0]),
        "gain_inside_at_two_thirds": float(ratio[law["factor"], 1]),
        "gain_in_standard_errors": float(gap[law["factor"], 0, 0] / gap[law["factor"], 0, 1]),
        "loss_on_the_identity": float(1 / ratio[law["identity"], 3]),
        "loss_on_inverse_wishart": float(1 / ratio[law["inverse_wishart"], 3]),
        "top_bias_of_the_sample": float(result["top"][law["factor"], 0, at["sample"]]),
        "top_bias_inside": float(abs(result["top"][law["factor"], 0, at["factor prior"]])),
        "frobenius_against_analytical": float(
            result["frobenius"][law["factor"], 1, at["factor prior"]]
            / np.nanmin(result["frobenius"][law["factor"], 1, [at["AnalyticalNonlinear"], at["LedoitWolf"]]])
        ),
    }


def draw(result: Result) -> Figure:
    figure, axes = style.panels(2, 3, height=5.2)
    methods = result["methods"].tolist()
    for i, (axis, law) in enumerate(zip(axes.flat, result["laws"].tolist())):
        for name, (color, line, label) in LOOKS.items():
            k = methods.index(name)
            error, bars = result["error"][i, :, k], 2 * result["standard_error"][i, :, k]
            shown = np.where(error > 1e-6, error, np.nan)
            axis.errorbar(result["sizes"], shown, bars, fmt=line, color=color, markersize=3, linewidth=1.2, label=label)
        axis.set(yscale="log", xlabel="samples $m$", title=TITLES[law])
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis = axes[1, 2]
    for name, (color, line, label) in LOOKS.items():
        axis.plot(
            result["sizes"], result["top"][0, :, methods.index(name)], line, color=color, markersize=3, label=label
        )
    axis.axhline(0, color="#7f7f7f", linewidth=0.8)
    axis.set(xlabel="samples $m$", title="bias of the largest")
    for axis in axes[:, 0]:
        axis.set_ylabel("mean squared error")
    style.legend_above(figure, axes[:1, :1], columns=4)
    return figure
