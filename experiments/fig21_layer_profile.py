"""What SNIP keeps of each layer at 90 %: the law of mean-field theory against networks of finite width."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.pruned_networks import masks_of
from sgdsde import networks, pruning

SEED = 0
SPARSITY = 0.9
PHASES: dict[str, tuple[str, float, float]] = {
    "tanh_ordered": ("tanh", 1.0, 1.0),
    "tanh_edge": ("tanh", 1.304146, 0.2),
    "tanh_chaotic": ("tanh", 2.5, 0.2),
    "relu_ordered": ("relu", 1.0, 1.0),
    "relu_sigma_1": ("relu", 1.0, 0.0),
    "relu_sigma_edge": ("relu", 2**0.5, 0.0),
    "relu_sigma_2": ("relu", 2.0, 0.0),
}
BIAS_FREE = ("relu_sigma_1", "relu_sigma_edge", "relu_sigma_2")


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    depth, width = by_scale(scale, smoke=(8, 50), laptop=(20, 100), paper=(40, 300))
    n_seeds = by_scale(scale, smoke=2, laptop=20, paper=50)
    arrays: dict[str, np.ndarray] = {"phases": np.array(list(PHASES)), "depth": np.array(depth)}
    masks: dict[str, list[pruning.Masks]] = {}
    for phase in PHASES:
        masks[phase] = []
        for seed in progress(phase)(range(n_seeds)):
            model = network(phase, depth, width, seed)
            masks[phase].append(masks_of(at_random_gradient(model, width, seed), pruning.SNIP(), SPARSITY, 1))
        arrays[f"{phase}_measured"] = np.array([list(mask.layer_densities.values()) for mask in masks[phase]])
        arrays[f"{phase}_law"] = np.array(list(pruning.layer_densities(model, pruning.SNIP(), SPARSITY).values()))
    first, *others = (masks[phase] for phase in BIAS_FREE)
    arrays["bias_free_agreement"] = np.array([[agreement(*pair) for pair in zip(first, other)] for other in others])
    return arrays


def agreement(masks: pruning.Masks, other: pruning.Masks) -> float:
    """Share of the weights on which two masks say the same."""
    return sum(int((masks[name] == other[name]).sum()) for name in masks) / masks.n_weights


def network(phase: str, depth: int, width: int, seed: int) -> networks.MLP:
    """``depth`` square layers, the read-out included."""
    activation, sigma_w, sigma_b = PHASES[phase]
    return networks.MLP(
        width,
        width,
        width,
        depth=depth - 1,
        activation=activation,
        sigma_w=sigma_w,
        sigma_b=sigma_b,
        dtype=torch.float64,
        device=device(),
        generator=torch.Generator().manual_seed(seed),
    )


def at_random_gradient(model: networks.MLP, width: int, seed: int) -> sgdsde.Problem:
    """One example whose gradient at the outputs is random: targets so far away that the outputs do not matter."""
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(1, width, dtype=torch.float64, generator=generator).to(device())
    y = 1e12 * torch.randn(1, width, dtype=torch.float64, generator=generator).to(device())
    return sgdsde.Problem(model, x, y, loss=nn.MSELoss())


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
