"""Warning for predictions past a stability limit."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from torch import Tensor

from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD
from sgdsde.stability.limits import limit_at_noise, max_lr_full_batch, sufficient_lr
from sgdsde.stability.local import local_map


class UnstableWarning(UserWarning):
    """The learning rate lies beyond a limit of the linearized SGD; the message holds the limit."""


def warn_if_unstable(linearization: Linearization, sgd: SGD, n_steps: int) -> float | None:
    """Warn when some step's learning rate is past the mean-square limit, and return that limit; else None.

    The largest learning rate of a schedule is held against the limit of its smallest batch. Shuffled epochs, which have
    no limit of their own here, are held against fresh batches without replacement. Squared error only: other losses
    have no such limit.
    """
    if not isinstance(linearization.problem.criterion, SquaredError) or n_steps == 0:
        return None
    n = linearization.problem.n_train
    iid = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
    stationary = iid if sgd.sampling == "shuffled" else sgd
    if sgd.momentum and sgd.dampening >= 1:
        return _warn_of_dampening(sgd)
    plan = stationary.plan(n, 1 if sgd.is_constant else n_steps)
    lr, batch_size = float(plan.lr.max()), int(plan.batch_size.min())
    noise = plan.noise_factor(int(plan.batch_size.argmin()))
    if _is_stable(linearization, stationary, lr, noise, batch_size):
        return None
    words: dict[str, Any] = {name: getattr(sgd, name) for name in ("momentum", "dampening", "nesterov", "weight_decay")}
    limit = limit_at_noise(linearization, noise, **words)
    full_batch = max_lr_full_batch(linearization, **words)
    also = f" and beyond the full-batch limit {full_batch:.6g}" if lr > full_batch else ""
    fresh = " (of fresh batches without replacement, in place of shuffled epochs)" if stationary is iid else ""
    warnings.warn(
        f"lr={lr:.6g} is beyond the mean-square limit {limit:.6g} of SGD with batch_size={batch_size}{fresh}{also}: "
        "the expected loss of the linearized model grows without bound, and a finite prediction is not to be believed",
        UnstableWarning,
        stacklevel=3,
    )
    return limit


def _warn_of_dampening(sgd: SGD) -> float | None:
    """Past 1 the steps climb; at 1 there are none after the first."""
    if sgd.dampening == 1:
        return None
    warnings.warn(
        f"dampening={sgd.dampening:g} is above 1: momentum SGD then moves against the gradient, and the expected loss "
        "of the linearized model grows at any learning rate",
        UnstableWarning,
        stacklevel=4,
    )
    return 0.0


def _is_stable(linearization: Linearization, sgd: SGD, lr: float, noise: float, batch_size: int) -> bool:
    plain = sgd.momentum == 0 and sgd.weight_decay == 0
    is_dense = isinstance(linearization.kernel, Tensor)
    if plain and is_dense and lr <= sufficient_lr(linearization, batch_size, sampling=sgd.sampling):
        return True
    if plain:
        return lr <= limit_at_noise(linearization, noise)
    moments = local_map(linearization)
    if not moments.drift.any():
        return True
    return moments.mean_radius(sgd, lr) < 1 and (noise == 0 or moments.amplification(sgd, lr, noise) < 1)
