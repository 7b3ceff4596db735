"""Hyper-parameters of runs that are stepped together, each with its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def updates(self, steps: range) -> list[Update]:
        """One update of all members for each of these steps."""
        lr = self._spread([plan.lr[steps.start : steps.stop].tolist() for plan in self._plans])
        undamped = None if self._kept is None else torch.ones_like(self._kept)
        return [
            Update(row, self._decay, self._momentum, undamped if k == 0 else self._kept, self._nesterov)
            for k, row in zip(steps, lr.unbind(1) if lr.ndim == 2 else ())
        ]

    def _spread(self, values: Sequence[float] | Sequence[Sequence[float]]) -> Tensor:
        numbers = torch.tensor(values, dtype=self._dtype, device=self._like.device)
        return numbers.repeat_interleave(self._n_runs, 0)


def of_members(update: Update, members: slice) -> Update:
    """The update of some of the members."""
    decay, momentum, kept = (
        None if part is None else part[members] for part in (update.decay, update.momentum, update.kept)
    )
    return Update(update.lr[members], decay, momentum, kept, update.nesterov)


def same_words(sgd: SGD, plan: StepPlan) -> tuple[object, ...]:
    """What runs must have in common to be stepped together: their batches, and which terms their update has."""
    batches = (plan.sampling, plan.batch_size.tobytes(), plan.used.tobytes())
    return (*batches, sgd.momentum > 0, sgd.nesterov, sgd.weight_decay > 0, sgd.label_noise_std > 0)
