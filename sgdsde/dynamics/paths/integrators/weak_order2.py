"""A method of weak order 2 for noise that depends on the state: four products a step, whatever the number of noises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.paths.integrators.exponential_euler import check_plain_squared_error
from sgdsde.dynamics.paths.integrators.integrator import Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.dynamics.paths.integrators.modal_outputs import ModalOutputs


@dataclass(frozen=True)
class WeakOrder2(Integrator):
    """Sample paths of the SDE under squared error: half of the drift, noise of weak order 2, half of the drift.

        a = exp(-H dt/2) e,      N(x) a = -s sqrt(phi lr dt / (B n)) K ((x - mean x) a),      x, z ~ N(0, I_n)
        a' = a + N(x) a + (N(x) N(x) a - sum_k N_k N_k a - (N(x) N(z) a - N(z) N(x) a) / sqrt(2)) / 2
        e' = exp(-H dt/2) a',                                                                   dt = lr / substeps

    The noise is linear in the state, so its double Ito integrals need no matrix of random numbers: x and z have the
    moments of them that count.

    Args:
        substeps: steps to a step of SGD.
    Exactness: mean exact; weak order 2 in dt for the SDE, measured in laws/test_weak_order_of_the_integrators.py.
    Cost: four products [P, d] x [d, d] a substep; 12 P d numbers and 4 d^2. Where the learning rate changes, two
        products d^3.
    Source: Talay, Tubaro, Stochastic Analysis and Applications 8 (1990) 483; Kloeden, Platen, Numerical Solution of
        Stochastic Differential Equations, section 14.2, here with the antisymmetric two-point variables replaced by
        (x_j z_k - z_j x_k) / sqrt(2).
    """

    substeps: int = 1
    noise_source: ClassVar[NoiseSource | None] = "state"

    def __post_init__(self) -> None:
        object.__setattr__(self, "substeps", whole_number("substeps", self.substeps, minimum=1))

    def check(self, setup: PathSetup) -> None:
        check_plain_squared_error(self, setup)

    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        return _SecondOrderPaths(self.substeps, setup, len(paths), draws)


class _SecondOrderPaths(PathGroup):
    """State: e before the drift over ``pending``, [P, d]. Neighbouring halves of the drift are one product."""

    def __init__(self, substeps: int, setup: PathSetup, n_paths: int, draws: Draws) -> None:
        self._substeps, self._setup, self._draws = substeps, setup, draws
        self._modes = modes = setup.once("modes", lambda: Modes.of(setup.linearization))
        self._matrices = setup.once("weak order 2", lambda: _Matrices(modes))
        self._state = setup.linearization.residual.flatten().repeat(n_paths, 1)
        self._pending = 0.0
        self._outputs = ModalOutputs(modes)

    def advance(self, start: int, stop: int) -> None:
        plan = self._setup.plan
        for k in range(start, stop):
            lr = float(plan.lr[k])
            dt, factor = lr / self._substeps, plan.noise_factor(k)
            for _ in range(self._substeps):
                self._pending += dt / 2
                if factor:
                    self._step(factor * lr * dt)
                self._pending += dt / 2

    def _step(self, variance: float) -> None:
        """The pending drift and the noise of one step, lr phi dt / B its variance."""
        modes, d = self._modes, self._state.shape[1]
        scale = -modes.loss_curvature * math.sqrt(variance / modes.n_train)
        both = self._state @ self._matrices.drift(self._pending)
        a, squares = both[:, :d], both[:, d:]
        numbers = self._draws.normal("sde paths", 2, modes.n_train)
        numbers.sub_(numbers.mean(2, keepdim=True)).mul_(scale)
        x, z = numbers.unbind(1)
        if modes.n_outputs > 1:
            x, z = (one.repeat_interleave(modes.n_outputs, 1) for one in (x, z))
        pushed = a.new_empty(2, *a.shape)
        first = torch.mul(x, a, out=pushed[0])
        torch.mul(z, a, out=pushed[1])
        one, other = pushed.flatten(0, 1).mm(self._matrices.kernel).chunk(2)  # N(x) a and N(z) a
        other.div_(-math.sqrt(2)).add_(one)
        second = other.mul_(x).addcmul_(one, z, value=1 / math.sqrt(2)).sub_(squares, alpha=scale**2)
        self._state = torch.addmm(a, first.add_(second, alpha=0.5), self._matrices.kernel)
        self._pending = 0.0

    def outputs(self, step: int) -> Outputs:
        return self._outputs.of(self._state @ self._modes.vectors * torch.exp(-self._modes.drift * self._pending))


class _Matrices:
    """K, and the products of a state before its drift; those of the last length are kept."""

    def __init__(self, modes: Modes) -> None:
        self._modes, n = modes, modes.n_train
        self.kernel = (modes.vectors * modes.values) @ modes.vectors.mT
        same = torch.eye(n, dtype=self.kernel.dtype, device=self.kernel.device)
        same = same.repeat_interleave(modes.n_outputs, 0).repeat_interleave(modes.n_outputs, 1)
        self._squares = self.kernel * same.sub_(1 / n)
        self._time, self._drift = math.nan, self.kernel

    def drift(self, time: float) -> Tensor:
        """exp(-H t) and exp(-H t) (K o P) beside each other, P the centring of examples, [d, 2 d]."""
        if time != self._time:
            moved = self._modes.vectors * torch.expm1(-self._modes.drift * time)
            drift = torch.addmm(torch.eye(len(moved)).to(moved), moved, self._modes.vectors.mT)
            self._drift, self._time = torch.cat([drift, drift @ self._squares], 1), time
        return self._drift
