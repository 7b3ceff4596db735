"""Mean and covariance under a stochastic differential equation of SGD with momentum.

Momentum gives the noise of successive steps a memory, so the equation is one for z = (e, u), residual and buffer. Per
step (k is the time here) torch's update is z' = G z + nu (wd b + noise), 2 x 2 for each mode. The equation is

    dz = L (z - z*) dk + D^{1/2} dW,      order 1: L = G - I,    D = nu nu^T (x) Q
                                          order 2: L = log G,    int_0^1 e^{L s} D e^{L^T s} ds = nu nu^T (x) Q

with z* = (-wd b / (h + wd), 0) and Q the covariance of one step's gradient. Of order 1 it is the Euler scheme read
backwards. Of order 2 the flow of one step is G itself and, for a constant Q, so is its noise: what is left is the
change of Q within a step. log G is real while no eigenvalue of G is negative; a step that flips a mode has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modal_state import StepNoise
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import ModalStep, Step

_NODES = 16
_PAIRS_AT_ONCE = 2**16


@dataclass(frozen=True, eq=False)
class Generator:
    """L [r, 2, 2] of every mode, and D in units of Q: three arrays [r, r] (ee, eu, uu)."""

    drift: Tensor
    diffusion: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def of(cls, step: ModalStep, order: int) -> Generator:
        """Raises: ValueError: a step that no continuous flow makes (order 2)."""
        r = len(step.ee)
        transition, source = step.matrices, step.gains
        if order == 1:
            square = torch.outer(source, source)
            ones = step.ee.new_ones(r, r)
            return cls(
                transition - torch.eye(2).to(transition),
                (square[0, 0] * ones, square[0, 1] * ones, square[1, 1] * ones),
            )
        drift = real_logarithm(transition)
        return cls(drift, _matched_diffusion(drift, torch.kron(source, source)))


def real_logarithm(matrices: Tensor) -> Tensor:
    """log G for real 2 x 2 matrices [r, 2, 2] with positive or complex eigenvalues.

    With half trace m and x = 1 - det/m^2, eigenvalues m (1 +- sqrt x): log G = a I + b G, b m = atanh(sqrt x)/sqrt x,
    a = log(det)/2 - b m; for x < 0 the arcus tangens, on the branch of the angle in (0, pi).
    """
    m = matrices.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    determinant = torch.linalg.det(matrices)
    gap = m.square() - determinant
    if ((gap >= 0) & (m <= 0)).any() or (determinant <= 0).any():
        raise ValueError(
            "lr must be small enough for a continuous flow of second order, got a step that flips the sign of a mode; "
            "use MomentEquations(order=1) or MomentRecursion"
        )
    root = gap.abs().sqrt()
    small = root < 1e-4 * m.abs()
    safe = torch.where(small, 1.0, root)
    series = (1 + gap / (3 * m.square())) / m
    real = torch.atanh((root / m).clamp(max=1 - 1e-16)) / safe
    turning = torch.atan2(root, m) / safe
    b = torch.where(small, series, torch.where(gap > 0, real, turning))
    a = determinant.log() / 2 - b * m
    return a[:, None, None] * torch.eye(2).to(matrices) + b[:, None, None] * matrices


def _matched_diffusion(drift: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """D_ij with int_0^1 e^{L_i s} D_ij e^{L_j^T s} ds = nu nu^T, by Gauss-Legendre quadrature in s."""
    r = len(drift)
    points, weights = np.polynomial.legendre.leggauss(_NODES)
    flows = torch.stack([torch.linalg.matrix_exp(drift * ((y + 1) / 2)) for y in points])
    weighted = flows * torch.from_numpy(weights / 2).to(flows)[:, None, None, None]
    result = drift.new_empty(r, r, 4)
    rows = max(1, _PAIRS_AT_ONCE // r)
    for i in range(0, r, rows):
        integral = torch.einsum("qiab,qjcd->ijacbd", weighted[:, i : i + rows], flows).reshape(-1, r, 4, 4)
        result[i : i + rows] = torch.linalg.solve(integral, source.expand(*integral.shape[:2], 4))
    return result[..., 0], result[..., 1], result[..., 3]


def _units(state: Tensor, r: int) -> np.ndarray:
    """Size of each component of the state, so that the tolerance does not depend on the units of the outputs."""
    mean = float(state[3 * r * r : -2].abs().max())
    covariance = max(float(state[: 3 * r * r].abs().max()), mean**2)
    return np.repeat([covariance or 1.0, mean or 1.0, 1.0], [3 * r * r, 2 * r, 2])


class MomentumFlow:
    """The moments of z along a plan, segment by segment of constant learning rate and batch size.

    Noise that is taken at the start or along the mean gives a Gaussian process.
    """

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan, order: int, *, noise: NoiseSource) -> None:
        self._modes, self._sgd, self._plan, self._order = modes, sgd, plan, order
        self._noise = StepNoise(modes, sgd, plan, noise)
        self._level = torch.zeros_like(modes.start)
        if sgd.weight_decay:
            self._level = -sgd.weight_decay * modes.decay_offset() / (modes.drift + sgd.weight_decay)[:, None]

    def evolve(self, record: Sequence[int], *, rtol: float, progress: Progress = None) -> Iterator[OutputLaw]:
        """One law a recorded step. Cost: one forcing (2 products) an evaluation of an explicit 8th-order method, which
        takes some ten evaluations for every few steps of SGD; about 30 r^2 numbers."""
        r, times = len(self._modes.start), self._plan.times
        state = torch.zeros(3 * r * r + 2 * r + 2, dtype=torch.float64)
        state[-2] = 1.0
        state[-2 - 2 * r : -2 - r] = self._modes.start[:, 0].double().cpu()
        if record[0] == 0:
            yield self._law(0, 0.0, state)
        ticks = ticker(progress, record[-1], "moment equations with momentum")
        for start, stop in self._segments(record[-1]):
            steps = [k for k in record if start < k < stop]
            found = solve_ivp(
                self._slope(start),
                (start, stop),
                state.numpy(),
                method="DOP853",
                t_eval=[*steps, stop],
                rtol=rtol,
                atol=rtol * _units(state, r),
            )
            if not found.success:
                raise ArithmeticError(f"the moment equations could not be integrated: {found.message}")
            for step, column in zip([*steps, stop], found.y.T):
                if step in record:
                    yield self._law(step, times[step], torch.from_numpy(column.copy()))
            state = torch.from_numpy(found.y[:, -1].copy())
            ticks.update(stop - start)
        ticks.close()

    def _segments(self, n_steps: int) -> list[tuple[int, int]]:
        if self._sgd.dampening == 0 or n_steps < 2:
            return self._plan.segments(0, n_steps)
        return [*self._plan.segments(0, 1), *self._plan.segments(1, n_steps)]

    def _slope(self, start: int) -> Callable[[float, np.ndarray], np.ndarray]:
        lr, first = float(self._plan.lr[start]), start == 0
        modes, sgd, r = self._modes, self._sgd, len(self._modes.start)
        step = Step.of(sgd, lr, first=first)
        generator = Generator.of(step.modal(modes.drift), self._order)
        still = step.modal(modes.drift.new_zeros(1))
        weights = Generator.of(still, 1).drift[0]
        if sgd.weight_decay and self._order == 2:
            weights = real_logarithm(still.matrices)[0]
        ee, eu, ue, uu = (generator.drift[:, i, j] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))

        def slope(_: float, flat: np.ndarray) -> np.ndarray:
            S, m_e, m_u, weight = self._unpack(torch.from_numpy(flat), r)
            s_ee, s_eu, s_uu = S
            batch = self._noise(start, s_ee, m_e[:, None])
            d_ee = ee[:, None] * s_ee + eu[:, None] * s_eu.mT
            d_eu = ee[:, None] * s_eu + eu[:, None] * s_uu + s_ee * ue + s_eu * uu
            d_uu = ue[:, None] * s_eu + uu[:, None] * s_uu
            changes = [d_ee + d_ee.mT, d_eu, d_uu + d_uu.mT]
            if batch is not None:
                changes = [change + share * batch for change, share in zip(changes, generator.diffusion)]
            shifted = m_e - self._level[:, 0]
            means = [ee * shifted + eu * m_u, ue * shifted + uu * m_u, weights @ weight]
            return torch.cat([part.flatten() for part in [*changes, *means]]).double().cpu().numpy()

        return slope

    def _unpack(self, flat: Tensor, r: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        flat = flat.to(self._modes.start)
        blocks, means = flat[: 3 * r * r].view(3, r, r), flat[3 * r * r :]
        return list(blocks), means[:r], means[r : 2 * r], means[2 * r :]

    def _law(self, step: int, time: float, flat: Tensor) -> OutputLaw:
        blocks, mean, _, weight = self._unpack(flat, len(self._modes.start))
        return self._modes.law(step, time, mean[:, None], blocks[0], weight_factor=float(weight[0]))
