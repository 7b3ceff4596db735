"""Outputs of sample paths from their coordinates in the eigenbasis of the kernel."""

from __future__ import annotations

from torch import Tensor

from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.paths.integrators.integrator import Outputs


class ModalOutputs:
    """f = f_0 + U (a - a_0) and f_test = f_test,0 + K(test, train) U diag(1/l) (a - a_0) of every path."""

    def __init__(self, modes: Modes) -> None:
        self._modes, cross = modes, modes.linearization.cross_kernel
        self._test_factor = None if cross is None else (cross @ modes.vectors) * modes.inverse_values

    def of(self, coordinates: Tensor) -> Outputs:
        """Train outputs [P, n, c] and test outputs [P, m, c] or None, at coordinates [P, r]."""
        modes, one = self._modes, self._modes.linearization
        moved, n_paths = coordinates - modes.start.mT, len(coordinates)
        train = one.outputs + (moved @ modes.vectors.mT).view(n_paths, *one.outputs.shape)
        if self._test_factor is None:
            return train, None
        assert one.test_outputs is not None
        return train, one.test_outputs + (moved @ self._test_factor.mT).view(n_paths, *one.test_outputs.shape)
