"""Runs that are stepped together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Variant
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step


class RunGroup:
    """Consecutive runs of one SGD, each with its own weights, buffers and draws.

    Args:
        learner: what is trained. plan: of the variant's substeps. streams: the draws of these runs.
    """

    def __init__(
        self,
        learner: RealLearner | LinearizedLearner,
        sgd: SGD,
        variant: Variant,
        plan: StepPlan,
        streams: RunStreams,
    ) -> None:
        self.runs = streams.runs
        self._learner, self._sgd, self._plan, self._substeps = learner, sgd, plan, variant.substeps
        self._state = learner.start(len(self.runs))
        self._buffer = self._state
        if sgd.momentum:
            self._buffer = {name: torch.zeros_like(value) for name, value in self._state.items()}
        self._draws, self._labels = variant.draws(plan, streams), _label_noise(sgd, learner, streams)

    def outputs(self) -> tuple[Tensor, Tensor | None]:
        """Outputs at all train and test examples, [runs, n, c] and [runs, m, c] or None."""
        return self._learner.all_outputs(self._state)

    def advance(self, k: int) -> Tensor:
        """The step k -> k + 1 of every run. Returns numbers [runs], finite where its losses are."""
        loss = torch.zeros(())
        for part in range(self._substeps):
            draw = next(self._draws)
            noise = self._labels(draw.indices) if self._labels is not None else None
            gradient, part_loss = self._learner.gradient(self._state, draw, noise)
            loss = part_loss if part == 0 else loss + part_loss
            self._move(gradient, k * self._substeps + part)
        return loss

    def _move(self, gradient: dict[str, Tensor], step: int) -> None:
        update = Step.of(self._sgd, float(self._plan.lr[step]), first=step == 0)
        for name, value in self._state.items():
            slope = gradient[name]
            if self._sgd.weight_decay:
                slope = update.decayed(slope, self._learner.weights(name, value))
            direction, self._buffer[name] = update.direction(slope, self._buffer[name])
            self._state[name] = value.sub_(direction, alpha=update.lr)


def _label_noise(
    sgd: SGD, learner: RealLearner | LinearizedLearner, streams: RunStreams
) -> Callable[[Tensor], Tensor] | None:
    """Label noise of the next step, [runs, B, c], for its indices [runs, B]."""
    if not sgd.label_noise_std:
        return None
    normal, c = streams.normal("labels"), learner.problem.n_outputs
    return lambda indices: normal(indices.shape[1], c) * sgd.label_noise_std
