"""Mean exactly, and of the covariance only the variances of the modes: a closure that costs what its products cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modal_state import ModalMean
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import MomentState, laws
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.noise.example_blocks import times_blocks
from sgdsde.sgd import SGD, StepPlan
from sgdsde.stability.second_moments import largest_eigenvalue
from sgdsde.step import ModalStep, Step

TRUSTED_SHARE = 0.6
"""Of the mean-square limit: below it closures of the variances were within 2 to 5 % in all cases tried."""


class ClosureRangeWarning(UserWarning):
    """The learning rate is too near to the stability limit for a closure of variances; the message says how near."""


@dataclass(frozen=True)
class ModalMoments(Dynamics):
    """The mean m of SGD exactly, and the diagonal s of its covariance in the eigenbasis of K, as if it had no more:

        s_i' = (1 - lr (h_i + wd))^2 s_i + lr^2 q h_i^2 (n sum_a (u_a,i^T D_a u_a,i) - m_i^2 - s_i) + label noise,
        D_a = e_a e_a^T + sum_i s_i u_a,i u_a,i^T,    e = U m + f,

    q = phi/B, u_a,i in R^c the entries of eigenvector i at example a, f the immovable residual. Momentum carries the
    2 x 2 covariance of (e, u) in every mode.

    Exactness: the mean is exact; off-diagonal covariances are left out. On digits the expected loss was within
        0.2 % at a quarter and 1 % at half of the mean-square limit (256 images; 48 images: 5 % at half), 11 % at 0.8.
    Cost: 6 n c r operations a step for c = 1, times c otherwise; 2 r numbers of state. The covariance that a recorded
        step reports is written out, r^2 numbers.
    Warns:
        ClosureRangeWarning: a learning rate above 0.6 of the limit of the closure.
    Source: derived in docs/derivations.md.
    """

    squared_error_only: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def noise_assumption(self, sgd: SGD) -> str:
        return "different modes of the kernel are uncorrelated"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        modes = Modes.of(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        state = DiagonalState(modes, sgd, plan)
        warn_beyond_range("ModalMoments", sgd, plan, state.limit)
        return laws(state, plan, record, "modal moments", progress)


class DiagonalState(MomentState):
    """Means [r, 1] and the covariance of (e, u) in every mode by itself: [r] each."""

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan) -> None:
        self._modes, self._sgd, self._plan = modes, sgd, plan
        self._mean = ModalMean(modes, sgd)
        self.ee, self.eu, self.uu = (torch.zeros_like(modes.values) for _ in range(3))

    def law(self, step: int, time: float) -> OutputLaw:
        return self._modes.law(step, time, self._mean.e, self.ee.diag(), weight_factor=self._mean.weight_factor)

    def advance(self, k: int) -> None:
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
        modal = step.modal(self._modes.drift)
        self._spread(modal, self._noise(k))
        self._mean.advance(step, modal)

    def _noise(self, k: int) -> Tensor:
        """Variance of one step's gradient in every mode, [r]."""
        modes, factor = self._modes, self._plan.noise_factor(k)
        h, n, mean = modes.drift, modes.n_train, self._mean.e[:, 0]
        noise = torch.zeros_like(h)
        if factor:
            blocks = modes.mean_blocks(self._mean.e) + self.to_blocks(self.ee)
            noise = factor * h.square() * (n * self.from_blocks(blocks) - mean.square() - self.ee)
        if self._sgd.label_noise_std:
            noise = noise + h.square() * (n * self._sgd.label_noise_std**2 / int(self._plan.batch_size[k]))
        return noise

    def to_blocks(self, variances: Tensor) -> Tensor:
        """sum_i s_i u_a,i u_a,i^T, [n, c, c]."""
        rows = self._modes.examples.by_example
        return (rows * variances) @ rows.mT

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """sum_a u_a,i^T D_a u_a,i, [r]."""
        vectors = self._modes.vectors
        return (times_blocks(blocks, vectors) * vectors).sum(0)

    def _spread(self, step: ModalStep, noise: Tensor) -> None:
        a, b, p, q = step.ee, step.eu, step.ue, step.uu
        ee, eu, uu = self.ee, self.eu, self.uu
        self.ee = a * a * ee + 2 * a * b * eu + b * b * uu + step.e_gain**2 * noise
        self.eu = a * p * ee + (a * q + b * p) * eu + b * q * uu + step.e_gain * step.u_gain * noise
        self.uu = p * p * ee + 2 * p * q * eu + q * q * uu + step.u_gain**2 * noise

    def limit(self, noise: float) -> float:
        """The largest learning rate of plain SGD at phi/B = noise below which these variances stay bounded."""
        h, n = self._modes.drift, self._modes.n_train
        root = (h / 2).sqrt()

        def ratio(column: Tensor) -> Tensor:
            x = column.flatten()
            pushed = n * self.from_blocks(self.to_blocks(root * x))
            return ((1 - noise) * h / 2 * x + noise * root * pushed)[:, None]

        return 1 / largest_eigenvalue(ratio, (len(h), 1), h)


def warn_beyond_range(name: str, sgd: SGD, plan: StepPlan, limit: object) -> None:
    """Warns of a learning rate beyond ``TRUSTED_SHARE`` of a closure's own limit, momentum as lr / (1 - momentum)."""
    if not len(plan) or not callable(limit):
        return
    noise = plan.noise_factor(int(plan.batch_size.argmin()))
    share = float(plan.lr.max()) / (1 - sgd.momentum) / limit(noise)
    if share > TRUSTED_SHARE:
        warnings.warn(
            f"lr is {share:.2f} of the mean-square limit as {name} sees it, above {TRUSTED_SHARE}: its losses may be "
            "off by more than 5 %; use MomentRecursion() or ReducedMoments()",
            ClosureRangeWarning,
            stacklevel=4,
        )
