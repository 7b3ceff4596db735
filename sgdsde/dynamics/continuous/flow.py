"""Moments of a linear stochastic differential equation: the mean in closed form, the covariance by collocation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.continuous.collocation import Collocation
from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modal_state import StepNoise
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True, eq=False)
class Segment:
    """A stretch of steps with constant learning rate and batch size.

    Attributes:
        rate: eigenvalues of the drift, [r]. weight_rate: the same for theta_0's share of the weights.
        mean [r, k], weight_factor: at the segment's start.
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
        level: where the mean goes, [r, k]: zero without weight decay.
    """

    def __init__(self, modes: Modes, sgd: SGD, plan: StepPlan, order: int, *, noise: NoiseSource) -> None:
        self._modes, self._sgd, self._plan, self._order = modes, sgd, plan, order
        self._times, self._source, self._noise = plan.times, noise, StepNoise(modes, sgd, plan, noise)
        self._gradient = modes.drift + sgd.weight_decay
        self.level = torch.zeros_like(modes.start)
        if sgd.weight_decay:
            self.level = -sgd.weight_decay * modes.decay_offset() / self._gradient[:, None]

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
        """m [r, k] after ``time`` in the segment."""
        return self.level + torch.exp(-segment.rate * time)[:, None] * (segment.mean - self.level)

    def weight_factor(self, segment: Segment, time: float) -> float:
        """The share of theta_0 that weight decay has left."""
        decayed = torch.exp(torch.tensor(-segment.weight_rate * time, dtype=torch.float64))
        return segment.weight_factor * float(decayed)

    def law(self, segment: Segment, step: int, covariance: Tensor) -> OutputLaw:
        """The law of the outputs at a step of the segment."""
        time = segment.lr * (step - segment.start)
        factor, mean = self.weight_factor(segment, time), self.mean(segment, time)
        return self._modes.law(step, self._times[step], mean, covariance, weight_factor=factor)

    def step_noise(self, segment: Segment, covariance: Tensor, mean: Tensor) -> Tensor:
        """Covariance of one step's gradient, [r, r]."""
        noise = self._noise(segment.start, covariance, mean)
        return torch.zeros_like(covariance) if noise is None else noise

    def evolve(self, record: Sequence[int], *, rtol: float, progress: Progress = None) -> Iterator[OutputLaw]:
        """One law a recorded step."""
        modes, wanted, feedback = self._modes, set(record), self._source == "state"
        covariance = torch.zeros(len(modes.start), len(modes.start)).to(modes.start)
        if 0 in wanted:
            yield modes.law(0, 0.0, modes.start, covariance)
        ticks = ticker(progress, record[-1], "moment equations")
        for segment in self.segments():
            forcing = self._forcing(segment)
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

    def _forcing(self, segment: Segment) -> Callable[[float, Tensor], Tensor]:
        def forcing(time: float, covariance: Tensor) -> Tensor:
            return segment.lr * self.step_noise(segment, covariance, self.mean(segment, time))

        return forcing
