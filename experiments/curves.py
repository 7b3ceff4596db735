"""Loss curves of a trajectory as arrays."""

from __future__ import annotations

import numpy as np

import sgdsde


def band(trajectory: sgdsde.Trajectory, side: str) -> sgdsde.LossBand:
    """The loss of one side, which must be there."""
    found = trajectory.train_loss if side == "train" else trajectory.test_loss
    assert found is not None
    return found


def samples(trajectory: sgdsde.Trajectory, side: str) -> np.ndarray:
    """The loss of every run, [n_runs, T]."""
    losses = band(trajectory, side).samples
    assert losses is not None
    return np.asarray(losses.numpy())
