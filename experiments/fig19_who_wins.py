"""Cost and accuracy of the mean training loss: predicted, interpolated, measured; 5,000 to 5,000,000 weights.

Cost: processor time of one thread, in plain runs of ``torch.optim.SGD`` of the same setting, timed in the same process
before and after each method. Error: the largest relative one over the recorded steps, against many runs of other seeds.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

import sgdsde
from experiments.frame import Progress, Scale, by_scale, main
from experiments.plain_sgd import plain_sgd
from experiments.problems import mnist_is_there
from sgdsde.dynamics import MovingKernel
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.measurement import plain_seconds

SEED = 0
TRUTH = 10_000
"""Seed of the runs that everything is held against."""

T = TypeVar("T")

METHODS = ("frozen", "moving", "surface")
RUNS = (1, 4, 16, 64)
DRIFT_EXAMPLES = 64
DRAWS = 2000
"""Ensembles drawn from the pool of runs, for the error of a mean of R runs."""

INSIDE = (0.9, 2)
"""(lr, B) of the setting asked for, in units of the base of its surface: none of the anchors."""


@dataclass(frozen=True)
class Setting:
    """A ReLU network on images, targets +1 and -1, and its training.

    Attributes:
        start: ``"torch"``: the layers of torch as they come; ``"ntk"``: weights of variance 2 / fan-in, no biases.
        pool: runs that everything is held against. timed: numbers of runs whose ensembles are timed.
        methods: besides real runs. sweep: numbers of settings predicted in one call, timed.
    """

    name: str
    start: Literal["torch", "ntk"]
    hidden: tuple[int, ...]
    n_train: int
    n_steps: int
    sgd: sgdsde.SGD
    pool: int
    timed: tuple[int, ...] = RUNS
    methods: tuple[str, ...] = METHODS
    sweep: tuple[int, ...] = ()

    def problem(self) -> sgdsde.Problem:
        """A new one, with nothing computed yet."""
        if self.n_train > 1500:
            data = sgdsde.datasets.mnist(self.n_train, 1, image_size=14, flatten=True, seed=SEED)
        else:
            data = sgdsde.datasets.digits(self.n_train, 1, flatten=True, seed=SEED)
        x, y = data.x_train.float(), data.y_train.float()
        return sgdsde.Problem(self._network(x.shape[1]), x, y, loss=nn.MSELoss())

    def _network(self, entries: int) -> nn.Module:
        if self.start == "ntk":
            stream = torch.Generator().manual_seed(SEED)
            return sgdsde.networks.MLP(
                entries, self.hidden[0], 1, depth=len(self.hidden), dtype=torch.float32, generator=stream
            )
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            layers: list[nn.Module] = []
            for a, b in pairwise((entries, *self.hidden)):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(self.hidden[-1], 1))


def settings(scale: Scale) -> Iterator[Setting]:
    """From small and rich to large and lazy."""
    if scale == "smoke":
        yield Setting("rich", "torch", (16,), 32, 30, sgdsde.SGD(0.03, 4), 64)
        yield Setting("lazy", "ntk", (256,), 32, 20, sgdsde.SGD(0.2, 4), 64, RUNS, ("frozen", "moving"), (1, 4))
        return
    yield Setting("small, n = 64", "torch", (64,), 64, 400, sgdsde.SGD(0.03, 8), 512)
    yield Setting("small, n = 256", "torch", (64,), 256, 400, sgdsde.SGD(0.03, 8), 512)
    yield Setting("small, lazier", "ntk", (64,), 256, 400, sgdsde.SGD(0.27, 8), 512)
    n, steps, pool = by_scale(scale, smoke=(0, 0, 0), laptop=(512, 200, 96), paper=(1024, 400, 512))
    yield Setting("middle", "torch", (512, 512), n, steps, sgdsde.SGD(0.02, 8), pool)
    yield Setting("middle, lazier", "ntk", (512, 512), n, steps, sgdsde.SGD(0.18, 8), pool, sweep=(1, 4, 16))
    wide = Setting("large", "ntk", (2048, 2048), 1024, 200, sgdsde.SGD(0.18, 8), 12, (1, 4), ("frozen",))
    if scale == "paper":
        wide = replace(wide, pool=64, timed=RUNS, methods=("frozen", "surface"))  # a moving kernel takes 17 GB
        yield replace(wide, name="large, rich", start="torch", sgd=sgdsde.SGD(0.01, 8))
    yield wide
    if scale == "paper" and mnist_is_there():  # a spectrum of thousands of examples takes minutes
        for n, steps in ((2048, 40), (4096, 400)):
            yield replace(
                wide,
                name=f"many examples, n = {n}",
                n_train=n,
                n_steps=steps,
                methods=("frozen",),
                pool=24,
                timed=(1, 4),
            )


def run(scale: Scale, progress: Progress) -> dict[str, np.ndarray]:
    torch.set_num_threads(1)
    warm = Setting("warm-up", "torch", (8,), 16, 16, sgdsde.SGD(0.01, 4), 8, (4,), METHODS, (2,))
    with warnings.catch_warnings():
        # Frozen kernels that should not be, refused surfaces, anything near a limit: all of it is measured here.
        warnings.simplefilter("ignore")
        Comparison(warm).rows()  # what is imported late, before the clock
        rows = [Comparison(setting).rows() for setting in progress("settings")(list(settings(scale)))]
    arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return arrays | {"methods": np.array(METHODS), "runs": np.array(RUNS)}


class Comparison:
    """Every method on one setting."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.sgd, self.n_steps = setting, setting.sgd, setting.n_steps
        self.problem = setting.problem()
        self.units: list[float] = []

    def rows(self) -> dict[str, object]:
        """Costs [low, middle, high] and errors [low, middle, high] of each method, and what they are judged by."""
        costs, found, refused = self._theories()
        runs = [self._timed(self._ensemble(count)) if count in self.setting.timed else None for count in RUNS]
        mean, error, samples = self._truth(found["frozen"])
        judged = [self._error(found[name], mean, error) if name in found else UNKNOWN for name in METHODS]
        setting = self.setting
        return {
            "name": setting.name,
            "start": setting.start,
            "weights": self.problem.functional.n_params,
            "n_train": setting.n_train,
            "n_steps": self.n_steps,
            "drift": self._drift(),
            "truth_runs": len(samples),
            "truth_error": float((error / mean).max()),
            "unit_seconds": float(np.median(self.units)),
            "spread": float((samples.std(0) / mean).max()),
            "refused": refused,
            "cost": [costs.get(name, UNKNOWN) for name in METHODS],
            "error": judged,
            "run_cost": [UNKNOWN if one is None else one[1] for one in runs],
            "run_error": [ensemble_error(samples, count) for count in RUNS],
            "sweep": self._sweep(),
        }

    def _theories(self) -> tuple[dict[str, list[float]], dict[str, Tensor], bool]:
        """Costs, losses at ``self.record``, and whether the surface refuses; the surface fixes the recorded steps."""
        costs, found, refused = {}, {}, False
        self.record = np.unique(np.rint(np.geomspace(self.n_steps / 4, self.n_steps, 3))).astype(int).tolist()
        if "surface" in self.setting.methods:
            surface, costs["surface"] = self._timed(self._surface())
            refused = bool(surface.refusal)
            if not refused:
                made = surface.at(self.sgd)
                self.record, found["surface"] = made.steps[1:].tolist(), made.train_loss.mean[1:]
        for name, dynamics in (("frozen", None), ("moving", MovingKernel())):
            if name in self.setting.methods:
                problem = self.setting.problem()
                try:
                    made, costs[name] = self._timed(
                        lambda: sgdsde.predict(problem, self.sgd, self.n_steps, dynamics=dynamics, record=self.record)  # noqa: B023
                    )
                    found[name] = made.train_loss.mean
                except ValueError:  # refused
                    continue
        return costs, found, refused

    def _surface(self) -> Callable[[], sgdsde.EnsembleSurface]:
        problem, (x, batch) = self.setting.problem(), INSIDE
        base = replace(self.sgd, lr=self.sgd.lr_at(0) / x, batch_size=self.sgd.batch_size_at(0) // batch)
        return lambda: sgdsde.EnsembleSurface.fit(problem, base, math.ceil(x * self.n_steps), seed=SEED)

    def _ensemble(self, count: int) -> Callable[[], sgdsde.Trajectory]:
        problem = self.setting.problem()
        return lambda: sgdsde.run_ensemble(problem, self.sgd, self.n_steps, count, seed=SEED, record=self.record)

    def _truth(self, frozen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, its standard error and the runs' losses.

        At steps where it lowers the spread, the linearized runs of the same batches are the control: their expectation
        is the frozen prediction.
        """

        def losses(learner: sgdsde.Problem | sgdsde.Linearization) -> Tensor:
            count, record = self.setting.pool, self.record
            band = sgdsde.run_ensemble(learner, self.sgd, self.n_steps, count, seed=TRUTH, record=record).train_loss
            assert band.samples is not None
            return band.samples.double()

        real, linear = losses(self.problem), losses(sgdsde.linearize(self.problem))
        gap = real - linear
        pays = gap.std(0) < real.std(0)
        error = torch.where(pays, gap.std(0), real.std(0)) / len(real) ** 0.5
        return torch.where(pays, frozen + gap.mean(0), real.mean(0)), error, real

    def _timed(self, work: Callable[[], T]) -> tuple[T, list[float]]:
        """What it gives, and its cost in plain runs: by the slower, the mean and the faster timing of a plain run."""
        before = plain_seconds(self.problem, self.sgd, self.n_steps)
        start = time.process_time()
        made = work()
        spent = time.process_time() - start
        after = plain_seconds(self.problem, self.sgd, self.n_steps)
        self.units += [before, after]
        return made, [spent / unit for unit in (max(before, after), (before + after) / 2, min(before, after))]

    def _error(self, loss: Tensor, mean: Tensor, error: Tensor) -> list[float]:
        """Largest relative error, with two standard errors of the truth at that step."""
        gaps = (loss / mean - 1).abs()
        at = int(gaps.argmax())
        gap, doubt = float(gaps[at]), float(2 * error[at] / mean[at])
        return [max(gap - doubt, 0.0), gap, gap + doubt]

    def _drift(self) -> float:
        """|K - K_0| / |K_0| at the end of one real run, on some examples."""
        x = self.problem.x_train[:DRIFT_EXAMPLES]
        end = plain_sgd(self.problem, self.sgd, [self.n_steps], seed=SEED)[0]
        before, after = (kernel_between(self.problem, at, x) for at in (self.problem.params, end))
        return float(torch.linalg.norm(after - before) / torch.linalg.norm(before))

    def _sweep(self) -> list[list[float]]:
        """(settings, cost of all of them in one call), padded to three."""
        rows = []
        for count in self.setting.sweep:
            problem, lr = self.setting.problem(), self.sgd.lr_at(0)
            several = [replace(self.sgd, lr=lr * float(share)) for share in np.linspace(0.5, 1.0, count)]
            _, cost = self._timed(lambda: sgdsde.predict_many(problem, several, self.n_steps, record=self.record))  # noqa: B023
            rows.append([float(count), cost[1]])
        return rows + [[np.nan, np.nan]] * (3 - len(rows))


UNKNOWN = [np.nan] * 3


def ensemble_error(samples: Tensor, count: int) -> list[float]:
    """Largest relative error of a mean of ``count`` runs: 16, 50 and 84 % of means drawn from the pool itself."""
    stream = torch.Generator().manual_seed(SEED)
    n = len(samples)
    gaps = (samples / samples.mean(0) - 1) * (n / (n - 1)) ** 0.5  # spread about the true mean, not the pool's
    draws = [gaps[torch.randint(n, (count,), generator=stream)].mean(0) for _ in range(DRAWS)]
    largest = torch.stack(draws).abs().amax(1)
    return [float(largest.quantile(share)) for share in (0.16, 0.5, 0.84)]


if __name__ == "__main__":
    main(__file__, run, seed=SEED)
