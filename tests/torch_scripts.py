"""The parts of a small torch training script: a model, a data set, a loader, an optimizer, and every scheduler."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

N = 10
SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], gamma=0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 14, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, T_mult=2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.95),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=6),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.25, total_iters=4),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=30, power=2.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 12)],
        milestones=[4],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, factor=0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    entries = torch.linspace(-1, 1, sum(p.numel() for p in layers.parameters()), dtype=torch.float64)
    with torch.no_grad():
        for i, parameter in enumerate(layers.parameters()):
            parameter.copy_(torch.sin(7 * (i + 1) * entries[: parameter.numel()]).view_as(parameter))
    return layers.to(dtype)


def data(n: int = N) -> TensorDataset:
    draws = torch.Generator().manual_seed(3)
    x, y = (torch.randn(n, k, generator=draws, dtype=torch.float64) for k in (3, 2))
    return TensorDataset(x, y)


def optimizer(**words) -> torch.optim.SGD:
    return torch.optim.SGD(model().parameters(), **({"lr": 0.1} | words))


def loader(batch_size: int | None = 4, **words) -> DataLoader:
    words = words or {"shuffle": True}
    return DataLoader(data(), batch_size=batch_size, **words)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data())


def made(name: str, opt: torch.optim.SGD) -> lr_scheduler.LRScheduler:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The epoch parameter")
        return SCHEDULERS[name](opt)
