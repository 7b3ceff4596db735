"""What ``MovingKernel`` costs and how wrong it is where networks learn features: the table of choosing_a_dynamics.md.

``python -m benchmarks.bench_moving_kernel`` prints it and writes benchmarks/results/moving_kernel.json; ten minutes
on one core. ``--settings relu_scalar --inits 0 1`` measures a part and writes nothing. Torch's own initialization
in float32, digits; cost is in plain runs of ``torch.optim.SGD`` of the same setting, processor time, one thread, timed
before and after each prediction; it holds everything that ``predict(problem, ...)`` does. Errors are the largest
relative ones of the mean loss at eight steps, against 128 real runs. Initialization 2 was held back while the
defaults were chosen.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sgdsde
from benchmarks.bench_frozen_kernel import plain_run, seconds
from sgdsde import provenance
from sgdsde.dynamics import MovingKernel

RESULT = Path(__file__).parent / "results" / "moving_kernel.json"
N_RUNS = 128
MOMENTS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Of the training, where losses are compared."""

INITIALIZATIONS = (0, 1, 2)


def relu_scalar() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def tanh_deep() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 10))


def relu_classes() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Setting:
    """A network, its data and its training; ``signs``: one output +-1, ``onehot``: ten, ``class``: cross-entropy."""

    name: str
    network: Callable[[], nn.Module]
    target: str
    n_train: int
    n_steps: int
    lr: float
    batch_size: int
    words: dict[str, Any] = field(default_factory=dict)

    def problem(self, initialization: int) -> sgdsde.Problem:
        data = sgdsde.datasets.digits(self.n_train, 256, target="class")
        x, x_test = data.x_train.flatten(1).float(), data.x_test.flatten(1).float()
        shift, scale = x.mean(), x.std()
        torch.manual_seed(initialization)
        model = self.network()
        loss = nn.CrossEntropyLoss() if self.target == "class" else nn.MSELoss()
        y, y_test = (self._targets(classes) for classes in (data.y_train, data.y_test))
        return sgdsde.Problem(model, (x - shift) / scale, y, loss=loss, x_test=(x_test - shift) / scale, y_test=y_test)

    def _targets(self, classes: Tensor) -> Tensor:
        if self.target == "class":
            return classes
        if self.target == "signs":
            return torch.where(classes % 2 == 1, 1.0, -1.0)[:, None]
        return nn.functional.one_hot(classes, 10).float()

    @property
    def sgd(self) -> sgdsde.SGD:
        return sgdsde.SGD(self.lr, self.batch_size, **{"sampling": "without_replacement", **self.words})

    @property
    def record(self) -> list[int]:
        return sorted({max(1, round(self.n_steps * share)) for share in MOMENTS})


SETTINGS = (
    Setting("relu_scalar", relu_scalar, "signs", 256, 400, 0.03, 8),
    Setting("tanh_deep", tanh_deep, "onehot", 128, 200, 0.1, 8, {"momentum": 0.9}),
    Setting("relu_classes", relu_classes, "class", 256, 160, 0.05, 16),
    Setting("convolutions", convolutions, "class", 256, 120, 0.05, 16),
)


def row(setting: Setting, initialization: int, words: dict[str, Any]) -> dict[str, Any]:
    """Cost, errors and drift of one prediction."""
    problem, sgd = setting.problem(initialization), setting.sgd
    measured = reference(setting, initialization, problem)
    refreshes: list[Any] = []
    found: dict[str, Any] = {"setting": setting.name, "initialization": initialization}
    runs = [seconds(lambda: plain_run(problem, sgd, setting.n_steps)) for _ in range(3)]
    start = time.process_time()
    try:
        dynamics = MovingKernel(on_refresh=refreshes.append, **words)
        predicted = sgdsde.predict(problem, sgd, setting.n_steps, record=setting.record, dynamics=dynamics)
    except ValueError as refusal:
        predicted, found["refused"] = None, str(refusal)
    taken = time.process_time() - start
    runs += [seconds(lambda: plain_run(problem, sgd, setting.n_steps)) for _ in range(3)]
    found |= {"seconds": taken, "run": min(runs), "runs": taken / min(runs), "refreshes": len(refreshes)}
    if refreshes:
        found |= {"directions": refreshes[-1].n_directions, "drift": refreshes[-1].drift_from_start}
    if predicted is not None:
        for side in ("train", "test"):
            ours, theirs = getattr(predicted, f"{side}_loss").mean, measured[side]["mean"]
            error = ours / theirs - 1
            found[side] = float(error[error.abs().argmax()])
            found[f"{side}_errors"] = [round(float(value), 4) for value in error]
            found[f"{side}_standard_error"] = float((measured[side]["se"] / theirs).max())
    return found


def reference(setting: Setting, initialization: int, problem: sgdsde.Problem) -> dict[str, dict[str, Tensor]]:
    """Mean losses of the real runs, kept between calls."""
    kept = CACHE / f"{setting.name}_{initialization}_{setting.lr:g}_{setting.n_steps}.pt" if CACHE else None
    if kept is not None and kept.exists():
        return torch.load(kept)
    runs = sgdsde.run_ensemble(problem, setting.sgd, setting.n_steps, N_RUNS, record=setting.record, seed=1)
    losses = {"train": runs.train_loss, "test": runs.test_loss}
    found = {side: {"mean": band.mean, "se": band.standard_error} for side, band in losses.items()}
    if kept is not None:
        torch.save(found, kept)
    return found


CACHE: Path | None = None


def main() -> None:
    global CACHE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="*", default=[setting.name for setting in SETTINGS])
    parser.add_argument("--inits", nargs="*", type=int, default=list(INITIALIZATIONS))
    parser.add_argument("--words", default="{}", help="of MovingKernel, as JSON")
    parser.add_argument("--cache", type=Path, default=None, help="folder that keeps the real runs")
    arguments = parser.parse_args()
    CACHE = arguments.cache
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm = SETTINGS[0].problem(0)
    sgdsde.predict(warm, SETTINGS[0].sgd, 2, dynamics=MovingKernel())  # what torch does once in a process
    rows = []
    for setting in SETTINGS:
        if setting.name not in arguments.settings:
            continue
        for initialization in arguments.inits:
            rows.append(row(setting, initialization, json.loads(arguments.words)))
            print(json.dumps(rows[-1]), flush=True)
    if arguments == parser.parse_args([]):
        content = {"environment": {**provenance.machine(), "versions": provenance.versions()}, "rows": rows}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
