"""The empirical tangent kernel against the one of infinite width, and its constancy during SGD, against width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import sgdsde
from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.problems import mnist_is_there
from sgdsde import datasets, meanfield, networks

SEED = 0
DEPTH = 3
ACTIVATIONS = ("relu", "tanh")
TIMES = (100, 1000)
"""Steps of SGD after which the kernel is taken again, as in the paper's figure 1."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    widths: tuple[int, ...]
    n_seeds: int
    n_examples: int
    n_train: int
    batch_size: int
    train_widths: tuple[int, ...]


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes((16, 64), 1, 6, 64, 16, (16, 64)),
        laptop=Sizes((32, 64, 128, 256, 512, 1024), 4, 12, 256, 32, (32, 64, 128, 256)),
        paper=Sizes((32, 64, 128, 256, 512, 1024, 2048, 4096), 20, 20, 2000, 64, (32, 64, 128, 256, 512, 1024, 2048)),
    )
    x, y = examples(sizes)
    arrays: dict[str, np.ndarray] = {
        "widths": np.array(sizes.widths),
        "train_widths": np.array(sizes.train_widths),
        "activations": np.array(ACTIVATIONS),
        "times": np.array(TIMES if scale != "smoke" else (20, 40)),
    }
    for activation in ACTIVATIONS:
        exact = meanfield.analytic_ntk(x[: sizes.n_examples], None, model(x, 1, activation, 0))
        arrays[f"{activation}_error"] = np.array(
            [
                [
                    distance(kernel(model(x, width, activation, seed), x[: sizes.n_examples]), exact)
                    for width in sizes.widths
                ]
                for seed in progress(f"{activation}, widths")(range(sizes.n_seeds))
            ]
        )
        # Half of the largest stable step of the infinitely wide network, for all widths.
        gram = meanfield.analytic_ntk(x, None, model(x, 1, activation, 0))
        lr = 0.5 * len(x) / float(torch.linalg.eigvalsh(gram).max())
        arrays[f"{activation}_change"] = np.array(
            [
                [changes(x, y, width, activation, seed, lr, arrays["times"], sizes) for width in sizes.train_widths]
                for seed in progress(f"{activation}, training")(range(sizes.n_seeds))
            ]
        )
    return arrays


def examples(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Inputs of mean square one [n, d] and targets [n, 1], float64."""
    if mnist_is_there():
        data = datasets.mnist(sizes.n_train, 1, flatten=True, image_size=14)
    else:
        data = datasets.digits(sizes.n_train, 1)
    x = data.x_train.flatten(1).to(device(), torch.float64)
    return x / x.square().mean(1, keepdim=True).sqrt(), data.y_train.to(device(), torch.float64)


def model(x: Tensor, width: int, activation: str, seed: int) -> networks.MLP:
    bias = 0.0 if activation == "relu" else 0.2
    edge = meanfield.edge_of_chaos(activation, bias)
    generator = torch.Generator().manual_seed(1000 * width + seed)
    return networks.MLP(
        x.shape[1],
        width,
        1,
        depth=DEPTH,
        activation=activation,
        sigma_w=edge.sigma_w,
        sigma_b=bias,
        dtype=torch.float64,
        device=x.device,
        generator=generator,
    )


def kernel(network: networks.MLP, x: Tensor) -> Tensor:
    return sgdsde.empirical_ntk(network, x)


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((found - exact).norm() / exact.norm())


def changes(
    x: Tensor, y: Tensor, width: int, activation: str, seed: int, lr: float, times: np.ndarray, sizes: Sizes
) -> list[float]:
    """How far the kernel has moved from its start after each of ``times`` steps of SGD, relative."""
    network = model(x, width, activation, seed)
    start = kernel(network, x[: sizes.n_examples])
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    moved = []
    for step in range(int(times[-1])):
        batch = torch.randint(len(x), (sizes.batch_size,), generator=generator)
        optimizer.zero_grad()
        (0.5 * (network(x[batch]) - y[batch]).square().mean()).backward()
        optimizer.step()
        if step + 1 in times:
            moved.append(distance(kernel(network, x[: sizes.n_examples]), start))
    return moved


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
