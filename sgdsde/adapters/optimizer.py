"""Conversion of a ``torch.optim.SGD`` with its loader and scheduler to the options of ``SGD``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint
from sgdsde._types import Params
from sgdsde.adapters.sampler import sampling_of_loader
from sgdsde.adapters.scheduler import SchedulerInterval, common_value, lr_of_scheduler


def words_of_optimizer(
    optimizer: object,
    loader: object,
    scheduler: object = None,
    *,
    interval: SchedulerInterval = "step",
    model: nn.Module | None = None,
) -> dict[str, Any]:
    """The keywords of ``SGD``; see ``SGD.from_optimizer``. Nothing passed is changed."""
    if type(optimizer) is not torch.optim.SGD:
        remedy = "only SGD can be predicted; a subclass may step differently"
        raise TypeError(complaint("optimizer", "a torch.optim.SGD", type(optimizer).__name__, remedy))
    _refuse_unfit(optimizer)
    if model is not None:
        _check_parameters(optimizer, model)
    sampled = sampling_of_loader(loader)
    lr = lr_of_scheduler(optimizer, scheduler, interval=interval, steps_per_epoch=sampled.steps_per_epoch)
    return {
        "lr": lr,
        "batch_size": sampled.batch_size,
        "momentum": common_value(optimizer, "momentum"),
        "dampening": common_value(optimizer, "dampening"),
        "weight_decay": common_value(optimizer, "weight_decay"),
        "nesterov": bool(common_value(optimizer, "nesterov")),
        "sampling": sampled.sampling,
        "drop_last": sampled.drop_last,
        "trained": TrainedTensors.of(optimizer),
    }


@dataclass(frozen=True, eq=False)
class TrainedTensors:
    """The tensors that an optimizer moves, themselves: a copy of them would be another model's."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> TrainedTensors:
        return cls(tuple(value for group in optimizer.param_groups for value in group["params"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedTensors:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return TrainedTensors, ((),)

    def check(self, trained: Params) -> None:
        """Raises ``ValueError`` unless these are the tensors that a problem trains, or those of a copy of its model.

        Args:
            trained: the user's own tensors by name.
        """
        held, own = {id(value) for value in self.tensors}, {id(value) for value in trained.values()}
        name, expected = "the optimizer of this SGD", "over exactly the trainable parameters of the problem's model"
        if not self.tensors or held == own:
            return
        if not held & own:
            shapes = [sorted(tuple(value.shape) for value in some) for some in (self.tensors, trained.values())]
            if shapes[0] == shapes[1]:  # a copy of the model
                return
            received = "one of another model"
            raise ValueError(complaint(name, expected, received, "make it with the parameters of the problem's model"))
        missing = [repr(key) for key, value in trained.items() if id(value) not in held]
        if missing:
            received = f"one without {', '.join(missing)}"
            remedy = "freeze these with requires_grad_(False) before the Problem is made, or give them to the optimizer"
            raise ValueError(complaint(name, expected, received, remedy))
        if any(value.requires_grad for value in self.tensors if id(value) not in own):
            received = f"one that also holds {len(held - own)} tensors of something else"
            remedy = "make one optimizer of the model's parameters alone"
            raise ValueError(complaint(name, expected, received, remedy))


def _refuse_unfit(optimizer: torch.optim.SGD) -> None:
    if common_value(optimizer, "maximize"):
        raise ValueError(complaint("optimizer", "one that minimizes", "maximize=True", "use maximize=False"))
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    if hooks:
        received = f"{len(hooks)} of them"
        remedy = "remove them: what a hook does to the update cannot be predicted"
        raise ValueError(complaint("optimizer", "without step hooks", received, remedy))
    filled = sum(state.get("momentum_buffer") is not None for state in optimizer.state.values())
    if filled and common_value(optimizer, "momentum"):
        received = f"{filled} momentum buffers of earlier steps"
        remedy = "make a new torch.optim.SGD; predictions start without a buffer, as torch does"
        raise ValueError(complaint("optimizer", "one that has not stepped", received, remedy))


def _check_parameters(optimizer: torch.optim.SGD, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(complaint("model", "an nn.Module or None", type(model).__name__))
    held = {id(value) for group in optimizer.param_groups for value in group["params"] if value.requires_grad}
    trainable = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    expected = "over exactly the trainable parameters of the model"
    missing = [name for key, name in trainable.items() if key not in held]
    if missing:
        remedy = "give them to the optimizer, or freeze them with requires_grad_(False)"
        raise ValueError(complaint("optimizer", expected, f"one without {', '.join(map(repr, missing))}", remedy))
    if foreign := len(held - set(trainable)):
        remedy = "make the optimizer with model.parameters()"
        raise ValueError(complaint("optimizer", expected, f"{foreign} parameters that are not the model's", remedy))
