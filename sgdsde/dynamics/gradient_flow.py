"""Full-batch gradient flow: the prediction of infinite-width theory, without any noise of minibatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD


@dataclass(frozen=True)
class GradientFlow(Dynamics):
    """e(t) = exp(-H t) e_0 at t = the sum of the learning rates; with decay H + wd and its fixed point.

    Exactness: exact for lr -> 0 at fixed t on a model linear in its parameters; no batch size enters.
    Cost: n numbers a recorded step after one eigendecomposition.
    """

    squared_error_only: ClassVar[bool] = True

    @property
    def noise_source(self) -> NoiseSource | None:
        return "none"

    def noise_assumption(self, sgd: SGD) -> str:
        return "no minibatch noise, steps of length zero"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        if sgd.momentum:
            raise self.refuse(f"momentum={sgd.momentum}", "dynamics.GradientDescent()")
        modes = Modes.of(linearization)
        times = sgd.plan(modes.n_train, record[-1]).times
        rate = (modes.drift + sgd.weight_decay)[:, None]
        level = -sgd.weight_decay * modes.decay_offset() / rate if sgd.weight_decay else torch.zeros_like(rate)
        for step in record:
            mean = level + torch.exp(-rate * times[step]) * (modes.start - level)
            factor = float(torch.exp(torch.tensor(-sgd.weight_decay * times[step], dtype=torch.float64)))
            yield modes.law(step, times[step], mean, weight_factor=factor)
