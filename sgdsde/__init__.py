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

from sgdsde import datasets, dynamics, meanfield, networks, sampling, stability
from sgdsde._version import __version__
from sgdsde.budget import ErrorBudget, error_budget
from sgdsde.comparison import Comparison, CurveComparison, Verdict, compare
from sgdsde.diagnosis import Diagnosis, diagnose
from sgdsde.ensemble import SVAG, NoisyGradient, run_ensemble
from sgdsde.kernel import empirical_ntk
from sgdsde.linearization import Linearization, linearize
from sgdsde.prediction import predict
from sgdsde.prediction_sweep import predict_many
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability import UnstableWarning
from sgdsde.trajectory import AccuracyBand, LossBand, OutputBand, Trajectory

__all__ = [
    "SGD",
    "SVAG",
    "AccuracyBand",
    "Comparison",
    "CurveComparison",
    "Diagnosis",
    "ErrorBudget",
    "Linearization",
    "LossBand",
    "NoisyGradient",
    "OutputBand",
    "Problem",
    "Trajectory",
    "UnstableWarning",
    "Verdict",
    "__version__",
    "compare",
    "datasets",
    "diagnose",
    "dynamics",
    "empirical_ntk",
    "error_budget",
    "linearize",
    "meanfield",
    "networks",
    "predict",
    "predict_many",
    "run_ensemble",
    "sampling",
    "stability",
]
