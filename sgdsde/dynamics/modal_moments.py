"""Mean exactly, and of the covariance only the variances of the modes: a closure that costs what its products cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modal_state import ModalMean
from sgdsde.dynamics.moments.modes import Modes, modes_of
from sgdsde.dynamics.moments.state import MomentState, laws, march
from sgdsde.dynamics.moments.variance_jumps import NoFitError, VarianceJumps, jumps_pay
from sgdsde.dynamics.moments.variances import BulkState, Variances
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.noise.example_blocks import times_blocks
from sgdsde.sgd import SGD, StepPlan
from sgdsde.stability.second_moments import largest_eigenvalue
from sgdsde.step import Step

TRUSTED_SHARE = 0.6
"""Of the mean-square limit: below it closures of the variances were within 2 to 5 % in all cases tried."""


STEPS_BEFORE_JUMPS = 32
"""One by one: they hold what decays or alternates too fast for a fit."""


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
    Cost: 6 n c r operations a step for c = 1, times c otherwise; 2 r numbers of state. At a constant setting of plain
        SGD, where it is cheaper, all steps but the first 32 are jumped over at once: 2 n c r^2 + 12 r^3 operations and
        some hundred steps' worth, whatever the horizon, to 1e-6 of the sources (``variance_jumps``). Outputs that share
        a kernel cost what one does. The covariance that a recorded step reports is written out, r^2 numbers.
    Warns:
        ClosureRangeWarning: a learning rate above 0.6 of the limit of the closure.
    Source: derived in docs/derivations.md.
    """

    squared_error_only: ClassVar[bool] = True
    follows_bulk: ClassVar[bool] = True
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
        modes = modes_of(linearization)
        jumps = jumps_pay(modes, sgd, record[-1])
        plan = sgd.plan(modes.n_train, STEPS_BEFORE_JUMPS if jumps else record[-1])
        state = DiagonalState(modes, sgd, plan)
        warn_beyond_range("ModalMoments", sgd, plan, state.limit)
        if not jumps:
            return laws(state, plan, record, "modal moments", progress)
        return self._by_jumps(state, plan, sgd, record, progress)

    @staticmethod
    def _by_jumps(
        state: DiagonalState, plan: StepPlan, sgd: SGD, record: Sequence[int], progress: Progress
    ) -> Iterator[OutputLaw]:
        """The first steps one by one, the others at once, or one by one where their sources have no fit."""
        first, lr = STEPS_BEFORE_JUMPS, float(plan.lr[0])
        wanted = [k for k in record if k < first]
        for k in march(state, [*wanted, first], "modal moments, first steps"):
            if k < first:
                yield state.law(k, k * lr)
        late = [k for k in record if k >= first]
        jumps = state.jumps(record[-1] - first)
        if jumps is None:
            state.follow(sgd.plan(state.modes.n_train, record[-1]))
            for k in march(state, late, "modal moments", progress, first=first):
                yield state.law(k, k * lr)
            return
        for k in late:
            yield state.law_after(jumps, k - first, step=k, time=k * lr)


class DiagonalState(MomentState):
    """Means [r, k] and the covariance of (e, u) in every mode by itself."""

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan) -> None:
        self.modes, self._sgd, self._plan = modes, sgd, plan
        self.mean, self._variances = ModalMean(modes, sgd), Variances(modes.values)
        self.bulk = BulkState.of(modes, sgd, plan)

    @property
    def ee(self) -> Tensor:
        """Variances of the residual, [r]."""
        return self._variances.ee

    def law(self, step: int, time: float) -> OutputLaw:
        law = self.modes.law(step, time, self.mean.e, self.ee.diag(), weight_factor=self.mean.weight_factor)
        return law if self.bulk is None else self.bulk.law(law)

    def jumps(self, horizon: int) -> VarianceJumps | None:
        """From here on; None where the steps must be made one by one."""
        modes, sgd, mean = self.modes, self._sgd, self.mean
        try:
            return VarianceJumps(modes, sgd, mean=mean, variances=self.ee, bulk=self.bulk, horizon=horizon)
        except NoFitError:
            return None

    def law_after(self, jumps: VarianceJumps, k: int, *, step: int, time: float) -> OutputLaw:
        """The law k steps after the start of the jumps."""
        variances, of_bulk = jumps.variances(k)
        law = self.modes.law(step, time, jumps.mean(k), variances.diag(), weight_factor=jumps.weight_factor(k))
        return law if self.bulk is None else self.bulk.law(law, of_bulk)

    def follow(self, plan: StepPlan) -> None:
        """Goes on along this plan."""
        self._plan = plan
        if self.bulk is not None:
            self.bulk.follow(plan)

    def advance(self, k: int) -> None:
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
        modal = step.modal(self.modes.drift)
        self._variances.advance(modal, self._noise(k))
        if self.bulk is not None:
            self.bulk.advance(k, step)
        self.mean.advance(step, modal)

    def _noise(self, k: int) -> Tensor:
        """Variance of one step's gradient in every mode, [r]."""
        modes, factor = self.modes, self._plan.noise_factor(k)
        h, n = modes.drift, modes.n_train
        noise = torch.zeros_like(h)
        if factor:
            blocks = modes.mean_blocks(self.mean.e) + self.to_blocks(self.ee)
            if self.bulk is not None:
                blocks = blocks + self.bulk.blocks()
                self.bulk.see(blocks)
            noise = factor * h.square() * (n * self.from_blocks(blocks) - self.mean.e.square().sum(1) - self.ee)
        if self._sgd.label_noise_std:
            variance = modes.n_columns * self._sgd.label_noise_std**2 / int(self._plan.batch_size[k])
            noise = noise + h.square() * (n * variance)
        return noise

    def to_blocks(self, variances: Tensor) -> Tensor:
        """sum_i s_i u_a,i u_a,i^T, [n, c, c]."""
        if self.modes.n_outputs == 1:
            return (self._squares @ variances).view(-1, 1, 1)
        rows = self.modes.examples.by_example
        return (rows * variances) @ rows.mT

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """sum_a u_a,i^T D_a u_a,i, [r]."""
        if self.modes.n_outputs == 1:
            return self._squares.mT @ blocks.flatten()
        vectors = self.modes.vectors
        return (times_blocks(blocks, vectors) * vectors).sum(0)

    @cached_property
    def _squares(self) -> Tensor:
        """u_a,i^2, [n, r], of one output."""
        return self.modes.vectors.square()

    def limit(self, noise: float) -> float:
        """The largest learning rate of plain SGD at phi/B = noise below which these variances stay bounded."""
        h, n = self.modes.drift, self.modes.n_train
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
    if noise == 0:
        return  # whole batches: nothing is left out
    share = float(plan.lr.max()) / (1 - sgd.momentum) / limit(noise)
    if share > TRUSTED_SHARE:
        warnings.warn(
            f"lr is {share:.2f} of the mean-square limit as {name} sees it, above {TRUSTED_SHARE}: its losses may be "
            "off by more than 5 %; use MomentRecursion() or ReducedMoments()",
            ClosureRangeWarning,
            stacklevel=4,
        )
