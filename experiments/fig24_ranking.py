"""Fifteen masks by predicted and by measured loss, at one learning rate and at each mask's own; and kernel transfer."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.pruned_networks import masks_of
from sgdsde import datasets, pruning, stability

SEED = 0
PART = 0.3
"""Of the mean-square limit: of the stiffest network for all, or of each network's own."""

CRITERIA: dict[str, pruning.Criterion] = {
    "random": pruning.Random(),
    "snip": pruning.SNIP(),
    "grasp": pruning.GraSP(),
    "synflow": pruning.SynFlow(n_rounds=30),
    "synflow2": pruning.SynFlow(n_rounds=30, power=2),
}


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    width: int
    n: int
    n_networks: int
    n_runs: int
    n_steps: int
    sparsities: tuple[float, ...]
    transfer_steps: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(32, 24, 1, 2, 40, (0.8,), 10),
        laptop=Sizes(128, 64, 2, 8, 300, (0.8, 0.9, 0.95), 800),
        paper=Sizes(512, 256, 10, 64, 1000, (0.5, 0.8, 0.9, 0.95, 0.98), 15_000),
    )
    networks = [ranked(sizes, seed, progress) for seed in range(sizes.n_networks)]
    arrays = {key: np.array([found[key] for found in networks]) for key in networks[0]}
    names = [f"{name} {sparsity:g}" for name, sparsity in itertools.product(CRITERIA, sizes.sparsities)]
    return arrays | {"names": np.array(names)} | transferred(sizes, progress)


def ranked(sizes: Sizes, seed: int, progress: Progress) -> dict[str, list[float]]:
    """One network: losses [mask] after the last step, predicted and measured, at one rate and at own rates."""
    problem = parity(sizes, seed)
    masks = [
        masks_of(problem, criterion, sparsity, sizes.n, seed=seed + 3)
        for criterion, sparsity in itertools.product(CRITERIA.values(), sizes.sparsities)
    ]
    pruned = [mask.apply(problem) for mask in masks]
    linearizations = [sgdsde.linearize(one) for one in pruned]
    limits = [stability.max_lr(one, min(16, sizes.n)) for one in linearizations]
    found: dict[str, list[float]] = {
        "path_kernel_trace": [pruning.path_kernel_trace(one) for one in pruned],
        "kernel_trace": [one.operator.trace() for one in linearizations],
        "sparsity": [mask.sparsity for mask in masks],
        "max_lr": limits,
    }
    for label in ("one", "own"):
        found |= {
            f"{label}_{kind}": [] for kind in ("predicted", "measured", "error", "test_predicted", "test_measured")
        }
        for place in progress(f"network {seed}, {label} rate")(range(len(masks))):
            lr = PART * (min(limits) if label == "one" else limits[place])
            sgd, record = sgdsde.SGD(lr, min(16, sizes.n)), [0, sizes.n_steps]
            predicted = sgdsde.predict(linearizations[place], sgd, sizes.n_steps, record=record)
            measured = sgdsde.run_ensemble(pruned[place], sgd, sizes.n_steps, sizes.n_runs, record=record)
            assert predicted.test_loss is not None
            assert measured.test_loss is not None
            found[f"{label}_predicted"].append(float(predicted.train_loss.mean[-1]))
            found[f"{label}_measured"].append(float(measured.train_loss.mean[-1]))
            found[f"{label}_error"].append(float(measured.train_loss.standard_error[-1]))
            found[f"{label}_test_predicted"].append(float(predicted.test_loss.mean[-1]))
            found[f"{label}_test_measured"].append(float(measured.test_loss.mean[-1]))
    return found


def parity(sizes: Sizes, seed: int) -> sgdsde.Problem:
    """Odd and even digits as -1 and 1; two hidden ReLU layers, the read-out shrunk to .3."""
    data = datasets.digits(sizes.n, sizes.n, dtype=torch.float64).to(device=device())
    assert data.labels_train is not None
    assert data.labels_test is not None
    y, v = (2.0 * (labels % 2)[:, None].double() - 1 for labels in (data.labels_train, data.labels_test))
    model = linear_layers((64, sizes.width, sizes.width, 1), seed, torch.float64)
    with torch.no_grad():
        model[-1].get_parameter("weight").mul_(0.3)
    return sgdsde.Problem(model, data.x_train, y, loss=nn.MSELoss(), x_test=data.x_test, y_test=v)


def linear_layers(widths: tuple[int, ...], seed: int, dtype: torch.dtype) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layer = nn.Linear(before, after, bias=False, dtype=dtype)
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(2 / before), generator=generator)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(device())


def transferred(sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """Neural tangent transfer of 64-100-10 to 5 %."""
    data = datasets.digits(1200, 256, target="class").to(device=device())
    model = linear_layers((64, 100, 10), 0, torch.float32)
    with torch.no_grad():
        model[0].get_parameter("weight").mul_(math.sqrt(64 / 164))
        model[2].get_parameter("weight").mul_(math.sqrt(100 / 110))
    problem = sgdsde.Problem(model, **data.tensors(), loss=nn.CrossEntropyLoss())
    _, history = pruning.transfer(
        problem,
        0.05,
        n_steps=sizes.transfer_steps,
        batch_size=24,
        lr=2e-3,
        gamma=0.1,
        progress=progress("transfer"),
    )
    return {
        "transfer_steps": history.steps.numpy(),
        "transfer_outputs": history.output_distance.numpy(),
        "transfer_kernel": history.kernel_distance.numpy(),
    }


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
