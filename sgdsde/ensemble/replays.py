"""Steps of the runs of a group, recorded once and replayed.

On CUDA launching the small operations of a step one by one takes longer than they do. A recorded step is launched as
one. It must find its batch without being told: a counter on the device says which of those at a fixed place is next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.ensemble.batches import Batches
from sgdsde.ensemble.cuda_graphs import Graphs
from sgdsde.ensemble.inspection import inspected
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.rates import Rates
from sgdsde.ensemble.real import RealLearner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Block:
    """Members of a group that are stepped together.

    Attributes:
        state, buffer: of these members, views that stay where they are. runs: whose batches they draw, [members].
        noise_std: of their label noise, [members].
    """

    members: slice
    state: Params
    buffer: Params
    runs: Tensor
    noise_std: Tensor

    @property
    def first(self) -> Block:
        """The first member alone, a copy."""
        start = self.members.start
        state, buffer = (
            {name: value[:1].clone() for name, value in part.items()} for part in (self.state, self.buffer)
        )
        return Block(slice(start, start + 1), state, buffer, self.runs[:1], self.noise_std[:1])


@dataclass(frozen=True, eq=False)
class Stretch:
    """K consecutive steps of a group with batches of one size, and what their updates do not share, [K, members]."""

    batches: Batches
    lr: Tensor
    kept: Tensor | None

    def __len__(self) -> int:
        return len(self.batches)


class Stage:
    """A stretch at a place that stays the same, the number of the next of its steps, and the losses of those before.

    Args:
        most: steps of a stretch, at most. examples: of a run's batch, at most.
    Memory: that of one stretch and its losses, in use as long as the stage lives.
    """

    def __init__(self, most: int, examples: int, n_members: int, device: torch.device) -> None:
        self.next = torch.zeros(1, dtype=torch.int64, device=device)
        self._most, self._examples, self._n_members = most, examples, n_members
        self._rooms: dict[str, Tensor] = {}

    def load(self, stretch: Stretch) -> Stretch:
        """The stretch of ``most`` steps at that place, of which those given are the first."""
        batches, kept = stretch.batches, stretch.kept
        placed = Batches(
            self._per_example("indices", batches.indices),
            None if batches.weights is None else self._per_example("weights", batches.weights),
            None if batches.label_noise is None else self._per_example("label noise", batches.label_noise),
        )
        lr = self._placed("lr", stretch.lr, self._n_members)
        return Stretch(placed, lr, None if kept is None else self._placed("kept", kept, self._n_members))

    def _per_example(self, name: str, values: Tensor) -> Tensor:
        """[most, runs, B, ...], smaller batches in the memory of larger ones."""
        return self._placed(name, values, values[0].numel() // values.shape[2] * self._examples)

    def _placed(self, name: str, values: Tensor, largest: int) -> Tensor:
        """Room for ``most`` rows like these [K, ...], the first of them filled; ``largest``: numbers of any row."""
        if name not in self._rooms:
            self._rooms[name] = values.new_empty(self._most * largest)
        room = self._rooms[name][: self._most * values[0].numel()].view(self._most, *values.shape[1:])
        room[: len(values)].copy_(values)
        return room

    def write(self, members: slice, losses: Tensor) -> None:
        """Keep the losses [1, members] of the next step, and go on to the one after it."""
        if "losses" not in self._rooms:
            self._rooms["losses"] = losses.new_zeros(self._most, self._n_members)
        self._rooms["losses"][:, members].index_copy_(0, self.next, losses)
        self.next.add_(1)

    def losses(self, n_steps: int) -> Tensor:
        """Of the first steps, [n_steps, members]."""
        return self._rooms["losses"][:n_steps].clone()


@dataclass(eq=False)
class Step:
    """The next step of the stretch on a stage, for one block of members.

    Attributes:
        taken: steps taken so far that were not replayed. replay: takes one, or None as long as none is recorded.
        held: what it reads.
    """

    learner: RealLearner | LinearizedLearner
    rates: Rates
    stage: Stage
    stretch: Stretch
    block: Block
    taken: int = 0
    replay: Callable[[], None] | None = None
    held: Sequence[object] = field(default_factory=list)

    def __call__(self) -> None:
        self.stage.write(self.block.members, self.losses())

    def losses(self) -> Tensor:
        """Take the step; the losses before it, [1, members]. The counter stays."""
        k, block, batches, kept = self.stage.next, self.block, self.stretch.batches, self.stretch.kept
        one = Batches(
            batches.indices.index_select(0, k),
            None if batches.weights is None else batches.weights.index_select(0, k),
            None if batches.label_noise is None else batches.label_noise.index_select(0, k),
        )
        lr = self.stretch.lr[:, block.members].index_select(0, k)
        kept = None if kept is None else kept[:, block.members].index_select(0, k)
        updates = self.rates.updates(lr, kept, block.members)
        return self.learner.advance(block.state, block.buffer, one.of(block.runs, block.noise_std), updates)

    def record(self, graphs: Graphs) -> None:
        """From now on, steps are replayed. A copy of one run is stepped first, twice, to see what a step reads."""
        with graphs.apart():
            self._step_a_copy()  # what the model keeps from one call to the next is there when it is looked for
            self.held = inspected(self._step_a_copy)
        self.replay = graphs.record(self)

    def _step_a_copy(self) -> None:
        replace(self, block=self.block.first).losses()


class Replays:
    """The steps of all blocks of a group, one recorded for each batch size that comes often enough.

    The first steps of a batch size are taken in the ordinary way, at the same places. Where a step cannot be recorded
    (the host waits for the device in it, or whatever torch refuses), this is logged and all further steps are taken so.

    Memory: a stage, within the bytes of the draws that are made ahead; and what one step makes, kept from step to step.
    """

    def __init__(
        self,
        learner: RealLearner | LinearizedLearner,
        rates: Rates,
        blocks: Sequence[Block],
        *,
        graphs: Graphs,
        stage: Stage,
    ) -> None:
        self._learner, self._rates, self._blocks, self._graphs, self._stage = learner, rates, blocks, graphs, stage
        self._steps: dict[tuple[int, bool], list[Step]] = {}
        self._failed = False

    def takes(self, stretch: Stretch, alike: int) -> bool:
        """Whether it takes the steps of this stretch, given how many of its batch size are to come."""
        return not self._failed and (_kind(stretch) in self._steps or alike >= self._graphs.least)

    def advance(self, stretch: Stretch) -> Tensor:
        """Take the steps; the losses before each of them, [K, members]."""
        placed, kind = self._stage.load(stretch), _kind(stretch)
        if kind not in self._steps:
            words = (self._learner, self._rates, self._stage, placed)
            self._steps[kind] = [Step(*words, block) for block in self._blocks]
        for step in self._steps[kind]:
            self._stage.next.zero_()
            self._take(step, len(stretch))
        if self._failed:
            self._steps.clear()
        return self._stage.losses(len(stretch))

    def _take(self, step: Step, n_steps: int) -> None:
        warm = max(0, min(n_steps, self._graphs.warm - step.taken)) if step.replay is None else 0
        if warm:
            with self._graphs.apart():
                for _ in range(warm):
                    step()
            step.taken += warm
        if n_steps > warm and step.replay is None and not self._failed:
            self._record(step)
        take = step if step.replay is None else step.replay
        for _ in range(n_steps - warm):
            take()

    def _record(self, step: Step) -> None:
        try:
            step.record(self._graphs)
        except Exception as error:
            # Torch ends a recording that failed with an error of its own. Words only: an error holds on to tensors.
            reason = repr(error.__context__ or error)
            logger.info("steps are launched one operation at a time, not as a CUDA graph: %s", reason)
            self._failed = True


def _kind(stretch: Stretch) -> tuple[int, bool]:
    """What a recording is tied to: the size of the batches, and whether their examples have weights."""
    return stretch.batches.indices.shape[2], stretch.batches.weights is None
