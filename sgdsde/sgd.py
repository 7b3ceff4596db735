"""Stochastic gradient descent with the options of ``torch.optim.SGD``."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from sgdsde import _memory
from sgdsde._checks import (
    complaint,
    finite_number,
    fraction_below_one,
    nonnegative_number,
    positive_number,
    whole_number,
    word,
)
from sgdsde._types import Sampling, Schedule
from sgdsde.adapters import ScheduledRate, SchedulerInterval, TrainedTensors, words_of_optimizer

MOST = 2**40
"""Examples of a batch: more are a mistake, and no integers of the machine's."""

PLAN_BYTES = 8 * 6
"""Of a step in a plan, and of what is made from it."""


@dataclass(frozen=True)
class SGD:
    """Minibatch SGD; every option of torch has the meaning of ``torch.optim.SGD`` (the first buffer is undamped).

    Args:
        lr: learning rate, positive, or a function of the step k = 0, 1, ... for the update k -> k + 1 (a warm-up may
            start from 0).
        batch_size: examples a step, a positive integer, or a function of the step.
        momentum, dampening, nesterov, weight_decay: as in torch.
        sampling: ``"with_replacement"``: i.i.d. indices. ``"without_replacement"``: a fresh subset at each step.
            ``"shuffled"``: epochs of a reshuffled data set, as ``DataLoader(shuffle=True)``, with a smaller last batch.
        drop_last: shuffled only: skip an epoch's smaller last batch.
        label_noise_std: fresh Gaussian noise on every drawn target, in the targets' units; squared error only.
        trained: set by ``from_optimizer``: what the optimizer holds, which must be what a problem trains.
    """

    lr: Schedule
    batch_size: Schedule
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    sampling: Sampling = "with_replacement"
    drop_last: bool = False
    label_noise_std: float = 0.0
    trained: TrainedTensors | None = field(default=None, repr=False, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.lr):
            positive_number("lr", self.lr)
        if not callable(self.batch_size):
            object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size, minimum=1))
            if int(self.batch_size) > MOST:
                raise ValueError(complaint("batch_size", f"at most {MOST:,}", self.batch_size))
        fraction_below_one("momentum", self.momentum)
        finite_number("dampening", self.dampening)
        nonnegative_number("weight_decay", self.weight_decay)
        nonnegative_number("label_noise_std", self.label_noise_std)
        word("sampling", self.sampling, get_args(Sampling))
        for name, value in (("nesterov", self.nesterov), ("drop_last", self.drop_last)):
            if not isinstance(value, bool):
                raise TypeError(complaint(name, "True or False", repr(value)))
        if self.trained is not None and not isinstance(self.trained, TrainedTensors):
            remedy = "leave it to SGD.from_optimizer"
            raise TypeError(complaint("trained", "what an optimizer holds", type(self.trained).__name__, remedy))
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            received = f"momentum={self.momentum}, dampening={self.dampening}"
            remedy = "use momentum > 0 and dampening=0, or nesterov=False"
            raise ValueError(complaint("nesterov", "used with momentum and without dampening", received, remedy))
        if self.drop_last and self.sampling != "shuffled":
            received = f"sampling={self.sampling!r}"
            raise ValueError(complaint("drop_last", "used with sampling='shuffled'", received, "use drop_last=False"))

    @classmethod
    def from_optimizer(
        cls,
        optimizer: torch.optim.SGD,
        loader: DataLoader,
        scheduler: LRScheduler | None = None,
        *,
        scheduler_interval: SchedulerInterval = "step",
        model: nn.Module | None = None,
    ) -> SGD:
        """The SGD of a torch training loop; the optimizer, the loader and the scheduler stay as they are.

        Args:
            optimizer: a ``torch.optim.SGD`` that has no momentum buffers yet; parameter groups must agree.
            loader: ``shuffle=True`` is "shuffled", ``RandomSampler(replacement=True)`` "with_replacement", a batch of
                the whole data set a full batch. An epoch's smaller last batch and ``drop_last`` are kept.
            scheduler: read from a copy, stepped when a step is asked for. Update 0 has the learning rate that the
                optimizer has now, so a scheduler that has moved goes on from where it is.
            scheduler_interval: ``"step"`` if the loop calls ``scheduler.step()`` after every update, ``"epoch"`` if
                after every pass over the loader.
            model: if given, the optimizer must hold exactly its trainable parameters; a problem of another model, or
                one that trains others, is refused in any case when it is predicted or trained.
        Raises:
            TypeError: another optimizer. ValueError: what ``SGD`` cannot represent, by name: other samplers,
                ``ReduceLROnPlateau``, a scheduler that cycles momentum, ``maximize``, step hooks, unequal groups.
        Warns:
            UserWarning: the optimizer has a scheduler that was not passed.
        """
        return cls(**words_of_optimizer(optimizer, loader, scheduler, interval=scheduler_interval, model=model))

    @property
    def is_constant(self) -> bool:
        """Learning rate and batch size are numbers, not functions of the step."""
        return not callable(self.lr) and not callable(self.batch_size)

    @property
    def is_plain(self) -> bool:
        """No momentum, no decay, no label noise (sampling and schedules may be anything)."""
        return self.momentum == 0 and self.weight_decay == 0 and self.label_noise_std == 0

    def lr_at(self, step: int) -> float:
        """The learning rate of the update step -> step + 1."""
        return nonnegative_number(f"lr({step})", _value("lr", self.lr, step)) if callable(self.lr) else float(self.lr)

    def batch_size_at(self, step: int) -> int:
        """The batch size asked for at a step; an epoch's last batch may be smaller (see ``plan``)."""
        if callable(self.batch_size):
            return whole_number(f"batch_size({step})", _value("batch_size", self.batch_size, step), minimum=1)
        return int(self.batch_size)

    def plan(self, n_train: int, n_steps: int) -> StepPlan:
        """Learning rates, batch sizes and places in the epoch of ``n_steps`` steps.

        Raises:
            ValueError: a batch larger than the training set when drawn without replacement; a schedule that returns
                a value that is not positive, not finite, or a fraction for a batch. MemoryError: more steps than fit
                into a quarter of the free memory one by one.
        """
        _memory.check_count("n_steps", n_steps, PLAN_BYTES, "steps that are followed one by one")
        lr = _each(self.lr, self.lr_at, n_steps, np.float64)
        asked = _each(self.batch_size, self.batch_size_at, n_steps, np.int64)
        if self.sampling != "with_replacement" and n_steps and asked.max() > n_train:
            received = f"batch_size={asked.max()}, n_train={n_train}"
            expected = "at most n_train when drawn without replacement"
            raise ValueError(complaint("batch_size", expected, received, 'use sampling="with_replacement"'))
        used = np.zeros(n_steps, dtype=np.int64)
        if self.sampling == "shuffled":
            used, asked = _epochs(asked, n_train, self.drop_last)
        return StepPlan(n_train, self.sampling, lr, asked, used)


def _each(word: Any, at: Callable[[int], float], n_steps: int, dtype: type[np.generic]) -> np.ndarray:
    """A word of the SGD at every step."""
    if callable(word):
        return np.array([at(k) for k in range(n_steps)], dtype=dtype)
    return np.full(n_steps, at(0), dtype=dtype)


def _value(name: str, schedule: Callable[[int], float], step: int) -> float:
    """What a schedule says at a step; one that fails there is refused with the step."""
    if isinstance(schedule, ScheduledRate):
        return schedule(step)
    try:
        return schedule(step)
    except Exception as error:
        received = f"{type(error).__name__}: {error}"
        remedy = "ask for fewer steps, or let the function answer for every step of the run"
        raise ValueError(complaint(f"{name}({step})", "a number", received, remedy)) from error


def check_sgd(sgd: object) -> None:
    """Raise TypeError unless it is an ``SGD``."""
    if not isinstance(sgd, SGD):
        received, remedy = type(sgd).__name__, "use sgdsde.SGD(lr=..., batch_size=...)"
        raise TypeError(complaint("sgd", "an SGD", received, remedy))


@dataclass(frozen=True)
class StepPlan:
    """The numbers of each step k -> k + 1.

    Attributes:
        lr, batch_size: [n_steps]; batch sizes as they are drawn.
        used: [n_steps], examples of the current epoch drawn before this step (0 at each epoch's start; 0 if i.i.d.).
    """

    n_train: int
    sampling: Sampling
    lr: np.ndarray
    batch_size: np.ndarray
    used: np.ndarray

    def __len__(self) -> int:
        return len(self.lr)

    @property
    def times(self) -> np.ndarray:
        """[n_steps + 1], t_k = sum of the learning rates before step k."""
        return np.concatenate([[0.0], np.cumsum(self.lr)])

    def noise_factor(self, step: int) -> float:
        """phi / B of an i.i.d. step: the covariance of its minibatch gradient in units of Sigma."""
        return sampling_factor(self.n_train, int(self.batch_size[step]), self.sampling) / float(self.batch_size[step])

    def segments(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The stretches of [start, stop) on which learning rate and batch size are constant."""
        rows = range(start + 1, stop)
        changes = [k for k in rows if self.lr[k] != self.lr[k - 1] or self.batch_size[k] != self.batch_size[k - 1]]
        edges = [start, *changes, stop]
        return list(itertools.pairwise(edges)) if stop > start else []


def in_words(sgd: SGD, plan: StepPlan) -> str:
    """An SGD in words that are the same in every process, a schedule by the numbers of its plan."""
    hasher = hashlib.blake2b(digest_size=8)
    for numbers in (plan.lr, plan.batch_size):
        hasher.update(numbers.tobytes())
    lr = "a schedule" if callable(sgd.lr) else repr(sgd.lr)
    batch_size = "a schedule" if callable(sgd.batch_size) else repr(sgd.batch_size)
    others = repr(replace(sgd, lr=1.0, batch_size=1)).partition(", batch_size=1, ")[2]
    return f"SGD(lr={lr}, batch_size={batch_size}, {others}, steps {hasher.hexdigest()}"


def sampling_factor(n_train: int, batch_size: int, sampling: Sampling) -> float:
    """phi: the covariance of a minibatch gradient is (phi/B) Sigma, Sigma with divisor n.

    1 with replacement; (n - B)/(n - 1) for a fresh batch without replacement, 0 when B = n.
    """
    if sampling == "with_replacement":
        return 1.0
    return 0.0 if batch_size == n_train else (n_train - batch_size) / (n_train - 1)


def _epochs(asked: np.ndarray, n_train: int, drop_last: bool) -> tuple[np.ndarray, np.ndarray]:
    used, sizes = np.zeros_like(asked), np.zeros_like(asked)
    position = 0
    for k, size in enumerate(asked):
        remaining = n_train - position
        if remaining == 0 or (drop_last and remaining < size):
            position, remaining = 0, n_train
        used[k], sizes[k] = position, min(int(size), remaining)
        position += int(sizes[k])
    return used, sizes
