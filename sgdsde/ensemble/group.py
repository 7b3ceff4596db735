"""Runs that are held at once, of one SGD or of several with the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.ensemble.batches import Draws, blocks_of
from sgdsde.ensemble.layout import Layout
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.rates import Rates, of_members
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.stepper import part
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Variant
from sgdsde.sgd import SGD, StepPlan


class RunGroup:
    """Runs with weights and buffers of their own: members s * n_runs + j is run j of SGD s.

    Args:
        sgds, plans: with the same words (``rates.same_words``), each plan that of the variant's substeps.
        streams: the draws of the runs, the same for every SGD. layout: of as many members.
    """

    def __init__(
        self,
        learner: RealLearner | LinearizedLearner,
        sgds: Sequence[SGD],
        plans: Sequence[StepPlan],
        *,
        variant: Variant,
        streams: RunStreams,
        layout: Layout,
    ) -> None:
        self.n_runs, self.n_members = len(streams.runs), len(streams.runs) * len(sgds)
        self._learner, self._substeps, self._layout = learner, variant.substeps, layout
        self._state = learner.start(self.n_members)
        self._buffer = self._state
        if sgds[0].momentum:
            self._buffer = {name: torch.zeros_like(value) for name, value in self._state.items()}
        like = next(iter(self._state.values()))
        self._rates = Rates(sgds, plans, self.n_runs, like)
        self._draws = Draws(variant, plans[0], streams, sgds[0], learner.problem)
        self._runs = torch.arange(self.n_runs, device=like.device).repeat(len(sgds))
        noise = [sgd.label_noise_std for sgd in sgds]
        self._noise_std = torch.tensor(noise, dtype=like.dtype, device=like.device).repeat_interleave(self.n_runs)

    def outputs(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Members stepped together, and their outputs at all train and test examples, [members, n, c]."""
        for members in self._blocks():
            yield members, *self._learner.all_outputs(_of(self._state, members))

    def advance(self, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Take these steps of SGD, stretch by stretch; yields step numbers [K] and, for each, numbers [K, members].

        The numbers are finite where the losses before the step are. With substeps a step comes several times.
        """
        k, substeps = steps.start * self._substeps, self._substeps
        while k < steps.stop * substeps:
            count = self._draws.ahead(steps.stop * substeps - k, self._layout.ahead)
            drawn, updates = self._draws.take(count), self._rates.updates(range(k, k + count))
            alone = self.n_members <= self._layout.together
            losses = [
                self._learner.advance(
                    _of(self._state, members),
                    _of(self._buffer, members),
                    drawn.of(self._runs[members], self._noise_std[members]),
                    updates if alone else [of_members(update, members) for update in updates],
                )
                for members in self._blocks()
            ]
            yield torch.arange(k, k + count) // substeps, torch.cat(losses, dim=1)
            k += count

    def _blocks(self) -> Iterator[slice]:
        return blocks_of(self.n_members, self._layout.together)


def _of(state: Params, members: slice) -> Params:
    return part(state, members.start, members.stop)
