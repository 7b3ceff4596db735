"""Whether deep pruned networks train: with and without rescaling, and at 99.9 %; on CIFAR-10 at paper scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.cifar_networks import cifar_accuracies, cifar_is_there
from experiments.frame import Progress, Scale, by_scale, main
from experiments.problems import mnist_is_there
from experiments.pruned_networks import INPUT_SCALE, accuracy_after, masks_of, network, problem_of, rescaled
from sgdsde import datasets, pruning

SEED = 0
NORMALIZERS = ("none", "layer", "neuron")
SETTINGS: dict[str, tuple[str, pruning.Criterion, pruning.pruner.Scope]] = {
    "tanh_snip": ("tanh", pruning.SNIP(), "global"),
    "relu_magnitude": ("relu", pruning.Magnitude(), "layer"),
    "relu_snip": ("relu", pruning.SNIP(), "global"),
}
EXTREME = {"snip": pruning.SNIP(), "synflow": pruning.SynFlow(n_rounds=100)}


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    depth: int
    width: int
    n_seeds: int
    n_steps: int
    mnist_width: int
    mnist_train: int
    mnist_steps: int


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes(6, 40, 1, 30, 40, 300, 20),
        laptop=Sizes(20, 100, 3, 300, 300, 4000, 1000),
        paper=Sizes(100, 100, 10, 2000, 300, 50000, 10000),
    )
    arrays: dict[str, np.ndarray] = {"normalizers": np.array(NORMALIZERS), "settings": np.array(list(SETTINGS))}
    data = datasets.digits(1200, 597, target="class")
    for name, (activation, criterion, scope) in SETTINGS.items():
        found = np.zeros((sizes.n_seeds, len(NORMALIZERS)))
        for seed in progress(name)(range(sizes.n_seeds)):
            model = network(activation, sizes.depth, sizes.width, seed, in_features=64)
            problem = problem_of(model, data, INPUT_SCALE[activation])
            pruned = masks_of(problem, criterion, 0.9, 256, scope=scope).apply(problem)
            for place, how in enumerate(NORMALIZERS):
                found[seed, place] = accuracy_after(rescaled(pruned, how), "adam", 1e-3, sizes.n_steps)
        arrays[name] = found
    if mnist_is_there():
        arrays |= extreme(sizes, progress)
    if scale == "paper" and cifar_is_there():
        arrays |= cifar_accuracies(progress)
    return arrays


def extreme(sizes: Sizes, progress: Progress) -> dict[str, np.ndarray]:
    """MNIST, eight tanh layers, 99.9 %: accuracy, and kept weights on a path."""
    data = datasets.mnist(sizes.mnist_train, 1000, target="class", flatten=True)
    hows = ("none", "neuron")
    arrays: dict[str, np.ndarray] = {}
    for name, criterion in EXTREME.items():
        accuracy, live = np.zeros((sizes.n_seeds, len(hows))), np.zeros(sizes.n_seeds)
        for seed in progress(f"MNIST, {name}")(range(sizes.n_seeds)):
            model = network("tanh", 8, sizes.mnist_width, seed, in_features=784)
            problem = problem_of(model, data, INPUT_SCALE["tanh"])
            masks = masks_of(problem, criterion, 0.999, 300)
            pruned, live[seed] = masks.apply(problem), masks.n_live
            for place, how in enumerate(hows):
                accuracy[seed, place] = accuracy_after(rescaled(pruned, how), "adam", 3e-3, sizes.mnist_steps)
        arrays |= {f"mnist_{name}": accuracy, f"mnist_{name}_live": live}
    return arrays


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
