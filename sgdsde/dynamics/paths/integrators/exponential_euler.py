"""Exact drift, noise in between: for stiff kernels under squared error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgdsde._checks import whole_number
from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.paths.integrators.integrator import Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.dynamics.paths.integrators.modal_outputs import ModalOutputs
from sgdsde.losses import SquaredError
from sgdsde.noise import noise_direction


@dataclass(frozen=True)
class ExponentialEuler(Integrator):
    """Sample paths of the SDE under squared error whose drift is integrated exactly: half of it, the noise, half of it.

        a = exp(-H dt/2) e;   a' = a - sqrt(phi lr dt / B) K v(s a);   e' = exp(-H dt/2) a',      dt = lr / substeps

    with v as in ``EulerMaruyama``. The mean is that of the SDE at any step size, fast modes cannot blow up, and the
    error of the spread is O(lr^2) already at one substep.

    Args:
        substeps: steps to a step of SGD.
    Exactness: mean exact; weak order 1 in dt with a constant of the order of lr (see docs/derivations.md).
    Cost: two products [P, d] x [d, r] a substep; 20 P d numbers.
    """

    substeps: int = 1
    noise_source: ClassVar[NoiseSource | None] = "state"

    def __post_init__(self) -> None:
        object.__setattr__(self, "substeps", whole_number("substeps", self.substeps, minimum=1))

    def check(self, setup: PathSetup) -> None:
        check_plain_squared_error(self, setup)

    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        return _ModalPaths(self.substeps, setup, len(paths), draws)


def check_plain_squared_error(integrator: Integrator, setup: PathSetup) -> None:
    """Refuses what a drift that is integrated exactly does not have."""
    alternative = "EulerMaruyama()"
    if not isinstance(setup.linearization.problem.criterion, SquaredError):
        loss = type(setup.linearization.problem.loss).__name__
        raise integrator.refuse(f"{loss}, whose drift bends", alternative, setup)
    sgd = setup.sgd
    if sgd.momentum or sgd.weight_decay or sgd.label_noise_std:
        raise integrator.refuse("momentum, weight decay or label noise", alternative, setup)
    if setup.displacement is not None:
        raise integrator.refuse("an Ito term", alternative, setup)


class _ModalPaths(PathGroup):
    """State: coordinates of e in the eigenbasis of K, [P, r]."""

    def __init__(self, substeps: int, setup: PathSetup, n_paths: int, draws: Draws) -> None:
        self._substeps, self._setup, self._draws = substeps, setup, draws
        self._modes = setup.once("modes", lambda: Modes.of(setup.linearization))
        self._coordinates = self._modes.start.mT.expand(n_paths, -1).clone()
        self._outputs, modes = ModalOutputs(self._modes), self._modes
        self._fixed = modes.residual(torch.zeros_like(modes.start))[:, 0]

    def advance(self, start: int, stop: int) -> None:
        modes, plan, n = self._modes, self._setup.plan, self._modes.n_train
        for k in range(start, stop):
            lr = float(plan.lr[k])
            dt, factor = lr / self._substeps, plan.noise_factor(k)
            half = torch.exp(-modes.drift * (dt / 2))
            for _ in range(self._substeps):
                middle = self._coordinates * half
                if factor:
                    residual = (middle @ modes.vectors.mT + self._fixed).view(len(middle), n, -1)
                    v = noise_direction(modes.loss_curvature * residual, self._draws.normal("sde paths", n))
                    push = (v.flatten(1) @ modes.vectors) * modes.values
                    middle = middle - math.sqrt(factor * lr * dt) * push
                self._coordinates = middle * half

    def outputs(self, step: int) -> Outputs:
        return self._outputs.of(self._coordinates)
