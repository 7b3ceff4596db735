"""Which learning rate gives the smallest loss after so many steps?"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sgdsde import plots
from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._types import Progress
from sgdsde._words import percent, told
from sgdsde.dynamics import Dynamics
from sgdsde.linearization import Linearization, problem_of
from sgdsde.problem import Problem
from sgdsde.questions.arrival import Side
from sgdsde.questions.forecasts import Forecasts, setting
from sgdsde.questions.search import refined
from sgdsde.sgd import SGD, check_sgd
from sgdsde.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOWEST, HIGHEST = 0.01, 0.97
"""Ends of the first grid in units of the mean-square limit, where it is a limit."""

LOWEST_MOVING, HIGHEST_MOVING = 0.03, 2.0
"""The same with a kernel that moves: the network may train past the limit of its initial kernel."""

HIGHEST_WITHOUT_LIMIT = 4.0
"""Upper end under other losses, which need not diverge past the limit."""

POINTS, REFINED, ROUNDS = 13, 5, 2
"""Learning rates of the first grid and of each refinement, and refinements."""

POINTS_MOVING, ROUNDS_MOVING = 8, 1
"""The same with a kernel that moves, where each learning rate costs more than some training runs."""

GOOD = 0.05
"""Relative excess over the smallest loss up to which a learning rate is called as good."""


@dataclass(frozen=True)
class ScaledSchedule:
    """A schedule times a factor."""

    schedule: Callable[[int], float]
    factor: float

    def __call__(self, step: int) -> float:
        """The learning rate of the update step -> step + 1."""
        return self.factor * self.schedule(step)


@dataclass(frozen=True, eq=False)
class ChosenLR:
    """The learning rate of the smallest predicted last loss, and the losses of the others; ``str()`` says it in words.

    Attributes:
        sgd: with the learning rate chosen. lr: it, the largest of a schedule. loss: its predicted last loss.
        n_steps: updates. side: "train" or "test".
        lrs, losses: float64 [N], what was tried, sorted; infinite where the prediction is not finite.
        limit: the mean-square limit of the kernel at initialization; past it the expected loss of the linearized model
            grows under squared error, while other losses and a moving kernel need not diverge there.
        good_range: the learning rates around the best whose loss is at most 5 % above the smallest.
        predicted: the ``Trajectory`` of the choice. kernel: what is said of the kernel.
        is_doubtful: the network's kernel moves, and the prediction kept it. is_limited: squared error, whose expected
            loss grows past the limit.
    Exactness: that of the predictions; the learning rate to the spacing of ``lrs`` around it.
    """

    sgd: SGD
    lr: float
    loss: float
    n_steps: int
    side: Side
    lrs: Tensor
    losses: Tensor
    limit: float
    good_range: tuple[float, float]
    predicted: Trajectory
    kernel: str
    is_doubtful: bool
    is_limited: bool

    @property
    def is_at_edge(self) -> bool:
        """Whether the best is the smallest or the largest that was tried, so that a better one may lie beyond."""
        return self.lr in (float(self.lrs[0]), float(self.lrs[-1]))

    @property
    def sentence(self) -> str:
        """The choice in words, with its numbers."""
        low, high = self.good_range
        peak = "the largest learning rate of the schedule" if callable(self.sgd.lr) else "lr"
        return (
            f"{peak} = {self.lr:.3g} gives the smallest predicted {self.side} loss after {self.n_steps} steps, "
            f"{self.loss:.4g}; from {low:.3g} to {high:.3g} it is at most {percent(GOOD)} larger. {self._limit()}"
        )

    def _limit(self) -> str:
        share = f"this is {self.lr / self.limit:.2g} of it"
        if self.is_limited:
            said = f"The linearized model is stable up to {self.limit:.4g}; {share}."
        else:
            said = f"Near the initial outputs {self.limit:.4g} is stable, past it the loss need not diverge; {share}."
        return said + (" Doubtful: the kernel of the network moves." if self.is_doubtful else "")

    def __str__(self) -> str:
        asked = (
            f"which lr, of {len(self.lrs)} between {float(self.lrs[0]):.3g} and {float(self.lrs[-1]):.3g}, gives the "
            f"smallest {self.side} loss after {self.n_steps} steps of SGD with {setting(self.sgd)}?"
        )
        sure = f"{self.kernel}. Predicted by {self.predicted.dynamics}."
        error = float(self.predicted.losses[self.side].standard_error[-1])
        if error > 0:
            sure += f" The loss rests on sampled paths, standard error {error:.2g}."
        terms = ["mean-square limit", "moving kernel" if "MovingKernel" in self.kernel else "frozen kernel"]
        table = [f"{'lr':>12} {'of the limit':>12} {'last loss':>12}"]
        for i in np.unique(np.linspace(0, len(self.lrs) - 1, 12).round().astype(int)).tolist():
            lr, loss = float(self.lrs[i]), float(self.losses[i])
            table.append(f"{lr:>12.4g} {lr / self.limit:>12.3g} {loss:>12.5g}")
        return told(asked=asked, answer=self.sentence, sure=sure, do=self._do(), table=table, terms=terms)

    def _do(self) -> str:
        if self.is_doubtful:
            return "do not rely on it: ask again with dynamics=dynamics.MovingKernel(), or train a few runs."
        if self.is_at_edge:
            end = "largest" if self.lr == float(self.lrs[-1]) else "smallest"
            text = f"it is the {end} that was tried, a better one may lie beyond"
            return f"{text}; the limit is where the theory ends, runs of the network (run_ensemble) tell."
        return "train with it; run_ensemble(problem, answer.sgd, n_steps, n_runs=16) tells whether it holds."

    def plot(self, path: str | os.PathLike[str] | None = None) -> Axes:
        """The axes of a picture: the last loss against the learning rate, the choice, and the limit.

        Path and errors are those of ``Trajectory.plot``.
        """
        with plots.canvas(path, size=(6.4, 3.6)) as figure:
            axes = figure.subplots()
            color = plots.COLORS["predicted", self.side]
            label = f"predicted {self.side} loss after {self.n_steps} steps"
            axes.plot(self.lrs.numpy(), plots.finite(self.losses), ".--", color=color, markersize=4, label=label)
            axes.plot([self.lr], [self.loss], "o", color="#d55e00", label=f"smallest, lr = {self.lr:.3g}", zorder=4)
            axes.axvspan(*self.good_range, color="#d55e00", alpha=0.12, linewidth=0, label=f"within {percent(GOOD)}")
            plots.scale_losses(axes)
            axes.axvline(self.limit, color="0.4", linestyle=":", linewidth=1, label="mean-square limit")
            axes.set_xscale("log")
            axes.set_xlabel("largest learning rate of the schedule" if callable(self.sgd.lr) else "learning rate")
            plots.title(axes, self.sentence)
            axes.legend()
        return axes


def choose_lr(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    side: Side = "train",
    lrs: Sequence[float] | None = None,
    dynamics: Dynamics | None = None,
    progress: Progress = None,
) -> ChosenLR:
    """The learning rate whose predicted loss after n_steps is smallest, with the stable range.

    Under squared error all learning rates are predicted from one basis (``predict_many``). Where the network's kernel
    moves too far for that at the learning rate found, the search is done again with ``MovingKernel``.

    Args:
        problem_or_linearization: a ``Problem`` asks for the network, a ``Linearization`` for the linearized model.
        sgd: batch size, momentum, sampling and so on. Its number lr is not used; a schedule keeps its shape and is
            multiplied by a factor.
        side: whose loss, "train" or "test".
        lrs: learning rates to choose from; default a grid up to the mean-square limit (times four under other losses
            than squared error and with a moving kernel), refined around the best.
        dynamics: the theory; default as said. One that keeps the kernel is warned of where the network's moves.
    Warns:
        FrozenKernelWarning: the kernel moves, and the dynamics asked for keeps it, or the loss has no second
            derivative, which ``MovingKernel`` needs.
    Raises:
        ValueError: no limit to search below (give ``lrs``), or no finite loss.
    Cost: about 25 learning rates: from the second on milliseconds each under squared error, a prediction each with
        another dynamics or loss, or with momentum; some 20 of ``MovingKernel`` where the kernel moves.
    """
    n_steps = whole_number("n_steps", n_steps, minimum=1)
    check_sgd(sgd)
    check_side(problem_of(problem_or_linearization), side)
    given = None if lrs is None else _given(lrs)
    forecasts = Forecasts.of(problem_or_linearization, dynamics, progress)
    limit = forecasts.limit(sgd, n_steps)
    if given is None and not 0 < limit < math.inf:
        raise ValueError(
            complaint("the mean-square limit", "positive and finite", limit, "give lrs=[...] to choose from")
        )
    search = _Search(forecasts, sgd, n_steps, side, limit, given)
    found = search.run()
    suited = forecasts.suited(problem_or_linearization, found.sgd, found.predicted, switch=True)
    if suited.moves_kernel and not forecasts.moves_kernel:
        return replace(search, forecasts=suited).run()
    return replace(found, kernel=suited.kernel, is_doubtful=suited.is_doubtful)


@dataclass(frozen=True, eq=False)
class _Search:
    """Inputs of one search."""

    forecasts: Forecasts
    sgd: SGD
    n_steps: int
    side: Side
    limit: float
    given: list[float] | None

    def run(self) -> ChosenLR:
        if self.given is not None:
            rates, losses = refined(self.losses, self.given, rounds=0, points=0, extend=False)
        else:
            highest = HIGHEST if self.forecasts.has_limit else HIGHEST_WITHOUT_LIMIT
            shares, rounds = np.geomspace(LOWEST, highest, POINTS), ROUNDS
            if self.forecasts.moves_kernel:
                shares, rounds = np.geomspace(LOWEST_MOVING, HIGHEST_MOVING, POINTS_MOVING), ROUNDS_MOVING
            rates, losses = refined(self.losses, (self.limit * shares).tolist(), rounds=rounds, points=REFINED)
        at = int(losses.argmin())
        if not math.isfinite(losses[at]):
            tried = f"none among lr = {rates[0]:.3g} to {rates[-1]:.3g}"
            raise ValueError(complaint("the predicted loss", "finite for one learning rate", tried, "use smaller lrs"))
        sgd = self.at(float(rates[at]))
        predicted = self.forecasts.predict_one(sgd, self.n_steps)
        return ChosenLR(
            sgd=sgd,
            lr=float(rates[at]),
            loss=float(losses[at]),
            n_steps=self.n_steps,
            side=self.side,
            lrs=torch.from_numpy(rates),
            losses=torch.from_numpy(losses),
            limit=self.limit,
            good_range=_good_range(rates, losses, at),
            predicted=predicted,
            kernel=self.forecasts.kernel,
            is_doubtful=False,
            is_limited=self.forecasts.has_limit,
        )

    def at(self, rate: float) -> SGD:
        """The SGD of a learning rate, the largest of a schedule."""
        schedule = self.sgd.lr
        if not callable(schedule):
            return replace(self.sgd, lr=rate)
        largest = max(self.sgd.lr_at(k) for k in range(self.n_steps))
        return replace(self.sgd, lr=ScaledSchedule(schedule, rate / positive_number("the largest lr", largest)))

    def losses(self, rates: Sequence[float]) -> list[float]:
        found = self.forecasts.predict([self.at(rate) for rate in rates], self.n_steps, [0, self.n_steps])
        return [math.inf if one is None else float(one.losses[self.side].mean[-1]) for one in found]


def _good_range(rates: np.ndarray, losses: np.ndarray, at: int) -> tuple[float, float]:
    """The learning rates around the best whose loss is good, by straight lines in log lr between those tried."""
    bound, ends = (1 + GOOD) * losses[at], []
    for way in (-1, 1):
        i = at
        while 0 <= i + way < len(rates) and losses[i + way] <= bound:
            i += way
        log_rate, j = np.log(rates[i]), i + way
        if 0 <= j < len(rates) and np.isfinite(losses[j]):
            log_rate += (bound - losses[i]) / (losses[j] - losses[i]) * (np.log(rates[j]) - np.log(rates[i]))
        ends.append(float(np.exp(log_rate)))
    return ends[0], ends[1]


def _given(lrs: Sequence[float]) -> list[float]:
    if isinstance(lrs, str) or not isinstance(lrs, Sequence | np.ndarray | Tensor):
        raise TypeError(complaint("lrs", "a sequence of learning rates", repr(lrs), "use lrs=[0.1, 0.2]"))
    rates = [positive_number("lrs", rate) for rate in lrs]
    if not rates:
        raise ValueError(complaint("lrs", "one learning rate at least", "none"))
    return rates


def check_side(problem: Problem, side: object) -> None:
    """Raise ValueError unless it is a side that the problem has."""
    if side not in ("train", "test"):
        raise ValueError(complaint("side", "'train' or 'test'", repr(side)))
    if side == "test" and problem.x_test is None:
        remedy = "give the Problem x_test and y_test"
        raise ValueError(complaint("side", "'train' for a problem without a test set", repr(side), remedy))
