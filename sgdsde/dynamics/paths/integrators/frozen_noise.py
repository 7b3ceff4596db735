"""Exact Gaussian steps where the noise is frozen at initialization: any step size."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modal_state import StepNoise
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.paths.integrators.exponential_euler import check_plain_squared_error
from sgdsde.dynamics.paths.integrators.integrator import Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.dynamics.paths.integrators.modal_outputs import ModalOutputs
from sgdsde.linearization import Linearization

PANEL, MOST_PANELS = 64, 8
"""Columns of a panel of the triangular root at least, and panels at most."""


@dataclass(frozen=True)
class FrozenNoise(Integrator):
    """Sample paths of ``OrnsteinUhlenbeck("init")``, de = -H e dt + sqrt(phi lr / B) K C(r_0)^{1/2} dW, by exact steps:

        a' = exp(-h t) a + L xi,      (L L^T)_ij = (phi lr / B) Q_ij (1 - exp(-(h_i + h_j) t)) / (h_i + h_j)

    in the eigenbasis a = U^T e of the kernel, where Q = U^T K C(r_0) K U.

    Args:
        stride: steps of SGD to an exact step. None, the default: one from each recorded step, or change of the
            schedule, to the next, so that the paths depend on what is recorded, their law does not.
    Exactness: the exact law of the stated process at any step size; its noise overstates SGD's once the residual falls.
    Cost: a triangular product [P, r] x [r, r] a step, 5/8 of a full one or less from r = 256; for each other length
        of a step about 15 r^3. 2 P r numbers and 2 r^2.
    """

    stride: int | None = None
    noise_source: ClassVar[NoiseSource | None] = "start"

    def __post_init__(self) -> None:
        if self.stride is not None:
            object.__setattr__(self, "stride", whole_number("stride", self.stride, minimum=1))

    def check(self, setup: PathSetup) -> None:
        check_plain_squared_error(self, setup)

    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        return _GaussianPaths(self.stride, setup, len(paths), draws)


class _GaussianPaths(PathGroup):
    """State: coordinates of e in the eigenbasis of K, [P, r]."""

    def __init__(self, stride: int | None, setup: PathSetup, n_paths: int, draws: Draws) -> None:
        self._stride, self._plan, self._draws = stride, setup.plan, draws
        modes = setup.once("modes", lambda: Modes.of(setup.linearization))
        self._steps = setup.once("frozen noise", lambda: _ExactSteps(setup))
        self._coordinates, self._outputs = modes.start.mT.repeat(n_paths, 1), ModalOutputs(modes)

    def advance(self, start: int, stop: int) -> None:
        for first, last in self._plan.segments(start, stop):
            length = last - first if self._stride is None else self._stride
            for k in range(first, last, length):
                decay, root = self._steps.of(k, float(self._plan.lr[k]) * (min(k + length, last) - k))
                self._coordinates.mul_(decay)
                if root is not None:
                    add_triangular(self._coordinates, self._draws.normal("frozen noise", len(root)), root)

    def outputs(self, step: int) -> Outputs:
        return self._outputs.of(self._coordinates)


class _ExactSteps:
    """Factors of exact steps; the last one is kept."""

    def __init__(self, setup: PathSetup) -> None:
        self._plan, self._dtype = setup.plan, setup.linearization.outputs.dtype
        modes = setup.once("modes", lambda: Modes.of(setup.linearization))
        self._modes = modes if modes.start.dtype == torch.float64 else _in_double(setup.linearization)
        self._noise = StepNoise(self._modes, setup.sgd, setup.plan, "start")
        self._known: tuple[tuple[float, float], tuple[Tensor, Tensor | None]] | None = None

    def of(self, k: int, time: float) -> tuple[Tensor, Tensor | None]:
        """exp(-h t), and the transposed root of the covariance that is gained, of the step from k."""
        lr, modes, root = float(self._plan.lr[k]), self._modes, None
        key = (time, lr * self._plan.noise_factor(k))
        if self._known is None or self._known[0] != key:
            noise = self._noise(k, None, modes.start)
            if noise is not None:
                root = triangular_root(gained(lr * noise, modes.drift, time)).to(self._dtype)
            self._known = key, (torch.exp(-modes.drift * time).to(self._dtype), root)
        return self._known[1]


def _in_double(linearization: Linearization) -> Modes:
    """The modes in float64: a root magnifies what rounding does to small eigenvalues."""
    return Modes.of(replace(linearization, outputs=linearization.outputs.double(), basis=linearization.eigenbasis))


def gained(diffusion: Tensor, rate: Tensor, time: float) -> Tensor:
    """int_0^t exp(-h s) D exp(-h s) ds for D [r, r] and h [r]."""
    rates = rate[:, None] + rate
    return diffusion * torch.where(rates > 0, -torch.expm1(-rates * time) / rates, time)


def triangular_root(covariance: Tensor) -> Tensor:
    """Upper triangular T with T^T T = S and no negative number on its diagonal; S may be singular."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    root = torch.linalg.qr(values.clamp(min=0).sqrt()[:, None] * vectors.mT)[1]
    return torch.where(root.diagonal() < 0, -1.0, 1.0).to(root)[:, None] * root


def add_triangular(state: Tensor, numbers: Tensor, root: Tensor) -> None:
    """Add numbers [P, r] times an upper triangular root [r, r] to the state in place, without most of its zeros."""
    size = len(root)
    panels = max(min(MOST_PANELS, size // PANEL), 1)
    edges = [size * i // panels for i in range(panels + 1)]
    for begin, end in itertools.pairwise(edges):
        state[:, begin:end].addmm_(numbers[:, :end], root[:end, begin:end])
