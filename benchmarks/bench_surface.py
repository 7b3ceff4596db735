"""Response surfaces against runs of other seeds: the table of docs/measuring.md.

``python -m benchmarks.bench_surface`` fits one surface for each of three initializations of every setting below and
holds it against real runs at six settings drawn at random in its box; with
the names of some settings it does these.
Results go to benchmarks/results/surface.json after each. Torch's own initialization in float32,
digits; costs are processor time of one thread in runs of torch.optim.SGD. About six minutes of processor time in all.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde
from sgdsde import provenance
from sgdsde.kernel.moved_weights import kernel_between

RESULT = Path(__file__).parent / "results" / "surface.json"
INITIALIZATIONS, DRAWN, EXAMPLES = 3, 6, 64


@dataclass(frozen=True)
class Setting:
    """A network on digits: one output means squared error of +-1, ten outputs of one-hot targets or a class."""

    name: str
    network: Callable[[], nn.Module]
    loss: nn.Module
    target: str
    n_train: int
    n_steps: int
    sgd: sgdsde.SGD
    n_truth: int

    def problem(self, initialization: int) -> sgdsde.Problem:
        data = sgdsde.datasets.digits(n_train=self.n_train, n_test=300, target="class")
        torch.manual_seed(initialization)
        model = self.network()
        train, test = (self._targets(y) for y in (data.y_train, data.y_test))
        x, x_test = data.x_train.flatten(1).float(), data.x_test.flatten(1).float()
        return sgdsde.Problem(model, x, train, loss=self.loss, x_test=x_test, y_test=test)

    def _targets(self, classes: Tensor) -> Tensor:
        if self.target == "sign":
            return torch.where(classes % 2 == 0, -1.0, 1.0)[:, None]
        return classes if self.target == "class" else nn.functional.one_hot(classes, 10).float()


def dense(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b), activation()]
        return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))

    return build


MOMENTUM = sgdsde.SGD(0.1, 8, momentum=0.9)
SETTINGS = (
    Setting(
        "tanh, ten outputs", dense(64, 128, 128, 10, activation=nn.Tanh), nn.MSELoss(), "onehot", 128, 200, MOMENTUM, 64
    ),
    Setting(
        "cross-entropy, large steps",
        dense(64, 128, 10),
        nn.CrossEntropyLoss(),
        "class",
        512,
        160,
        sgdsde.SGD(0.1, 16, momentum=0.9, sampling="shuffled"),
        64,
    ),
    Setting("narrow ReLU", dense(64, 64, 1), nn.MSELoss(), "sign", 256, 400, sgdsde.SGD(0.03, 8), 64),
    Setting("wide ReLU", dense(64, 256, 1), nn.MSELoss(), "sign", 256, 300, sgdsde.SGD(0.02, 8), 64),
    Setting(
        "cross-entropy",
        dense(64, 128, 10),
        nn.CrossEntropyLoss(),
        "class",
        512,
        120,
        sgdsde.SGD(0.01, 16, momentum=0.9, sampling="shuffled"),
        64,
    ),
)


def rounded(value: object) -> object:
    """The same with six digits a number."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def drift(problem: sgdsde.Problem, sgd: sgdsde.SGD, n_steps: int) -> float:
    """|K - K_0| / |K_0| at the end of one real run, on some examples."""
    params = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
    optimizer = torch.optim.SGD(list(params.values()), lr=sgd.lr_at(0), momentum=sgd.momentum)
    for batch in sgdsde.sampling.batch_indices(sgd, problem.n_train, n_steps, seed=9, run=0):
        optimizer.zero_grad()
        problem.criterion.mean(problem.forward(params, problem.x_train[batch]), problem.y_train[batch]).backward()
        optimizer.step()
    x = problem.x_train[: EXAMPLES // problem.n_outputs + 1]
    after = kernel_between(problem, {name: value.detach() for name, value in params.items()}, x)
    before = kernel_between(problem, problem.params, x)
    return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))


def drawn(base: sgdsde.SGD, generator: np.random.Generator) -> sgdsde.SGD:
    """A setting of the box: the batch size log-uniform, the learning rate uniform."""
    size = base.batch_size_at(0)
    batch = round(size * 4 ** generator.uniform())
    low = 0.6 - 0.1 * np.log(batch / size) / np.log(4)
    return replace(base, lr=base.lr_at(0) * float(generator.uniform(low, 1.2)), batch_size=batch)


def errors(surface: sgdsde.EnsembleSurface, sgd: sgdsde.SGD, n_truth: int) -> dict[str, object]:
    """Relative errors, combined standard errors and ratios of spreads at one setting, train and test."""
    found = surface.at(sgd)
    record = found.steps.tolist()
    truth = sgdsde.run_ensemble(surface.problem, sgd, record[-1], n_truth, seed=777, record=record)
    row: dict[str, object] = {"lr": sgd.lr, "batch_size": sgd.batch_size}
    for side, band in found.losses.items():
        other = truth.losses[side]
        row[f"{side}_error"] = (band.mean / other.mean - 1)[1:].tolist()
        row[f"{side}_own"] = (band.standard_error / other.mean)[1:].tolist()
        row[f"{side}_truth"] = (other.standard_error / other.mean)[1:].tolist()
        row[f"{side}_spread"] = (band.std / other.std)[1:].tolist()
    return row


def row(setting: Setting, initialization: int) -> dict[str, object]:
    problem = setting.problem(initialization)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sgdsde.SurfaceWarning)
        surface = sgdsde.EnsembleSurface.fit(problem, setting.sgd, setting.n_steps, seed=initialization)
    made: dict[str, object] = {
        "setting": setting.name,
        "initialization": initialization,
        "drift": drift(problem, setting.sgd, setting.n_steps),
        "cost_in_runs": surface.cost_in_runs,
        "n_runs": [anchor.measured.n_runs for anchor in surface.anchors],
        "spread": max(anchor.largest_spread for anchor in surface.anchors),
        "misfit": {side: values.tolist() for side, values in surface.misfit.items()},
        "misfit_error": {side: values.tolist() for side, values in surface.misfit_error.items()},
        "refusal": surface.refusal,
    }
    if not surface.refusal:
        stream = np.random.default_rng([1, initialization, setting.n_steps])
        made["drawn"] = [errors(surface, drawn(setting.sgd, stream), setting.n_truth) for _ in range(DRAWN)]
    return made


def summary(made: dict[str, object]) -> str:
    text = f"{made['setting']}, {made['initialization']}: drift {made['drift']:.2f}, {made['cost_in_runs']:.0f} runs"
    if made["refusal"]:
        return f"{text}; refused: {made['refusal']}"
    worst = [max(abs(e) for side in ("train", "test") for e in one[f"{side}_error"]) for one in made["drawn"]]  # type: ignore[attr-defined]
    return f"{text}; worst errors " + " ".join(f"{100 * error:.1f}" for error in worst)


def main() -> None:
    torch.set_num_threads(1)
    chosen = set(sys.argv[1:])
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for setting in SETTINGS:
        if chosen and setting.name not in chosen:
            continue
        rows = [one for one in rows if one["setting"] != setting.name]
        for initialization in range(INITIALIZATIONS):
            rows.append(rounded(row(setting, initialization)))
            sys.stdout.write(summary(rows[-1]) + "\n")
            sys.stdout.flush()
            environment = {**provenance.machine(), "versions": provenance.versions()}
            RESULT.write_text(json.dumps({"environment": environment, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
