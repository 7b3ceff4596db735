"""Predict what minibatch SGD will do to the loss of a network, before training it.

The pipeline, one noun a stage:

    Problem, SGD  ->  linearize  ->  predict (a dynamics)  ->  Trajectory
                                     run_ensemble          ->  Trajectory  ->  compare  ->  Comparison

Conventions, the same everywhere:

    n, c, d = n c   training examples, outputs; flattened sample-major, entry i*c + a
    loss            what the torch module passed by the user returns on the whole set, L = (1/n) sum_i l_i
    K = J J^T       the kernel: no 1/n, no 1/c
    H = s K / n     drift of the residual e = f - y under squared error, s = 2/c for nn.MSELoss()
    step, time      step k counts updates; time is the sum of the learning rates of the steps before
    Sigma           covariance of the per-example gradients, divisor n; a minibatch gradient has (phi/B) Sigma with
                    phi = 1 with replacement and (n - B)/(n - 1) without
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sgdsde._version import __version__

if TYPE_CHECKING:
    from sgdsde import cleaning, datasets, dynamics, meanfield, networks, pruning, regimes, sampling, stability
    from sgdsde._checkpoint import CheckpointWarning
    from sgdsde.answering import answer
    from sgdsde.bands import AccuracyBand, LossBand, OutputBand
    from sgdsde.budget import ErrorBudget, error_budget
    from sgdsde.comparison import Comparison, CurveComparison, Verdict, compare
    from sgdsde.cost import ExpectedCost, expected_cost
    from sgdsde.diagnosis import Diagnosis, diagnose
    from sgdsde.ensemble import SVAG, NoisyGradient, run_ensemble, run_ensembles
    from sgdsde.frozen_kernel import FrozenKernelWarning
    from sgdsde.kernel import empirical_ntk
    from sgdsde.linearization import Linearization, linearize
    from sgdsde.measurement import MeasurementWarning, measure
    from sgdsde.prediction import predict
    from sgdsde.prediction_sweep import predict_many
    from sgdsde.problem import Problem
    from sgdsde.questions import (
        ChosenLR,
        ScalingRule,
        SpreadOverRuns,
        StepsTo,
        choose_lr,
        scaling_rule,
        spread_over_runs,
        steps_to,
    )
    from sgdsde.sgd import SGD
    from sgdsde.stability import UnstableWarning
    from sgdsde.stored_results import ResultsWarning, open_results
    from sgdsde.surface import EnsembleSurface, SurfaceWarning
    from sgdsde.sweeps import LimitFraction, Sweep, sweep
    from sgdsde.trajectory import Trajectory

__all__ = [
    "SGD",
    "SVAG",
    "AccuracyBand",
    "CheckpointWarning",
    "ChosenLR",
    "Comparison",
    "CurveComparison",
    "Diagnosis",
    "EnsembleSurface",
    "ErrorBudget",
    "ExpectedCost",
    "FrozenKernelWarning",
    "LimitFraction",
    "Linearization",
    "LossBand",
    "MeasurementWarning",
    "NoisyGradient",
    "OutputBand",
    "Problem",
    "ResultsWarning",
    "ScalingRule",
    "SpreadOverRuns",
    "StepsTo",
    "SurfaceWarning",
    "Sweep",
    "Trajectory",
    "UnstableWarning",
    "Verdict",
    "__version__",
    "answer",
    "choose_lr",
    "cleaning",
    "compare",
    "datasets",
    "diagnose",
    "dynamics",
    "empirical_ntk",
    "error_budget",
    "expected_cost",
    "linearize",
    "meanfield",
    "measure",
    "networks",
    "open_results",
    "predict",
    "predict_many",
    "pruning",
    "regimes",
    "run_ensemble",
    "run_ensembles",
    "sampling",
    "scaling_rule",
    "spread_over_runs",
    "stability",
    "steps_to",
    "sweep",
]

# Where each name above is defined; imported when it is first asked for, so that `sgdsde --help` needs no torch.
# No name may be that of a module of the package: an import of the module would hide it.
_HOMES = {
    "AccuracyBand": "bands",
    "CheckpointWarning": "_checkpoint",
    "ChosenLR": "questions",
    "Comparison": "comparison",
    "CurveComparison": "comparison",
    "Diagnosis": "diagnosis",
    "EnsembleSurface": "surface",
    "ErrorBudget": "budget",
    "ExpectedCost": "cost",
    "FrozenKernelWarning": "frozen_kernel",
    "LimitFraction": "sweeps",
    "Linearization": "linearization",
    "LossBand": "bands",
    "MeasurementWarning": "measurement",
    "NoisyGradient": "ensemble",
    "OutputBand": "bands",
    "Problem": "problem",
    "ResultsWarning": "stored_results",
    "SGD": "sgd",
    "SVAG": "ensemble",
    "ScalingRule": "questions",
    "SpreadOverRuns": "questions",
    "StepsTo": "questions",
    "SurfaceWarning": "surface",
    "Sweep": "sweeps",
    "Trajectory": "trajectory",
    "UnstableWarning": "stability",
    "Verdict": "comparison",
    "answer": "answering",
    "choose_lr": "questions",
    "compare": "comparison",
    "diagnose": "diagnosis",
    "empirical_ntk": "kernel",
    "error_budget": "budget",
    "expected_cost": "cost",
    "linearize": "linearization",
    "measure": "measurement",
    "open_results": "stored_results",
    "predict": "prediction",
    "predict_many": "prediction_sweep",
    "run_ensemble": "ensemble",
    "run_ensembles": "ensemble",
    "scaling_rule": "questions",
    "spread_over_runs": "questions",
    "steps_to": "questions",
    "sweep": "sweeps",
}


if not TYPE_CHECKING:  # a type checker that saw it would accept every name

    def __getattr__(name: str) -> object:
        """The public object or the module of this name."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        module = f"{__name__}.{name}"
        if not name.startswith("_"):
            try:
                return importlib.import_module(module)
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
