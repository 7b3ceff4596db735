"""Real minibatch SGD, many runs at once, and its variants."""

from sgdsde.ensemble.run import run_ensemble, run_ensembles
from sgdsde.ensemble.variants import SVAG, NoisyGradient

__all__ = ["SVAG", "NoisyGradient", "run_ensemble", "run_ensembles"]
