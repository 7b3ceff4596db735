"""Answers to fifteen everyday settings against runs, and how often intervals hold in repeated measurements.

``python -m benchmarks.bench_answers`` writes benchmarks/results/answers.json after each setting; a few minutes of
processor time. Torch's own initialization in float32, digits; costs are processor time of one thread in runs of
torch.optim.SGD without evaluations of the loss.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde
from benchmarks.bench_surface import dense, rounded
from sgdsde import provenance
from sgdsde.measurement import NORMAL, Asked, RealRuns, clock, complete
from sgdsde.measurement.estimate import widening

RESULT = Path(__file__).parent / "results" / "answers.json"
TOLERANCE, N_TRUTH = 0.05, 192
POOL, REPEATS, TARGETS = 512, 400, (0.03, 0.06)


class Attention(nn.Module):
    """Eight tokens of eight pixels, one head, read out from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.k, self.v = (nn.Linear(a, 16) for a in (8, 16, 16, 16))
        self.read = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.view(*x.shape[:-1], 8, 8))
        weights = torch.softmax(self.q(h) @ self.k(h).mT / 4, dim=-1)
        return self.read((h + weights @ self.v(h)).mean(-2))


def convolutional() -> nn.Module:
    layers = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(72, 10))


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 1))


def tanh(*widths: int) -> Callable[[], nn.Module]:
    return dense(64, *widths, 10, activation=nn.Tanh)


def wide() -> nn.Module:
    return sgdsde.networks.MLP(64, 1024, 1, depth=2)


@dataclass(frozen=True)
class Setting:
    """One everyday setting; ``target``: "sign" and "onehot" for squared error, "class" for cross-entropy."""

    name: str
    network: Callable[[], nn.Module]
    target: str
    n_train: int
    n_steps: int
    sgd: sgdsde.SGD

    def problem(self) -> sgdsde.Problem:
        data = sgdsde.datasets.digits(n_train=self.n_train, n_test=200, target="class")
        torch.manual_seed(5)
        model = self.network()
        loss = nn.CrossEntropyLoss() if self.target == "class" else nn.MSELoss()
        x, x_test = (part.flatten(1).float() for part in (data.x_train, data.x_test))
        y, y_test = (self._targets(part) for part in (data.y_train, data.y_test))
        return sgdsde.Problem(model, x, y, loss=loss, x_test=x_test, y_test=y_test)

    def _targets(self, classes: Tensor) -> Tensor:
        if self.target == "sign":
            return torch.where(classes % 2 == 0, -1.0, 1.0)[:, None]
        return classes if self.target == "class" else nn.functional.one_hot(classes, 10).float()


SGD = sgdsde.SGD
HEAVY = SGD(0.02, 16, momentum=0.9, sampling="shuffled")


def cosine(step: int) -> float:
    return 0.02 * (1 + math.cos(math.pi * step / 300))


SETTINGS = (
    Setting("ReLU 64-64-1", dense(64, 64, 1), "sign", 256, 400, SGD(0.03, 8)),
    Setting("ReLU 64-256-1", dense(64, 256, 1), "sign", 256, 200, SGD(0.02, 8)),
    Setting("ReLU 64-64-64-1, decay", dense(64, 64, 64, 1), "sign", 256, 200, SGD(0.03, 8, weight_decay=1e-3)),
    Setting("tanh 64-128-128-10, momentum", tanh(128, 128), "onehot", 128, 200, SGD(0.1, 8, momentum=0.9)),
    Setting("ReLU 64-128-10, shuffled", dense(64, 128, 10), "onehot", 128, 150, SGD(0.1, 16, sampling="shuffled")),
    Setting("ReLU 64-64-1, Nesterov", dense(64, 64, 1), "sign", 256, 200, SGD(0.005, 8, momentum=0.9, nesterov=True)),
    Setting("ReLU 64-64-1, cosine", dense(64, 64, 1), "sign", 256, 300, SGD(cosine, 8)),
    Setting("ReLU 64-64-1, label noise", dense(64, 64, 1), "sign", 128, 200, SGD(0.03, 8, label_noise_std=0.3)),
    Setting("wide NTK 64-1024-1024-1", wide, "sign", 48, 60, SGD(0.2, 8)),
    Setting("ReLU 64-32-10, cross-entropy", dense(64, 32, 10), "class", 256, 200, SGD(0.05, 16)),
    Setting("ReLU 64-128-10, cross-entropy, momentum, shuffled", dense(64, 128, 10), "class", 512, 120, HEAVY),
    Setting("tanh 64-128-10, cross-entropy", tanh(128), "class", 256, 150, SGD(0.1, 16)),
    Setting("convolution, cross-entropy, momentum, shuffled", convolutional, "class", 256, 60, HEAVY),
    Setting("layer norm", normalized, "sign", 256, 200, SGD(0.03, 8)),
    Setting("attention, cross-entropy", Attention, "class", 256, 100, SGD(0.1, 16)),
)


def answered(setting: Setting) -> dict[str, object]:
    """One answer held against further runs: errors, standard errors and costs."""
    problem = setting.problem()
    record = [0, *(max(1, round(setting.n_steps * share)) for share in (0.02, 0.06, 0.15, 0.35, 0.65, 1.0))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = sgdsde.answer(problem, setting.sgd, setting.n_steps, tolerance=TOLERANCE, record=record)
    truth = sgdsde.run_ensemble(problem, setting.sgd, setting.n_steps, N_TRUTH, record=record, seed=31)
    error = max(float((made.losses[side].mean / truth.losses[side].mean - 1).abs().max()) for side in made.losses)
    known = max(float((band.standard_error / band.mean).max()) for band in truth.losses.values())
    done = made.effort.get("n_runs", 0.0) + made.effort.get("runs_saved", 0.0)
    return {
        "setting": setting.name,
        "origin": made.origin,
        "error": error,
        "error_of_the_truth": known,
        "expected_error": made.effort["expected_error"],
        "cost_in_runs": made.effort["cost_in_runs"],
        "n_runs": made.effort.get("n_runs", 0.0),
        "plain_runs_of_the_same_error": done,
        "warnings": [str(one.message) for one in caught],
        "obtained": made.obtained,
    }


class Drawn(RealRuns):
    """Runs drawn from a pool of runs that were done before."""

    pool: sgdsde.Trajectory
    stream: np.random.Generator

    def extend(self, more: int) -> None:
        chosen = torch.from_numpy(self.stream.integers(0, self.pool.n_runs, more))
        bands = {
            f"{side}_loss": sgdsde.LossBand.from_samples(band.samples[chosen])
            for side, band in self.pool.losses.items()
            if band.samples is not None
        }
        self.parts.append(replace(self.pool, n_runs=more, diverged_at=self.pool.diverged_at[chosen], **bands))


def coverage(setting: Setting) -> list[dict[str, object]]:
    """How often the 95 % interval of a measurement that stops by itself holds the mean of the pool it draws from."""
    problem, sgd, n_steps = setting.problem(), setting.sgd, setting.n_steps
    record = [0, *(round(n_steps * share) for share in (0.05, 0.2, 0.5, 1.0))]
    pool = sgdsde.run_ensemble(problem, sgd, n_steps, POOL, record=record, seed=41)
    rows: list[dict[str, object]] = []
    for target in TARGETS:
        held, counts = {side: torch.zeros(len(record)) for side in pool.losses}, []
        for repeat in range(REPEATS):
            runs = Drawn(problem, sgd, n_steps, record)
            runs.pool, runs.stream = pool, np.random.default_rng([7, repeat])
            runs.extend(8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = complete(runs, Asked(target, 1024, "never"), clock(problem.device))
            counts.append(made.n_runs)
            for side, band in made.losses.items():
                reach = NORMAL * widening(made.n_runs - 1) * band.standard_error + 1e-12
                held[side] += (band.mean - pool.losses[side].mean).abs() <= reach
        shares = [float(share) for side in held for share in (held[side] / REPEATS)[1:]]
        row = {"setting": setting.name, "target": target, "n_runs": float(np.mean(counts)), "coverage": shares}
        row["spread"] = max(float((band.std / band.mean).max()) for band in pool.losses.values())
        rows.append(row)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    rows: list[object] = []
    repeated: list[object] = []
    for setting in SETTINGS:
        rows.append(rounded(answered(setting)))
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
        if setting.name in ("ReLU 64-64-1", "ReLU 64-32-10, cross-entropy"):
            repeated += [rounded(one) for one in coverage(setting)]
            sys.stdout.write(f"{repeated[-2:]}\n")
        environment = {**provenance.machine(), "versions": provenance.versions()}
        result = {"environment": environment, "answers": rows, "coverage": repeated}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
