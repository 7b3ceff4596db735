"""Mean and covariance under the stochastic differential equation of SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.continuous.collocation import Collocation
from sgdsde.dynamics.continuous.momentum_flow import MomentumFlow
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moment_recursion import GradientNoise
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class MomentEquations(Dynamics):
    """The second moments of the stochastic differential equation of SGD, which close under squared error:

        dm/dt = -(G m + wd b)                 of order 2: G and wd b multiplied by I + (lr/2) G
        dS/dt = -(G S + S G) + lr Q(S + m m^T)
        Q(M)  = (phi/B) K (s^2/n D(M) - s^2/n^2 M) K + (s^2 v / (n B)) K^2,     G = H + wd

    with m the mean and S the covariance of e = f - y, v the variance of fresh label noise, b = J theta_0 - e_0. The
    noise depends on the state and vanishes with it. With momentum the equation is one for residual and buffer
    (``momentum_equations``).

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

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.sampling == "shuffled":
            raise self.refuse("shuffled epochs", "MomentRecursion, or an i.i.d. sampling")
        modes = Modes(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        if sgd.momentum:
            return MomentumFlow(modes, sgd, plan, self.order).evolve(record, rtol=self.rtol, progress=progress)
        flow = Flow(modes, sgd, plan, self.order)
        return flow.evolve(record, feedback=True, rtol=self.rtol, progress=progress)


def check_rtol(rtol: float) -> None:
    if positive_number("rtol", rtol) < 1e-12:
        raise ValueError(complaint("rtol", "at least 1e-12", rtol, "float64 has no more digits"))


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of steps with constant learning rate and batch size.

    Attributes:
        rate: eigenvalues of the drift, [r]. weight_rate: the same for theta_0's share of the weights.
        mean, weight_factor: at the segment's start.
    """

    start: int
    stop: int
    lr: float
    rate: Tensor
    weight_rate: float
    mean: Tensor
    weight_factor: float


class Flow:
    """The mean in closed form, m = level + exp(-rate t) (m_0 - level), and the covariance around it by collocation.

    Attributes:
        level: where the mean goes, [r]: zero without weight decay.
    """

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan, order: int) -> None:
        self._modes, self._sgd, self._plan, self._order = modes, sgd, plan, order
        self._times = plan.times
        self._gradient = modes.drift + sgd.weight_decay
        self.level = torch.zeros_like(modes.start)
        if sgd.weight_decay:
            self.level = -sgd.weight_decay * modes.decay_offset() / self._gradient

    def segments(self) -> Iterator[Segment]:
        """Every stretch up to the end of the plan."""
        mean, factor = self._modes.start, 1.0
        for start, stop in self._plan.segments(0, len(self._plan)):
            lr, decay = float(self._plan.lr[start]), self._sgd.weight_decay
            correction = lr / 2 if self._order == 2 else 0.0
            rate = self._gradient * (1 + correction * self._gradient)
            segment = Segment(start, stop, lr, rate, decay * (1 + correction * decay), mean, factor)
            yield segment
            mean, factor = self.mean(segment, lr * (stop - start)), self.weight_factor(segment, lr * (stop - start))

    def mean(self, segment: Segment, time: float) -> Tensor:
        """m [r] after ``time`` in the segment."""
        return self.level + torch.exp(-segment.rate * time) * (segment.mean - self.level)

    def weight_factor(self, segment: Segment, time: float) -> float:
        """The share of theta_0 that weight decay has left."""
        decayed = torch.exp(torch.tensor(-segment.weight_rate * time, dtype=torch.float64))
        return segment.weight_factor * float(decayed)

    def law(self, segment: Segment, step: int, covariance: Tensor) -> OutputLaw:
        """The law of the outputs at a step of the segment."""
        time = segment.lr * (step - segment.start)
        factor, mean = self.weight_factor(segment, time), self.mean(segment, time)
        return self._modes.law(step, self._times[step], mean, covariance, weight_factor=factor)

    def step_noise(self, segment: Segment, noise: GradientNoise, covariance: Tensor | None, mean: Tensor) -> Tensor:
        """Covariance of one step's gradient, [r, r]: Q(S + m m^T)."""
        batch = noise(covariance, mean, self._plan.noise_factor(segment.start))
        if self._sgd.label_noise_std:
            return noise.add_labels(batch, self._sgd.label_noise_std**2, int(self._plan.batch_size[segment.start]))
        return torch.zeros(len(mean), len(mean)).to(mean) if batch is None else batch

    def evolve(
        self, record: Sequence[int], *, feedback: bool, rtol: float, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        """One law a recorded step; without ``feedback`` the noise follows the mean only."""
        modes, noise, wanted = self._modes, GradientNoise(self._modes), set(record)
        covariance = torch.zeros(len(modes.start), len(modes.start)).to(modes.start)
        if 0 in wanted:
            yield modes.law(0, 0.0, modes.start, covariance)
        ticks = ticker(progress, record[-1], "moment equations")
        for segment in self.segments():
            forcing = self._forcing(segment, noise, feedback)
            nodes = 6 if feedback else 10
            rates = segment.rate[:, None] + segment.rate
            solver = Collocation(rates, forcing, feedback=feedback, rtol=rtol, n_nodes=nodes)
            steps = [k for k in range(segment.start + 1, segment.stop + 1) if k in wanted or k == segment.stop]
            durations = [segment.lr * (k - segment.start) for k in steps]
            first = 1 / max(float(rates.max()), torch.finfo(rates.dtype).tiny)  # a kernel of zero has no rate
            for step, reached in zip(steps, solver.run(covariance, durations, first)):
                if step in wanted:
                    yield self.law(segment, step, reached)
            covariance = reached
            ticks.update(segment.stop - segment.start)
        ticks.close()

    def _forcing(self, segment: Segment, noise: GradientNoise, feedback: bool) -> Callable[[float, Tensor], Tensor]:
        def forcing(time: float, covariance: Tensor) -> Tensor:
            state = covariance if feedback else None
            return segment.lr * self.step_noise(segment, noise, state, self.mean(segment, time))

        return forcing
