"""
Reproduce a figure of a paper, then change it
=============================================

Every figure of this project is two files: ``experiments/figNN_name.py`` computes arrays, ``paper_figs/figNN_name.py``
draws them and says in its docstring which paper it follows and what would refute it. Here fig11 is redrawn, the edge of
chaos of Hayou, Doucet and Rousseau (arXiv:1902.06853), and then a curve is added that is not in it.

The usual way is ``make fig11_edge_of_chaos SCALE=smoke``. This is the same by hand.
"""

# %%
# Compute
# -------
# The experiment returns arrays by name. At smoke scale it takes seconds, at laptop scale minutes.
from experiments import fig11_edge_of_chaos as experiment
from paper_figs import fig11_edge_of_chaos as drawing


def quiet(label):
    """In place of a progress bar: hands a sequence on as it is."""
    return lambda items: items


arrays = experiment.run("smoke", quiet)
print(sorted(arrays)[:6], "...")

# %%
# Draw, and hold the numbers to what is expected
# ----------------------------------------------
# ``claims`` are the numbers that the figure stands for; ``paper_figs/expected.json`` holds the interval of each, and
# says where it comes from. ``make`` refuses a figure one of whose numbers lies outside.
import json
from pathlib import Path

from paper_figs import style
from paper_figs.frame import EXPECTED, complaints, expectation

claims = drawing.claims(arrays)
print(json.dumps({name: round(float(value), 6) for name, value in claims.items()}, indent=1))
print("outside:", complaints(claims, expectation(Path(EXPECTED), "fig11_edge_of_chaos", "smoke")))
style.apply()  # the look that all figures share
figure = drawing.draw(arrays)

# %%
# Change it
# ---------
# What if the activation is one that the papers do not have? Any function of torch will do; kinks are found, and the
# integrals are made by quadrature to 1e-9. Here a SiLU three times as steep, between SiLU and ReLU.
import torch

from sgdsde import meanfield


def steep_silu(x):
    return x * torch.sigmoid(3 * x)


q = torch.logspace(-2, 1.5, 40, dtype=torch.float64)
added = meanfield.edge_of_chaos_curve(meanfield.Activation(steep_silu), q)
figure = drawing.draw(arrays)
panel = figure.axes[0]
panel.plot(added.sigma_b, added.sigma_w, color="black", linewidth=2, label="SiLU, 3 times as steep")
panel.legend(ncols=2, loc="lower right", fontsize="x-small")

# %%
# Where does it start?
# --------------------
# The black curve gives for every bias the weights that neither freeze nor scramble a deep network. At a bias of 0.5:
edge = meanfield.edge_of_chaos(meanfield.Activation(steep_silu), 0.5)
print(f"sigma_w = {edge.sigma_w:.4f}, variance of the preactivations {edge.q:.4f}, stable: {edge.is_stable}")

# %%
# To keep such a figure, copy the two files under a new number and change them there: the page :doc:`/extend` says
# what they must hold. ``make`` finds them by their names.
