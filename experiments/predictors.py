"""The predictions that a figure compares, by the names that ``paper_figs.style.LOOKS`` draws them under."""

from __future__ import annotations

from sgdsde import dynamics
from sgdsde.dynamics import Dynamics


def predictors() -> dict[str, Dynamics]:
    """Every dynamics that is drawn against the measured loss, coarsest first."""
    return {
        "GradientFlow": dynamics.GradientFlow(),
        "GradientDescent": dynamics.GradientDescent(),
        "OrnsteinUhlenbeck(init)": dynamics.OrnsteinUhlenbeck(freeze="init"),
        "MomentRecursion": dynamics.MomentRecursion(),
    }
