"""Runs that are held at once, of one SGD or of several with the same batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.ensemble.batches import Draws, blocks_of
from sgdsde.ensemble.cuda_graphs import Graphs
from sgdsde.ensemble.layout import Layout
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.rates import Rates
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.replays import Block, Replays, Stage, Stretch
from sgdsde.ensemble.stepper import part
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Variant
from sgdsde.sgd import SGD, StepPlan


class RunGroup:
    """Runs with weights and buffers of their own: members s * n_runs + j is run j of SGD s.

    Args:
        sgds, plans: with the same words (``rates.same_words``), each plan that of the variant's substeps.
        streams: the draws of the runs, the same for every SGD. layout: of as many members.
        graphs: records steps, to replay them where there are enough; default none.
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
        graphs: Graphs | None = None,
    ) -> None:
        self.n_runs, self.n_members = len(streams.runs), len(streams.runs) * len(sgds)
        self._learner, self._substeps, self._layout = learner, variant.substeps, layout
        state = learner.start(self.n_members)
        buffer = {name: torch.zeros_like(value) for name, value in state.items()} if sgds[0].momentum else state
        like = next(iter(state.values()))
        self._rates = Rates(sgds, plans, self.n_runs, like)
        beside = 2 * 3 * max(4, like.dtype.itemsize) * self.n_members  # lr, kept and losses
        self._draws = Draws(variant, plans[0], streams, sgds[0], learner.problem, beside=beside)
        runs = torch.arange(self.n_runs, device=like.device).repeat(len(sgds))
        noise = [sgd.label_noise_std for sgd in sgds]
        noise_std = torch.tensor(noise, dtype=like.dtype, device=like.device).repeat_interleave(self.n_runs)
        self._blocks = [
            Block(members, _of(state, members), _of(buffer, members), runs[members], noise_std[members])
            for members in blocks_of(self.n_members, layout.together)
        ]
        self._replays = None if graphs is None else self._recorded(graphs, like.device)

    def outputs(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Members stepped together, and their outputs at all train and test examples, [members, n, c]."""
        for block in self._blocks:
            yield block.members, *self._learner.all_outputs(block.state)

    def advance(self, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """Take these steps of SGD, stretch by stretch; yields step numbers [K] and, for each, numbers [K, members].

        The numbers are finite where the losses before the step are. With substeps a step comes several times.
        """
        k, substeps = steps.start * self._substeps, self._substeps
        while k < steps.stop * substeps:
            count = self._draws.ahead(steps.stop * substeps - k, self._layout.ahead)
            alike = self._draws.alike
            stretch = Stretch(self._draws.take(count), *self._rates.of(range(k, k + count)))
            if self._replays is not None and self._replays.takes(stretch, alike):
                losses = self._replays.advance(stretch)
            else:
                losses = torch.cat([self._step(block, stretch) for block in self._blocks], dim=1)
            yield torch.arange(k, k + count) // substeps, losses
            k += count

    def _step(self, block: Block, stretch: Stretch) -> Tensor:
        """Take the steps of one block; the losses before them, [K, members]."""
        rates = stretch.lr[:, block.members], None if stretch.kept is None else stretch.kept[:, block.members]
        updates = self._rates.updates(*rates, block.members)
        return self._learner.advance(
            block.state, block.buffer, stretch.batches.of(block.runs, block.noise_std), updates
        )

    def _recorded(self, graphs: Graphs, device: torch.device) -> Replays:
        most = self._draws.most(self._layout.ahead)
        stage = Stage(most, self._draws.examples, self.n_members, device)
        return Replays(self._learner, self._rates, self._blocks, graphs=graphs, stage=stage)


def _of(state: Params, members: slice) -> Params:
    return part(state, members.start, members.stop)
