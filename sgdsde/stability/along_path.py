"""The learning rate up to which the network itself trains: the limit of the kernel that its own path reaches.

The limit at initialization is wrong in both directions for a network that moves. Transients of momentum and the noise
of small batches drive it away below that limit; catapults and the noise itself drive it to flatter kernels, which train
above. Paths without noise miss most of this (docs/stability.md), so the path here is sampled: a few runs of the network
on minibatches of their own. A learning rate holds if most of them

- stay finite,
- end, in the median over the last quarter, no higher than the loss that they start from, and
- are, at one of three times in the second half, at a kernel whose mean-square limit is above the learning rate.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import StageCost, Ticker, announced, ticker
from sgdsde._streams import BLOCK
from sgdsde._types import Params, Progress, Sampling
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.machine import step_seconds
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability.limits import is_below_limit, limit_of_map, noise_among
from sgdsde.stability.local import map_at
from sgdsde.stability.sampled_path import sampled_path
from sgdsde.stability.second_moments import SecondMomentMap

OUTPUTS = 256
"""Outputs of the examples whose kernels are looked at; all of them where they are no more."""

MATRICES = 9
"""Of the kernel's size beside each other, in float64, while its limit is found."""

RECORDED = 16
"""Parts of a path at whose ends the loss is looked at, a multiple of four."""

FARTHEST = 1000.0
"""Factor away from the limit at initialization at which the search ends."""

GROWTH = 1.5
"""Factor from one learning rate to the next until the threshold is enclosed."""

LIKELY_RATES = 10
"""Learning rates that a search takes, about."""

START_WITHOUT_CURVATURE = 0.1
"""First learning rate tried where the loss has no second derivative, or no curvature at the initial outputs."""


class PathLimit(float):
    """A learning rate up to which the network trains, and what is known about it.

    Attributes:
        at_initialization: the mean-square limit of the initial kernel, on the examples looked at; NaN where the loss
            has no positive curvature there.
        bound: "" for a threshold that was enclosed; "lower" where the largest learning rate tried still trained, about
            a thousand times the limit at initialization; "upper" where none did, down to a thousandth of it, or where
            the loss has no second derivative, so that slow growth past the steps given would have gone unnoticed.
        sentence: the same in words.
    """

    at_initialization: float
    bound: Literal["", "lower", "upper"]
    sentence: str

    def __new__(
        cls, value: float, at_initialization: float = math.nan, bound: str = "", sentence: str = ""
    ) -> PathLimit:
        limit = super().__new__(cls, value)
        limit.__dict__.update(at_initialization=at_initialization, bound=bound, sentence=sentence)
        return limit


def max_lr_along_path(
    problem: Problem,
    batch_size: int,
    *,
    n_steps: int,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sampling: Sampling = "with_replacement",
    n_paths: int = 5,
    seed: int = 0,
    precision: float = 0.05,
    progress: Progress = None,
) -> PathLimit:
    """The largest learning rate that trains the network itself, below the limit of the kernel that its path reaches.

    Args:
        batch_size: B. momentum, nesterov, weight_decay, sampling: as in ``max_lr``. n_steps: length of the training.
        n_paths: sampled runs a learning rate, at most 64; most of them decide. seed: of their batches, which are not
            those of ``run_ensemble``. precision: relative width of the bracket that is left. progress: as in
            ``predict``; a unit of the bar is one path, and the search rarely takes all of them.
    Returns:
        A float with ``at_initialization``, ``bound`` and ``sentence`` (``PathLimit``): the lower end of the bracket.
    Exactness: ``max_lr`` for a model linear in its parameters that can fit its data. Else an estimate from few paths,
        for the training of ``n_steps`` steps: within a factor 1.5 of the threshold of real training in
        docs/stability.md. Learning rates are taken to hold up to one threshold. Of more than 256 outputs evenly spaced
        examples stand for all in the kernels.
    Cost: about ten learning rates, each at most ``n_paths`` plain runs (of runs that agree the rest is left out) and
        three kernels a run of at most 256 outputs. It trains: where runs are what must be avoided ask ``max_lr``.
    Source: laws/test_limit_along_the_path.py; the local limit of docs/derivations.md, section 4.
    """
    n_steps, n_paths = whole_number("n_steps", n_steps, minimum=4), whole_number("n_paths", n_paths, minimum=1)
    if not isinstance(problem, Problem):
        raise TypeError(complaint("problem", "a Problem, whose network can be trained", type(problem).__name__))
    if n_paths > BLOCK:
        raise ValueError(complaint("n_paths", f"at most {BLOCK}", n_paths))
    precision = positive_number("precision", precision)
    sgd = SGD(1.0, batch_size, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, sampling=sampling)
    noise = noise_among(problem.n_train, batch_size, sampling)
    paths = math.ceil(LIKELY_RATES * n_paths)
    cost = paths * n_steps * step_seconds(problem, sgd.batch_size_at(0), paths * n_steps)
    held = MATRICES * 8 * (_n_looked_at(problem) * problem.n_outputs) ** 2
    held += (RECORDED + 4) * sum(value.nbytes for value in problem.params.values())
    progress = announced(StageCost("limit along the path", cost, held), progress)
    ticks = ticker(progress, paths, "limit along the path")
    trial = _Trial(problem, sgd, n_steps, n_paths, whole_number("seed", seed), noise, ticks)
    initial = trial.moments(problem.params)
    at_start = math.nan if initial is None else limit_of_map(initial, trial.noise, sgd=sgd)
    if at_start == math.inf:
        return PathLimit(math.inf, at_start, "", "the kernel is zero: nothing moves at any learning rate")
    # Just below, so that a limit that does not move is found to that number.
    low, high = _bracket(trial.holds, (1 - 1e-6) * at_start if at_start > 0 else START_WITHOUT_CURVATURE, precision)
    ticks.close()
    bound = "lower" if high == math.inf else "upper" if low == 0 or problem.criterion.kink else ""
    return PathLimit(low or high, at_start, bound, _sentence(trial, low, high, at_start))


def _bracket(holds: Callable[[float], bool], start: float, precision: float) -> tuple[float, float]:
    """Learning rates that hold and do not, this close; 0 or infinity for one that was not found."""
    if holds(start):
        low, high = start, GROWTH * start
        while holds(high):
            low, high = high, GROWTH * high
            if high > FARTHEST * start:
                return low, math.inf
    else:
        low, high = start / GROWTH, start
        while not holds(low):
            low, high = low / GROWTH, low
            if low < start / FARTHEST:
                return 0.0, high
    while high > (1 + precision) * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


@dataclass(frozen=True, eq=False)
class _Trial:
    """The question whether a learning rate holds; ``sgd`` has everything but that, ``noise`` is phi/B.

    Attributes:
        ticks: counts the paths.
    """

    problem: Problem
    sgd: SGD
    n_steps: int
    n_paths: int
    seed: int
    noise: float
    ticks: Ticker

    def holds(self, lr: float) -> bool:
        """Whether most of the paths hold."""
        held = failed = 0
        while 2 * max(held, failed) <= self.n_paths and held + failed < self.n_paths:
            if self._path_holds(lr, held + failed):
                held += 1
            else:
                failed += 1
            self.ticks.update(1)
        return held > failed

    def _path_holds(self, lr: float, run: int) -> bool:
        record = sorted({round(part * self.n_steps / RECORDED) for part in range(RECORDED + 1)})
        sgd, losses, reached = dataclasses.replace(self.sgd, lr=lr), [], []
        for params in sampled_path(self.problem, sgd, record, seed=self.seed, run=run):
            losses.append(self._loss(params))
            if not math.isfinite(losses[-1]):
                return False
            reached.append(params)
        quarter = len(losses) // 4
        if statistics.median(losses[-quarter:]) > losses[0]:
            return False
        return any(self._contracts(reached[place], lr) for place in (-1, -1 - quarter, -1 - 2 * quarter))

    def _loss(self, params: Params) -> float:
        problem = self.problem
        with torch.no_grad():
            return float(problem.criterion.mean(problem.forward(params, problem.x_train), problem.y_train))

    def _contracts(self, params: Params, lr: float) -> bool:
        """Whether lr is below the mean-square limit there; so is any where the loss has no curvature left."""
        moments = self.moments(params)
        return moments is None or is_below_limit(moments, self.sgd, lr, self.noise)

    def moments(self, params: Params) -> SecondMomentMap | None:
        """The map of second moments at these weights; None without a second derivative or positive curvature."""
        problem = self.problem
        if problem.criterion.kink:
            return None
        some = torch.linspace(0, problem.n_train - 1, _n_looked_at(problem)).round().long().to(problem.device)
        x, y = problem.x_train[some], problem.y_train[some]
        kernel = kernel_between(problem, params, x)
        with torch.no_grad():
            outputs: Tensor = problem.forward(params, x).to(kernel)
        try:
            return map_at(kernel, problem.criterion, outputs, y.to(kernel) if y.is_floating_point() else y)
        except ValueError:  # no positive curvature
            return None


def _n_looked_at(problem: Problem) -> int:
    """Examples whose kernels are looked at."""
    return min(problem.n_train, max(1, OUTPUTS // problem.n_outputs))


def _sentence(trial: _Trial, low: float, high: float, at_start: float) -> str:
    runs = f"sampled runs of {trial.n_steps} steps of the network"
    start = f"; the kernel at initialization has its limit at {at_start:.4g}" if at_start > 0 else ""
    if high == math.inf:
        return f"at least {low:.4g}, the largest learning rate that was tried: {runs} still hold there{start}"
    if low == 0:
        return f"at most {high:.4g}, the smallest learning rate that was tried: {runs} do not hold there{start}"
    kink = trial.problem.criterion.kink
    judged = f", judged by the loss alone, which has no second derivative ({kink})" if kink else ""
    return f"{runs} hold at {low:.4g} and no longer at {high:.4g}{judged}{start}"
