"""Learning rates of a torch scheduler, read from a copy."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from sgdsde._checks import complaint, finite_number, word
from sgdsde._types import Schedule

SchedulerInterval: TypeAlias = Literal["step", "epoch"]
"""Interval of ``scheduler.step()`` in a training loop: every update, or every pass over the loader."""

HYPERPARAMETERS = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


class ScheduledRate:
    """lr(k) of a loop that calls ``optimizer.step()`` and then, every ``stride`` updates, ``scheduler.step()``.

    The scheduler is copied when this is made and the copy is stepped as far as it has been asked for; the user's own
    objects never move. Update 0 uses the learning rate that the optimizer has now.
    """

    def __init__(self, optimizer: torch.optim.SGD, scheduler: LRScheduler, stride: int) -> None:
        self._optimizer, self._scheduler = _copied(optimizer, scheduler)
        self._name, self._stride = type(scheduler).__name__, stride
        self._fixed = _fixed(self._optimizer)
        self._rates = [common_value(self._optimizer, "lr")]

    def __call__(self, step: int) -> float:
        while len(self._rates) <= step // self._stride:
            self._advance()
        return self._rates[step // self._stride]

    def __repr__(self) -> str:
        return f"{self._name}({'every step' if self._stride == 1 else f'every {self._stride} steps'})"

    def _advance(self) -> None:
        with warnings.catch_warnings():
            # The copied optimizer never steps, which is what these two warn of.
            warnings.filterwarnings("ignore", message="Seems like `optimizer.step")
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            # Chained schedulers call each other in a form that torch itself calls deprecated.
            warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step")
            try:
                self._scheduler.step()
            except Exception as error:
                ends = len(self._rates) * self._stride
                remedy = f"ask for at most {ends} steps, or make the scheduler longer ({error})"
                expected = f"at most {ends}, where {self._name} ends"
                raise ValueError(complaint("n_steps", expected, "more", remedy)) from error
        for name, before in self._fixed.items():
            now = common_value(self._optimizer, name)
            if now != before:
                expected = "one that changes the learning rate only"
                received = f"{self._name}, which moves {name} from {before:g} to {now:g}"
                raise ValueError(complaint("scheduler", expected, received, f"hold {name} constant"))
        self._rates.append(common_value(self._optimizer, "lr"))


def lr_of_scheduler(
    optimizer: torch.optim.SGD, scheduler: object, *, interval: SchedulerInterval, steps_per_epoch: int
) -> Schedule:
    """The learning rate of each update: a number without a scheduler, else a ``ScheduledRate``.

    Raises:
        TypeError: no LR scheduler. ValueError: a scheduler that looks at measured losses or cycles the momentum, one of
            another optimizer, or one that cannot be copied.
    Warns:
        UserWarning: the optimizer has a scheduler that was not passed.
    """
    word("scheduler_interval", interval, get_args(SchedulerInterval))
    if scheduler is None:
        if any("initial_lr" in group for group in optimizer.param_groups):
            lr = common_value(optimizer, "lr")
            message = f"the optimizer has a scheduler, but scheduler=None: lr={lr:g} is taken as constant"
            warnings.warn(message, UserWarning, stacklevel=4)
        return common_value(optimizer, "lr")
    _check(optimizer, scheduler)
    assert isinstance(scheduler, LRScheduler)
    return ScheduledRate(optimizer, scheduler, 1 if interval == "step" else steps_per_epoch)


def common_value(optimizer: torch.optim.Optimizer, name: str) -> float:
    """A hyperparameter that all parameter groups share.

    Raises:
        ValueError: they do not share it.
    """
    values = [finite_number(name, _plain(group[name])) for group in optimizer.param_groups]
    different = [i for i, value in enumerate(values) if value != values[0]]
    if different:
        received = f"{name}={values[0]:g} in group 0 and {name}={values[different[0]]:g} in group {different[0]}"
        expected = f"of one {name} in all parameter groups"
        raise ValueError(complaint("optimizer", expected, received, "SGD has one value for all parameters"))
    return values[0]


def _plain(value: Any) -> Any:
    # float() of a float32 tensor is its exact value, which is also what the optimizer multiplies by.
    return float(value) if isinstance(value, bool | torch.Tensor) else value


def _fixed(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: common_value(optimizer, name) for name in HYPERPARAMETERS if name != "lr"}


def _check(optimizer: torch.optim.SGD, scheduler: object) -> None:
    name = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        remedy = "pass lr as a function of the step, or another scheduler"
        expected = "a function of the step alone"
        raise ValueError(complaint("scheduler", expected, f"{name}, which reads measured losses", remedy))
    if not isinstance(scheduler, LRScheduler):
        expected = "a torch.optim.lr_scheduler.LRScheduler or None"
        raise TypeError(complaint("scheduler", expected, name, "pass lr as a function of the step to sgdsde.SGD"))
    if scheduler.optimizer is not optimizer:
        remedy = f"pass the optimizer that the {name} was made with"
        raise ValueError(complaint("scheduler", "that of this optimizer", f"{name} of another one", remedy))
    if getattr(scheduler, "cycle_momentum", False):
        received, remedy = f"{name}(cycle_momentum=True)", f"use {name}(..., cycle_momentum=False)"
        raise ValueError(complaint("scheduler", "one that changes the learning rate only", received, remedy))
    for part in getattr(scheduler, "_schedulers", ()):
        _check(optimizer, part)


def _copied(optimizer: torch.optim.SGD, scheduler: LRScheduler) -> tuple[torch.optim.SGD, LRScheduler]:
    """Copies that belong together, with a scalar in place of every parameter: no weights are copied."""
    memo: dict[int, Any] = {id(value): torch.zeros(()) for group in optimizer.param_groups for value in group["params"]}
    try:
        return copy.deepcopy((optimizer, scheduler), memo)
    except Exception as error:
        received = f"{type(scheduler).__name__}: {type(error).__name__}: {error}"
        remedy = "pass lr as a function of the step to sgdsde.SGD"
        raise ValueError(complaint("scheduler", "one that copy.deepcopy can copy", received, remedy)) from error
