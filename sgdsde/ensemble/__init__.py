"""Real minibatch SGD, many runs at once."""

from sgdsde.ensemble.run import run_ensemble

__all__ = ["run_ensemble"]
