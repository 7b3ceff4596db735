"""Mean and covariance under the stochastic differential equation of SGD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from sgdsde._checks import complaint, positive_number
from sgdsde._types import Progress
from sgdsde.dynamics.continuous.flow import Flow
from sgdsde.dynamics.continuous.momentum_flow import MomentumFlow
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD


@dataclass(frozen=True)
class MomentEquations(Dynamics):
    """The second moments of the stochastic differential equation of SGD, which close under squared error:

        dm/dt = -(G m + wd b)                 of order 2: G and wd b multiplied by I + (lr/2) G
        dS/dt = -(G S + S G) + lr Q(S + m m^T)
        Q(M)  = (phi/B) K (s^2/n D(M) - s^2/n^2 M) K + (s^2 v / (n B)) K^2,     G = H + wd

    with m the mean and S the covariance of e = f - y, v the variance of fresh label noise, b = J theta_0 - e_0. The
    noise depends on the state and vanishes with it. With momentum the equation is one for residual and buffer
    (``continuous.momentum_flow``).

    Args:
        order: of the weak error against SGD. 1: the usual equation, off by O(lr) at a given time. 2: the drift modified
            by (lr/2) grad (grad L . grad L) / 2, off by O(lr^2). Of E e e^T, at a fixed time: a noise floor is itself
            O(lr), and there order 2 has a larger relative error O(lr) than order 1 (docs/derivations.md).
        rtol: estimated error of each adaptive panel, relative to the covariance that it adds.
    Exactness: exact moments of the stated equation to rtol, for a model linear in its parameters; i.i.d. batches,
        weight decay, label noise, schedules (piecewise constant in time).
    Cost: one forcing (2 products [d, r] x [r, r]) for each of 6 nodes and 5 to 15 sweeps a panel, 80 r^2 numbers.
        Panels are as long as the slowest mode that still matters allows, whatever the fast ones: 1000 to 5000 forcings
        for 10^5 steps at rank 128. A schedule starts a panel at each change: where it changes at every step,
        MomentRecursion is cheaper.
    Source: Li, Tai, E, arXiv:1511.06251.
    """

    order: Literal[2, 1] = 2
    rtol: float = 1e-7

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(complaint("order", "2 or 1", self.order))
        check_rtol(self.rtol)

    squared_error_only: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def noise_assumption(self, sgd: SGD) -> str:
        return f"a diffusion that matches SGD to order {self.order} in the learning rate"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        modes = Modes.of(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        flow = (MomentumFlow if sgd.momentum else Flow)(modes, sgd, plan, self.order, noise="state")
        return flow.evolve(record, rtol=self.rtol, progress=progress)


def check_rtol(rtol: float) -> None:
    if positive_number("rtol", rtol) < 1e-12:
        raise ValueError(complaint("rtol", "at least 1e-12", rtol, "float64 has no more digits"))
