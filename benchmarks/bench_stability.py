"""Learning rates at which real training fails, against ``stability.max_lr`` and ``stability.max_lr_along_path``.

Ten small networks, half of them with momentum 0.9. The threshold is bisected in real training: ``N_RUNS`` runs of
``N_STEPS`` steps fail if most of them diverge or end with a loss above its start. Results with their environment go to
benchmarks/results/stability.json.

    .venv/bin/python -m benchmarks.bench_stability
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import provenance, stability

RESULT = Path(__file__).parent / "results" / "stability.json"
N_RUNS, N_STEPS = 5, 200
FACTOR = 1.07
"""Width of the bracket that is left around the threshold."""


@dataclass(frozen=True)
class Case:
    """A network with its data and loss, and how it is trained."""

    name: str
    problem: Callable[[], sgdsde.Problem]
    batch_size: int
    momentum: float = 0.0

    @property
    def words(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "sampling": "with_replacement"}


class Attention(nn.Module):
    """One block of self-attention over the rows of an image: residual connection, layer norm, mean read-out."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.hidden, self.readout = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.view(-1, 8, 8))
        x = self.norm(x + self.mix(x, x, x, need_weights=False)[0])
        return self.readout(torch.relu(self.hidden(x)).mean(1))


def digits(model: Callable[[], nn.Module], n: int, *, classes: int = 1, seed: int = 0) -> sgdsde.Problem:
    """Signs of digits under squared error, or the first ``classes`` digits under cross-entropy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = model()
    if classes == 1:
        data = sgdsde.datasets.digits(n, 1, seed=seed)
        return sgdsde.Problem(network, data.x_train, data.y_train, loss=nn.MSELoss())
    data = sgdsde.datasets.digits(1000, 1, target="class", seed=seed)
    chosen = (data.y_train < classes).nonzero().flatten()[:n]
    return sgdsde.Problem(network, data.x_train[chosen], data.y_train[chosen], loss=nn.CrossEntropyLoss())


def teacher(model: Callable[[], nn.Module], n: int, *, seed: int = 0) -> sgdsde.Problem:
    """Two outputs of a tanh teacher under squared error."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = model()
    data = sgdsde.datasets.synthetic(n, 1, 12, 2, teacher="mlp", noise_std=0.1, seed=seed)
    return sgdsde.Problem(network, data.x_train, data.y_train, loss=nn.MSELoss())


def dense(*sizes: int, activation: type[nn.Module], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def convolutional(n_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, n_outputs),
    )


CASES = (
    Case("dense ReLU, squared error", lambda: digits(lambda: dense(64, 64, 1, activation=nn.ReLU), 128), 8),
    Case("dense tanh, squared error", lambda: teacher(lambda: dense(12, 48, 48, 2, activation=nn.Tanh), 96), 8, 0.9),
    Case(
        "dense ReLU, cross-entropy",
        lambda: digits(lambda: dense(64, 48, 48, 4, activation=nn.ReLU), 96, classes=4),
        8,
        0.9,
    ),
    Case(
        "dense GELU, cross-entropy",
        lambda: digits(lambda: dense(64, 64, 4, activation=nn.GELU), 96, classes=4),
        32,
        0.9,
    ),
    Case("convolutional, squared error", lambda: digits(lambda: convolutional(1), 96), 4),
    Case("convolutional, cross-entropy", lambda: digits(lambda: convolutional(4), 96, classes=4), 16, 0.9),
    Case(
        "layer norm, cross-entropy",
        lambda: digits(lambda: dense(64, 48, 48, 4, activation=nn.ReLU, norm=True), 96, classes=4),
        8,
    ),
    Case(
        "layer norm, squared error",
        lambda: teacher(lambda: dense(12, 48, 48, 2, activation=nn.ReLU, norm=True), 96),
        16,
    ),
    Case("attention, cross-entropy", lambda: digits(lambda: Attention(4), 96, classes=4), 16, 0.9),
    Case("attention, squared error", lambda: digits(lambda: Attention(1), 96), 8),
)


def fails(case: Case, problem: sgdsde.Problem, lr: float) -> bool:
    """Whether most runs diverge or end above the loss that they start from."""
    sgd = sgdsde.SGD(lr, case.batch_size, **case.words)
    losses = sgdsde.run_ensemble(problem, sgd, N_STEPS, N_RUNS, record=[0, N_STEPS]).train_loss.samples
    assert losses is not None
    return bool(((losses[:, 1] > losses[:, 0]) | ~losses[:, 1].isfinite()).double().mean() > 0.5)


def threshold(failing: Callable[[float], bool], start: float) -> float:
    """The geometric middle of a bracket of width ``FACTOR`` around the learning rate from which runs fail."""
    low, high, factor = start, start, 1.5
    if failing(start):
        while failing(low := low / factor):
            high = low
    else:
        while not failing(high := high * factor):
            low = high
    while high / low > FACTOR:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if failing(middle) else (middle, high)
    return math.sqrt(low * high)


def measure(case: Case) -> dict[str, Any]:
    """The measured threshold over both limits, and what the second cost in processor seconds and plain runs."""
    problem = case.problem()
    initial = stability.max_lr(problem, case.batch_size, **case.words)
    started = time.process_time()
    along = stability.max_lr_along_path(problem, case.batch_size, n_steps=N_STEPS, **case.words)
    seconds = time.process_time() - started
    measured = threshold(lambda lr: fails(case, problem, lr), initial)
    return {
        "batch_size": case.batch_size,
        "momentum": case.momentum,
        "max_lr": initial,
        "max_lr_along_path": float(along),
        "measured": measured,
        "measured_over_max_lr": measured / initial,
        "measured_over_max_lr_along_path": measured / along,
        "seconds": seconds,
        "bound": along.bound,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for case in CASES:
        rows[case.name] = row = measure(case)
        first, second = row["measured_over_max_lr"], row["measured_over_max_lr_along_path"]
        print(f"{case.name:32s} B {case.batch_size:2d} momentum {case.momentum}: {first:.3g} {second:.3g}", flush=True)
    within = {
        of: sum(1 / 1.5 <= row[f"measured_over_{of}"] <= 1.5 for row in rows.values())
        for of in ("max_lr", "max_lr_along_path")
    }
    print(f"within a factor 1.5 of the measured threshold, of {len(rows)}: {within}")
    RESULT.parent.mkdir(exist_ok=True)
    environment = {**provenance.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    RESULT.write_text(json.dumps({"environment": environment, "within_1.5": within, "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
