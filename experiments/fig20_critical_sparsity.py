"""The sparsity at which SNIP empties a layer, against depth, in order, on the edge of chaos and in chaos."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.pruned_networks import problem_of
from sgdsde import datasets, pruning

SEED = 0
PHASES: dict[str, tuple[str, float, float, float]] = {
    "tanh_ordered": ("tanh", 1.0, 1.0, 1.46),
    "tanh_edge": ("tanh", 1.304146, 0.2, 0.512079),
    "tanh_chaotic": ("tanh", 2.5, 0.2, 5.0),
    "relu_ordered": ("relu", 1.0, 1.0, 1.0),
    "relu_edge": ("relu", 2**0.5, 0.0, 1.0),
}
"""Activation, sigma_w, sigma_b, and the variance that inputs are given."""


class RowByRow(nn.Linear):
    """A linear layer that rounds the same whatever the batch: forty chaotic layers amplify a last bit."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x.unsqueeze(-2) * self.weight).sum(-1)
        return y if self.bias is None else y + self.bias


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    depths = by_scale(scale, smoke=(5, 20), laptop=(5, 10, 20, 40), paper=(5, 10, 20, 40, 80, 160))
    n_seeds, n_examples = by_scale(scale, smoke=(1, 64), laptop=(5, 256), paper=(20, 1024))
    width = by_scale(scale, smoke=60, laptop=60, paper=100)
    data = datasets.digits(n_examples, 1, target="class", dtype=torch.float64)
    arrays: dict[str, np.ndarray] = {"depths": np.array(depths), "phases": np.array(list(PHASES))}
    for phase, (activation, sigma_w, sigma_b, q) in PHASES.items():
        found = np.zeros((n_seeds, len(depths)))
        for seed in progress(phase)(range(n_seeds)):
            for place, depth in enumerate(depths):
                model = network((64, *[width] * depth, 10), activation, sigma_w, sigma_b, seed)
                scores = pruning.SNIP().scores(problem_of(model, data, q**0.5))
                found[seed, place] = pruning.critical_sparsity(scores)
        arrays[phase] = found
    return arrays


def network(sizes: tuple[int, ...], activation: str, sigma_w: float, sigma_b: float, seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layer = RowByRow(before, after, bias=sigma_b > 0, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.normal_(0, sigma_w / math.sqrt(before), generator=generator)
            if sigma_b > 0:
                layer.bias.normal_(0, sigma_b, generator=generator)
        layers += [layer, nn.Tanh() if activation == "tanh" else nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device())


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
