"""The predictions that a figure compares, by the names that ``paper_figs.style.LOOKS`` draws them under."""

from __future__ import annotations

from sgdsde import dynamics
from sgdsde.dynamics import Dynamics

RTOL = 1e-4
"""Error of a panel of the solvers, relative to the covariance that it adds: far below the width of a line."""


def predictors() -> dict[str, Dynamics]:
    """Every dynamics that is drawn against the measured loss, coarsest first."""
    return {
        "GradientFlow": dynamics.GradientFlow(),
        "GradientDescent": dynamics.GradientDescent(),
        "OrnsteinUhlenbeck(init)": dynamics.OrnsteinUhlenbeck(freeze="init"),
        "OrnsteinUhlenbeck(mean_path)": dynamics.OrnsteinUhlenbeck(freeze="mean_path", rtol=RTOL),
        "MomentEquations(1)": dynamics.MomentEquations(order=1, rtol=RTOL),
        "MomentEquations(2)": dynamics.MomentEquations(order=2, rtol=RTOL),
        "SDEPaths": dynamics.SDEPaths(n_paths=500),
        "MomentRecursion": dynamics.MomentRecursion(),
    }
