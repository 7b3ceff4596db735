"""Batches of consecutive steps, drawn ahead for all runs of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.transfer import sent
from sgdsde.ensemble.variants import Variant
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True, eq=False)
class Batches:
    """K batches of one size for each of several runs.

    Attributes:
        indices: [K, runs, B]. weights: of the examples in the gradient, [K, runs, B]; None: the mean, 1/B each.
        label_noise: to be added to the targets, [K, runs, B, c], or None.
    """

    indices: Tensor
    weights: Tensor | None = None
    label_noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def of(self, runs: Tensor, noise_std: Tensor | None = None) -> Batches:
        """Those of these runs, which may repeat, their label noise in units of ``noise_std`` [runs]."""
        weights = None if self.weights is None else self.weights.index_select(1, runs)
        noise = None
        if self.label_noise is not None and noise_std is not None:
            noise = self.label_noise.index_select(1, runs) * noise_std[:, None, None]
        return Batches(self.indices.index_select(1, runs), weights, noise)


class Draws:
    """The batches of the runs of some streams, in the order of the steps, and each only once.

    Args:
        beside: bytes a step that are held with its draws, for what else is made ahead.
    """

    def __init__(
        self, variant: Variant, plan: StepPlan, streams: RunStreams, sgd: SGD, problem: Problem, *, beside: int = 0
    ) -> None:
        self._sizes, self._next, self._device = plan.batch_size, 0, streams.device
        self._draws = variant.draws(plan, streams)
        self._noise: Callable[..., Tensor] | None = streams.normal("labels") if sgd.label_noise_std else None
        self._n_outputs = n_outputs = problem.n_outputs
        self.examples = variant.examples(plan)  # of a run's largest batch
        numbers = int(variant.is_weighted) + (n_outputs if sgd.label_noise_std else 0)
        entry = 2 * (torch.int64.itemsize + numbers * streams.dtype.itemsize)  # as drawn, and a copy
        self._bytes = len(streams.runs) * self.examples * entry + beside

    def most(self, allowed: int) -> int:
        """Steps of the plan that are ever drawn at once within the bytes allowed."""
        return max(1, min(len(self._sizes), allowed // self._bytes))

    def ahead(self, n_steps: int, allowed: int) -> int:
        """How many of the next ``n_steps`` steps to draw at once: of one batch size, and within the bytes allowed."""
        most = min(n_steps, self.most(allowed))
        sizes = self._sizes[self._next : self._next + most]
        changes = (sizes != sizes[0]).nonzero()[0]
        return int(changes[0]) if len(changes) else most

    @property
    def alike(self) -> int:
        """Steps to come, up to the end of the plan, with the batch size of the next one."""
        sizes = self._sizes[self._next :]
        return int((sizes == sizes[:1]).sum())

    def take(self, n_steps: int) -> Batches:
        """The next steps' batches of all runs, brought to the device at once."""
        drawn = [next(self._draws) for _ in range(n_steps)]
        self._next += n_steps
        indices = sent(torch.stack([draw.indices for draw in drawn]), self._device)
        weights = [draw.weights for draw in drawn if draw.weights is not None]
        noise = None
        if self._noise is not None:
            noise = torch.stack([self._noise(indices.shape[2], self._n_outputs) for _ in drawn])
        return Batches(indices, sent(torch.stack(weights), self._device) if weights else None, noise)


def blocks_of(n_members: int, most: int) -> Iterator[slice]:
    """Slices of nearly equal length, at most ``most``: none of one member alone beside larger ones."""
    count = -(-n_members // most)
    for part in range(count):
        yield slice(part * n_members // count, (part + 1) * n_members // count)


def settings_in(members: slice, n_runs: int) -> Sequence[tuple[int, slice, slice]]:
    """(SGD, its runs, their places in the slice) for each SGD with runs among these members."""
    found = []
    for setting in range(members.start // n_runs, (members.stop - 1) // n_runs + 1):
        start, stop = max(members.start, setting * n_runs), min(members.stop, (setting + 1) * n_runs)
        runs = slice(start - setting * n_runs, stop - setting * n_runs)
        found.append((setting, runs, slice(start - members.start, stop - members.start)))
    return found
