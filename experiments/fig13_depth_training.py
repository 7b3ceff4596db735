"""Which deep networks train: accuracy against depth and step, on and off the edge of chaos, and what kernels predict.

Several seeds are trained at once, as batched matrix products. Every example is scaled to the input variance that the
initialization needs. Softplus, sigmoid (which have no usable edge of chaos) start from sigma_w = 1, sigma_b = 0.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.frame import Progress, Scale, by_scale, device, main
from experiments.problems import mnist_is_there
from sgdsde import datasets, meanfield, networks

SEED = 0
EDGE_BIAS = {"relu": 0.0, "elu": 0.2, "tanh": 0.2, "silu": 0.2}
USUAL = ("softplus", "sigmoid")
OFF = {"tanh_ordered": ("tanh", 1.0, 1.0), "tanh_chaotic": ("tanh", 2.5, 0.2), "relu_ordered": ("relu", 1.0, 0.0)}
LEARNING_RATE = 0.01
"""One for all: of 0.003, 0.01 and 0.03 the best for ELU, tanh and ReLU at depth 50."""
LOSS_TO_REACH = 0.1
"""Of the first loss, for the predicted time."""


@dataclass(frozen=True)
class Sizes:
    """What a scale decides."""

    depths: tuple[int, ...]
    width: int
    n_steps: int
    n_seeds: int
    batch_size: int
    n_train: int
    n_test: int
    image_size: int
    n_kernel: int
    kernel_depths: tuple[int, ...]


@dataclass(frozen=True)
class Start:
    """An initialization: standard deviations, and the mean square of the inputs it needs."""

    activation: str
    sigma_w: float
    sigma_b: float
    input_mean_square: float


def starts() -> dict[str, Start]:
    found = {}
    for name, bias in EDGE_BIAS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", meanfield.UnstableEdgeWarning)  # SiLU's; drawn as it comes
            edge = meanfield.edge_of_chaos(name, bias)
        found[name] = Start(name, edge.sigma_w, bias, (edge.q - bias**2) / edge.sigma_w**2)
    for name in USUAL:
        found[name] = Start(name, 1.0, 0.0, 1.0)
    for name, (activation, sigma_w, sigma_b) in OFF.items():
        found[name] = Start(activation, sigma_w, sigma_b, 1.0)
    return found


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    sizes = by_scale(
        scale,
        smoke=Sizes((6, 12), 24, 12, 3, 32, 300, 200, 7, 24, (1, 4, 16)),
        laptop=Sizes((10, 25, 50), 100, 300, 4, 64, 6000, 1000, 14, 64, (1, 4, 16, 64, 200)),
        paper=Sizes((10, 50, 100, 200), 300, 10_000, 5, 64, 60_000, 10_000, 28, 512, (1, 4, 16, 64, 200)),
    )
    data, begin = load(sizes), starts()
    arrays: dict[str, np.ndarray] = {
        "depths": np.array(sizes.depths),
        "dataset": np.array(data.name),
        "starts": np.array(list(begin)),
        "width": np.array(sizes.width),
    }
    jobs = [(name, depth) for name in begin for depth in sizes.depths if name not in OFF or depth == sizes.depths[-1]]
    for name, depth in progress("training")(jobs):
        steps, accuracy = train(begin[name], depth, data, sizes)
        arrays[f"{name}_{depth}_accuracy"] = accuracy
        arrays["steps"] = steps
    for name in progress("kernels")(["relu", "elu", "tanh", "tanh_ordered"]):
        arrays[f"{name}_kernel"] = predicted(begin[name], data, sizes)
    return arrays | {"kernel_depths": np.array(sizes.kernel_depths)}


def load(sizes: Sizes) -> datasets.Dataset:
    """MNIST where its files are, else the digits that come with scikit-learn."""
    if mnist_is_there():
        return datasets.mnist(sizes.n_train, sizes.n_test, target="class", flatten=True, image_size=sizes.image_size)
    return datasets.digits(min(sizes.n_train, 1400), min(sizes.n_test, 397), target="class")


def scaled(x: Tensor, start: Start) -> Tensor:
    """Each example at the mean square that the initialization needs."""
    rows = x.flatten(1).to(device(), torch.float32)
    return rows * (start.input_mean_square / rows.square().mean(1, keepdim=True)).sqrt()


def train(start: Start, depth: int, data: datasets.Dataset, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Recorded steps, and the test accuracy of each seed there, [n_seeds, recorded]."""
    generator = torch.Generator().manual_seed(SEED)
    x, y, x_test, y_test = scaled(data.x_train, start), data.y_train, scaled(data.x_test, start), data.y_test
    y, y_test = y.to(device()), y_test.to(device())
    features = [x.shape[1], *[sizes.width] * depth, 10]
    parameters = []
    for fan_in, fan_out in pairwise(features):
        weight = torch.randn(sizes.n_seeds, fan_in, fan_out, generator=generator) * start.sigma_w / math.sqrt(fan_in)
        bias = torch.randn(sizes.n_seeds, 1, fan_out, generator=generator) * start.sigma_b
        parameters += [weight.to(device()).requires_grad_(), bias.to(device()).requires_grad_()]
    record = np.unique(np.linspace(0, sizes.n_steps, 13).astype(int))
    accuracy = []
    for step in range(sizes.n_steps + 1):
        if step in record:
            with torch.no_grad():
                guess = forward(parameters, x_test.expand(sizes.n_seeds, -1, -1), start.activation).argmax(-1)
            accuracy.append((guess == y_test).double().mean(1).cpu().numpy())
        batch = torch.randint(len(x), (sizes.n_seeds, sizes.batch_size), generator=generator)
        outputs = forward(parameters, x[batch.to(device())], start.activation)
        # The sum over seeds: each seed's gradient is that of its own mean loss.
        loss = functional.cross_entropy(outputs.flatten(0, 1), y[batch.to(device())].flatten()) * sizes.n_seeds
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                parameter.sub_(gradient, alpha=LEARNING_RATE)
    return record, np.stack(accuracy, 1)


def forward(parameters: list[Tensor], x: Tensor, activation: str) -> Tensor:
    """Outputs [n_seeds, n, 10]."""
    phi = networks.ACTIVATIONS[activation]
    for index, (weight, bias) in enumerate(zip(parameters[::2], parameters[1::2])):
        x = torch.baddbmm(bias, x if index == 0 else phi(x), weight)
    return x


def predicted(start: Start, data: datasets.Dataset, sizes: Sizes) -> np.ndarray:
    """For each depth: condition number of K^L, and the time of gradient flow to a tenth of the first loss, [2, depths].

    Time is in units of 1 / the largest rate, that is of the largest stable learning rate times 1/2. The targets are the
    classes, +0.9 and -0.1, the network starts from 0: the loss at time t is that of exp(-K t) y.
    """
    x = scaled(data.x_train[: sizes.n_kernel], start).double()
    y = functional.one_hot(data.y_train[: sizes.n_kernel], 10).double().to(x.device) - 0.1
    rows = []
    for depth in sizes.kernel_depths:
        network = networks.MLP(
            x.shape[1],
            1,
            1,
            depth=depth,
            activation=start.activation,
            sigma_w=start.sigma_w,
            sigma_b=start.sigma_b,
        )
        eigenvalues, vectors = torch.linalg.eigh(meanfield.analytic_ntk(x, None, network))
        rates = eigenvalues.clamp_min(0) / eigenvalues.max()
        weights = (vectors.T @ y).square().sum(1)
        times = torch.logspace(-2, 16, 3601, dtype=torch.float64, device=x.device)
        loss = (torch.exp(-2 * times[:, None] * rates) * weights).sum(1) / weights.sum()
        reached = (loss <= LOSS_TO_REACH).nonzero()
        time = float(times[reached[0, 0]]) if len(reached) else math.inf
        floor = torch.finfo(torch.float64).eps * len(x)
        rows.append((1 / max(float(rates.min()), floor), time))
    return np.array(rows).T


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
