"""What the warning of a frozen kernel sees, what it costs, and what the error is: the table of choosing_a_dynamics.md.

``python -m benchmarks.bench_frozen_kernel`` prints it and writes benchmarks/results/frozen_kernel.json; two minutes
on one core. Torch's own initialization in float32, digits, 32 real runs; seconds are processor time, one thread.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import provenance
from sgdsde.frozen_kernel import kernel_motion

RESULT = Path(__file__).parent / "results" / "frozen_kernel.json"
FRACTION, CROSS_ENTROPY_LR = 0.3, 0.5
"""Learning rate in units of the mean-square limit under squared error; itself, times 1 - momentum, under the other."""


@dataclass(frozen=True)
class Setting:
    """Two hidden layers of one width; one output means squared error of +-1, ten a class."""

    activation: type[nn.Module]
    width: int
    n_outputs: int
    cross_entropy: bool
    momentum: float
    batch_size: int
    n_steps: int

    def __str__(self) -> str:
        loss = "cross-entropy" if self.cross_entropy else "squared"
        network = f"{self.activation.__name__} 64-{self.width}-{self.width}-{self.n_outputs}"
        return f"{network}, {loss}, {self.momentum:g}, {self.batch_size}, {self.n_steps}"

    def problem(self) -> sgdsde.Problem:
        data = sgdsde.datasets.digits(n_train=64 if self.n_outputs > 1 else 256, target="class")
        x, classes = data.x_train.flatten(1).float(), data.y_train
        torch.manual_seed(0)
        sizes = (64, self.width, self.width)
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), self.activation())]
        model = nn.Sequential(*layers, nn.Linear(self.width, self.n_outputs))
        if self.cross_entropy:
            return sgdsde.Problem(model, x, classes, loss=nn.CrossEntropyLoss())
        signs = torch.where(classes < 5, 1.0, -1.0)[:, None]
        targets = signs if self.n_outputs == 1 else nn.functional.one_hot(classes, 10).float()
        return sgdsde.Problem(model, x, targets, loss=nn.MSELoss())


SETTINGS = (
    Setting(nn.ReLU, 64, 1, False, 0.0, 8, 400),
    Setting(nn.ReLU, 256, 1, False, 0.0, 8, 400),
    Setting(nn.Tanh, 32, 1, False, 0.9, 8, 300),
    Setting(nn.ReLU, 128, 10, False, 0.0, 16, 200),
    Setting(nn.ReLU, 64, 10, True, 0.0, 16, 200),
    Setting(nn.Tanh, 128, 10, True, 0.9, 16, 200),
    Setting(nn.ReLU, 2048, 1, False, 0.0, 8, 100),
)


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def plain_run(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int) -> None:
    """One run of torch.optim.SGD."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.lr_at(0), momentum=sgd.momentum)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_steps):
        batch: Tensor = torch.randint(0, problem.n_train, (sgd.batch_size,), generator=generator)
        optimizer.zero_grad()
        problem.loss(model(problem.x_train[batch]), problem.y_train[batch]).backward()
        optimizer.step()


def row(setting: Setting) -> dict[str, float]:
    problem = setting.problem()
    linearization = sgdsde.linearize(problem)
    lr = CROSS_ENTROPY_LR * (1 - setting.momentum)
    if not setting.cross_entropy:
        lr = FRACTION * sgdsde.stability.max_lr(linearization, setting.batch_size, momentum=setting.momentum)
    sgd = sgdsde.SGD(lr, setting.batch_size, momentum=setting.momentum)
    predicted = sgdsde.predict(linearization, sgd, setting.n_steps)
    measured = sgdsde.run_ensemble(problem, sgd, setting.n_steps, 32)
    run = min(seconds(lambda: plain_run(problem, sgd, setting.n_steps)) for _ in range(3))
    check = min(seconds(lambda: kernel_motion(linearization, sgd, predicted)) for _ in range(3))
    motion = kernel_motion(linearization, sgd, predicted)
    assert motion is not None
    error = (predicted.train_loss.mean / measured.train_loss.mean - 1).abs().max()
    return {
        "drift": motion.drift,
        "gap": motion.gap,
        "share": motion.share,
        "error": float(error),
        "runs": check / run,
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for setting in SETTINGS:
        rows.append({"setting": str(setting), **row(setting)})
        print(json.dumps(rows[-1]), flush=True)
    RESULT.write_text(
        json.dumps({"environment": {**provenance.machine(), "versions": provenance.versions()}, "rows": rows}, indent=2)
        + "\n"
    )


if __name__ == "__main__":
    main()
