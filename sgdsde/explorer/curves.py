"""Predicted losses of a grid of settings, made once, so that a slider only looks one up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sgdsde._checks import complaint, whole_number
from sgdsde._progress import covered, ticker
from sgdsde._types import Progress, Sampling
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.prediction import predict
from sgdsde.prediction_sweep import predict_many
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD
from sgdsde.stability import max_lr_of
from sgdsde.trajectory import Trajectory

LOWEST, HIGHEST = 0.05, 1.5
"""The learning rates span from this part of the smallest limit to this part of the largest."""

COARSER_RATES, COARSER_SIZES = 4, 3
"""Momentum and shuffled epochs have no shared basis: of their settings only every so many are predicted."""

LEAST_RATES = 7
"""Learning rates of a coarser grid are every fourth only where so many remain."""

PAST_LIMIT = -1
PARTS = ("mean", "low", "high")


@dataclass(frozen=True, eq=False)
class Curves:
    """Predicted losses over a grid of learning rates, batch sizes, momenta and samplings.

    Attributes:
        sgds: [S], the settings that were predicted. dynamics: [S], what predicted each, in words.
        steps: [T], recorded. losses: float32 [S, sides, 3, T], mean, 10 % and 90 % quantile over runs.
        sides: "train", and "test" where there is a test set.
        limits: [momenta, samplings, batch sizes], the largest learning rates that are stable in mean square; of
            shuffled epochs those of batches drawn without replacement.
        nearest: int [momenta, samplings, batch sizes, rates], the setting to show: the one itself, or the nearest that
            was predicted; -1 past the limit, where there is nothing to show.
        initial: the losses before training, by side.
    """

    rates: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    momenta: tuple[float, ...]
    samplings: tuple[Sampling, ...]
    n_steps: int
    sgds: tuple[SGD, ...]
    dynamics: tuple[str, ...]
    steps: np.ndarray
    losses: np.ndarray
    sides: tuple[str, ...]
    limits: np.ndarray
    nearest: np.ndarray
    initial: dict[str, float]


def predicted_curves(
    linearization: Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    batch_sizes: Sequence[int],
    momenta: Sequence[float] = (0.0,),
    samplings: Sequence[Sampling] = ("with_replacement",),
    n_rates: int = 28,
    progress: Progress = None,
) -> Curves:
    """The predicted losses of a grid of settings.

    Independent batches without momentum are predicted by ``predict_many`` on one basis at every learning rate and batch
    size; momentum and shuffled epochs by ``predict`` at every fourth rate (of 28 or more) and every third size.

    Args:
        sgd: every other word of the training (weight decay, label noise, ...), the same in all settings.
        batch_sizes, momenta, samplings: what the sliders reach. n_rates: learning rates, log-spaced over the limits.
    Raises:
        ValueError: a loss that is no squared error; a batch size above n_train; a kernel of zero.
    Exactness: as of ``predict_many`` (1e-3 of the expected loss) and of ``predict``; quantiles are approximate.
    """
    if not isinstance(linearization.problem.criterion, SquaredError):
        received = type(linearization.problem.loss).__name__
        raise ValueError(complaint("loss", "a squared error for the explorer", received, "use nn.MSELoss()"))
    n_rates = whole_number("n_rates", n_rates, minimum=2)
    sizes = tuple(dict.fromkeys(whole_number("batch_sizes", size, minimum=1) for size in batch_sizes))
    groups = list(itertools.product(dict.fromkeys(momenta), dict.fromkeys(samplings)))
    if not groups or not sizes:
        raise ValueError(complaint("batch_sizes, momenta and samplings", "one value at least each", "none"))
    limits = _limits(linearization, sgd, groups, sizes, progress)
    if not np.isfinite(limits).all():
        raise ValueError(complaint("the kernel", "one that trains", "a kernel of zero: every loss is constant"))
    rates = np.geomspace(LOWEST * limits.min(), HIGHEST * limits.max(), n_rates)
    nearest, chosen = _plan(groups, sizes, rates, limits)
    sgds = [_setting(sgd, groups[g], sizes[b], float(rates[k])) for g, b, k in chosen]
    trajectories = _predicted(linearization, sgds, n_steps, progress)
    steps = trajectories[0].steps if trajectories else recorded_steps(n_steps)
    start = predict(linearization, sgd, 0)
    shape = (len(dict.fromkeys(momenta)), len(dict.fromkeys(samplings)), len(sizes))
    return Curves(
        rates=tuple(rates.tolist()),
        batch_sizes=sizes,
        momenta=tuple(dict.fromkeys(momenta)),
        samplings=tuple(dict.fromkeys(samplings)),
        n_steps=n_steps,
        sgds=tuple(sgds),
        dynamics=tuple(each.dynamics for each in trajectories),
        steps=steps.numpy(),
        losses=np.stack([loss_curves(each) for each in trajectories]),
        sides=tuple(start.losses),
        limits=limits.reshape(shape),
        nearest=nearest.reshape(*shape, n_rates),
        initial={side: float(band.mean[0]) for side, band in start.losses.items()},
    )


def loss_curves(trajectory: Trajectory) -> np.ndarray:
    """Float32 [sides, 3, T]: mean, 10 % and 90 % quantile over runs."""
    rows = [torch.stack([band.mean, band.quantile(0.1), band.quantile(0.9)]) for band in trajectory.losses.values()]
    return torch.stack(rows).numpy().astype(np.float32)


def strides(momentum: float, sampling: str, n_rates: int) -> tuple[int, int]:
    """Every how many batch sizes and learning rates are predicted; (1, 1) where all are."""
    if not momentum and sampling != "shuffled":
        return 1, 1
    return COARSER_SIZES, min(COARSER_RATES, max(1, n_rates // LEAST_RATES))


def _setting(sgd: SGD, group: tuple[float, Sampling], batch_size: int, lr: float) -> SGD:
    momentum, sampling = group
    words: dict[str, Any] = {} if momentum else {"nesterov": False, "dampening": 0.0}
    words |= {} if sampling == "shuffled" else {"drop_last": False}
    return replace(sgd, lr=lr, batch_size=batch_size, momentum=momentum, sampling=sampling, **words)


def _limits(
    linearization: Linearization,
    sgd: SGD,
    groups: Sequence[tuple[float, Sampling]],
    sizes: Sequence[int],
    progress: Progress,
) -> np.ndarray:
    """The limits of every group and batch size; those of shuffled epochs are those without replacement."""
    found: dict[tuple[float, str, int], float] = {}
    ticks = ticker(progress, len(groups) * len(sizes), "limits")
    values = []
    for (momentum, sampling), size in itertools.product(groups, sizes):
        drawn: Sampling = "without_replacement" if sampling == "shuffled" else sampling
        if (momentum, drawn, size) not in found:
            found[momentum, drawn, size] = max_lr_of(linearization, _setting(sgd, (momentum, drawn), size, 1.0))
        values.append(found[momentum, drawn, size])
        ticks.update(1)
    ticks.close()
    return np.array(values).reshape(len(groups), len(sizes))


def _plan(
    groups: Sequence[tuple[float, Sampling]], sizes: Sequence[int], rates: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """The setting to show for every place of the grid, and the places (group, size, rate) that are predicted."""
    nearest = np.full((len(groups), len(sizes), len(rates)), PAST_LIMIT)
    chosen: list[tuple[int, int, int]] = []
    for g, group in enumerate(groups):
        every = strides(*group, len(rates))
        there: dict[int, dict[int, int]] = {}
        for b in range(0, len(sizes), every[0]):
            stable = [k for k in range(0, len(rates), every[1]) if rates[k] < limits[g, b]]
            there[b] = {k: len(chosen) + place for place, k in enumerate(stable)}
            chosen += [(g, b, k) for k in stable]
        for b, k in np.argwhere(rates < limits[g][:, None]):
            size = min(there, key=lambda other: (abs(other - b), other))
            rate = min(there[size], key=lambda other: (abs(other - k), other), default=None)
            nearest[g, b, k] = PAST_LIMIT if rate is None else there[size][rate]
    return nearest, chosen


def _predicted(linearization: Linearization, sgds: Sequence[SGD], n_steps: int, progress: Progress) -> list[Trajectory]:
    """The trajectories in order: those of independent batches on one basis, the others one by one."""
    shared = [i for i, sgd in enumerate(sgds) if not sgd.momentum and sgd.sampling != "shuffled"]
    found: dict[int, Trajectory] = {}
    found |= dict(zip(shared, predict_many(linearization, [sgds[i] for i in shared], n_steps, progress=progress)))
    alone = [i for i in range(len(sgds)) if i not in found]
    ticks = ticker(progress, len(alone), "settings with momentum or shuffled")
    for i in alone:
        found[i] = predict(linearization, sgds[i], n_steps, progress=covered)
        ticks.update(1)
    ticks.close()
    return [found[i] for i in range(len(sgds))]
