"""Hyper-parameters of runs that are stepped together, each with its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.ensemble.transfer import sent
from sgdsde.sgd import SGD, StepPlan

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Update:
    """The update k -> k + 1 of ``torch.optim.SGD`` for several runs at once, ``Step.move`` with a number for each run.

    Every number is a vector [runs], also where all runs agree: a run's arithmetic is the same beside any others.

    Attributes:
        lr: [runs]. decay: weight decay, [runs], or None where no run has any.
        momentum, kept: beta and kappa = 1 - dampening (1 at the first step), [runs], or None without momentum.
        nesterov: for all of them.
    """

    lr: Tensor
    decay: Tensor | None
    momentum: Tensor | None
    kept: Tensor | None
    nesterov: bool

    @property
    def is_plain(self) -> bool:
        """Without momentum, so that a step needs no gradient of its own beside the weights."""
        return self.momentum is None

    def apply(self, weights: Tensor, buffer: Tensor, gradient: Tensor, decayed: Tensor | None = None) -> None:
        """Move weights and buffer [runs, ...] in place; ``decayed`` are the weights that decay, where others do."""
        lr = over(self.lr, weights)
        if self.decay is not None:
            gradient = torch.addcmul(gradient, weights if decayed is None else decayed, over(self.decay, weights))
        if self.momentum is not None and self.kept is not None:
            momentum = over(self.momentum, weights)
            buffer.mul_(momentum).addcmul_(gradient, over(self.kept, weights))
            gradient = torch.addcmul(gradient, buffer, momentum) if self.nesterov else buffer
        weights.addcmul_(gradient, lr, value=-1)


def over(numbers: Tensor, like: Tensor) -> Tensor:
    """[runs] as a view that multiplies tensors [runs, ...]."""
    return numbers.view(-1, *(1,) * (like.ndim - 1))


class Rates:
    """The numbers of several SGDs with the same words, each for as many runs: member s * n_runs + j is run j of SGD s.

    Args:
        plans: one for each SGD. like: of the weights' dtype (half precision keeps its rates in float32) and device.
    """

    def __init__(self, sgds: Sequence[SGD], plans: Sequence[StepPlan], n_runs: int, like: Tensor) -> None:
        self._plans, self._n_runs, self._like = plans, n_runs, like
        self._dtype = torch.float32 if like.dtype in HALF else like.dtype
        first = sgds[0]
        self._nesterov = first.nesterov
        self._decay = self._spread([sgd.weight_decay for sgd in sgds]) if first.weight_decay else None
        self._momentum = self._spread([sgd.momentum for sgd in sgds]) if first.momentum else None
        self._kept = self._spread([1 - sgd.dampening for sgd in sgds]) if first.momentum else None

    def of(self, steps: range) -> tuple[Tensor, Tensor | None]:
        """What changes from step to step, [K, members]: lr, and kept (None without momentum)."""
        lr = self._spread([plan.lr[steps.start : steps.stop].tolist() for plan in self._plans])
        if self._kept is None:
            return lr, None
        kept = self._kept.repeat(len(steps), 1)
        kept[: max(0, 1 - steps.start)] = 1
        return lr, kept

    def updates(self, lr: Tensor, kept: Tensor | None, members: slice = slice(None)) -> list[Update]:
        """The updates of some of the members, given what ``of`` says of them, [K, members]."""
        decay, momentum = (None if part is None else part[members] for part in (self._decay, self._momentum))
        each = [None] * len(lr) if kept is None else kept.unbind(0)
        return [Update(row, decay, momentum, one, self._nesterov) for row, one in zip(lr.unbind(0), each)]

    def _spread(self, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        """A number, or K of them, for each SGD as [members] or [K, members], made on the host and sent at once."""
        numbers = torch.tensor(values, dtype=self._dtype).repeat_interleave(self._n_runs, 0)
        return sent(numbers.mT.contiguous() if numbers.ndim == 2 else numbers, self._like.device)


def same_words(sgd: SGD, plan: StepPlan) -> tuple[object, ...]:
    """What runs must have in common to be stepped together: their batches, and which terms their update has."""
    batches = (plan.sampling, plan.batch_size.tobytes(), plan.used.tobytes())
    return (*batches, sgd.momentum > 0, sgd.nesterov, sgd.weight_decay > 0, sgd.label_noise_std > 0)
