"""Trainings of the kinds that people have, drawn at random: networks in torch's own initialization on digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde

NETWORKS = ("relu", "tanh", "layernorm", "conv", "attention", "wide")
LOSSES = ("mse1", "mse10", "ce")


@dataclass(frozen=True)
class Everyday:
    """One network, its data, and one way to train it; lr is ``fraction`` of (1 - momentum) B / (B + 8) of the
    full-batch limit at the start, roughly a share of the mean-square limit."""

    network: str
    width: int
    loss: str
    momentum: float
    sampling: str
    batch_size: int
    n_train: int
    n_steps: int
    fraction: float
    seed: int

    def problem(self) -> sgdsde.Problem:
        target = {"mse1": "sign", "mse10": "onehot", "ce": "class"}[self.loss]
        images = self.network == "conv"
        data = sgdsde.datasets.digits(self.n_train, 128, target=target, flatten=not images, seed=self.seed)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = network(self.network, self.width, 1 if self.loss == "mse1" else 10)
        criterion = nn.CrossEntropyLoss() if self.loss == "ce" else nn.MSELoss()
        return sgdsde.Problem(model, **data.tensors(), loss=criterion)

    def sgd(self, problem: sgdsde.Problem | sgdsde.Linearization) -> sgdsde.SGD:
        sharpest = sgdsde.stability.max_lr_full_batch(problem)
        lr = self.fraction * sharpest * (1 - self.momentum) * self.batch_size / (self.batch_size + 8)
        return sgdsde.SGD(lr, self.batch_size, momentum=self.momentum, sampling=self.sampling)  # type: ignore[arg-type]


def settings(count: int, seed: int) -> list[Everyday]:
    """Settings drawn independently; kinds of network, losses, momenta and samplings in balanced turns."""
    rng, drawn = np.random.default_rng(seed), []
    for i in range(count):
        kind = NETWORKS[i % len(NETWORKS)]
        loss = LOSSES[(i // len(NETWORKS) + i) % len(LOSSES)]
        momentum, sampling = (0.0, 0.9)[(i // 3) % 2], ("shuffled", "with_replacement")[(i // 2) % 2]
        width = {"conv": 6, "attention": 16, "wide": 512}.get(kind) or int(rng.choice([32, 64, 128]))
        n = int(rng.choice([64, 128] if loss != "mse1" else [64, 128, 256]))
        size, n_steps = int(rng.choice([4, 8, 16])), int(rng.choice([200, 400]))
        fraction = float(np.exp(rng.uniform(np.log(0.02), np.log(0.5))))
        drawn.append(Everyday(kind, width, loss, momentum, sampling, size, n, n_steps, fraction, 100 * seed + i))
    return drawn


def network(kind: str, width: int, n_outputs: int) -> nn.Module:
    """A network of digits in torch's own initialization; "wide" is in NTK parametrization."""
    if kind == "wide":
        return sgdsde.networks.MLP(64, width, n_outputs)
    if kind == "conv":
        body = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU()]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(9 * width, n_outputs))
    if kind == "attention":
        return RowAttention(width, n_outputs)
    layers: list[nn.Module] = [nn.Linear(64, width)]
    if kind == "relu":
        layers += [nn.ReLU()]
    elif kind == "layernorm":
        layers += [nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    else:
        layers += [nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, n_outputs))


class RowAttention(nn.Module):
    """One block of self-attention over the eight rows of an image, then their mean."""

    def __init__(self, width: int, n_outputs: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.keys, self.queries, self.values = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.read = nn.Linear(width, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.unflatten(-1, (8, 8))) + self.place
        scores = self.queries(rows) @ self.keys(rows).mT / rows.shape[-1] ** 0.5
        rows = rows + scores.softmax(-1) @ self.values(rows)
        rows = rows + self.mix(rows)
        output: Tensor = self.read(rows.mean(-2))
        return output
