"""The whole prediction: linearize, evolve the law of the outputs, reduce it to losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word
from sgdsde._types import Observable, Progress
from sgdsde.dynamics import Dynamics, MomentRecursion, SDEPaths
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.reduction import Reducer
from sgdsde.sgd import SGD
from sgdsde.stability import warn_if_unstable
from sgdsde.trajectory import Trajectory

N_RECORDED = 50


def predict(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    *,
    dynamics: Dynamics | None = None,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    progress: Progress = None,
) -> Trajectory:
    """The predicted course of training, without training.

    Args:
        problem_or_linearization: a ``Problem`` is linearized first; a ``Linearization`` is used as it is.
        sgd: how it is trained. n_steps: number of updates.
        dynamics: the theory; default ``MomentRecursion()``, the exact second moments of the linearized model, under
            squared error, and ``SDEPaths()``, 1000 sample paths of SGD with Gaussian noise, under cross-entropy.
        record: steps to report; default about 50, geometric, with 0, 1 and n_steps.
        observe: ``"loss"``; ``"accuracy"`` for the fraction of examples on the right side (sign or argmax);
            ``"outputs"`` for mean and std of every output.
    Returns:
        A ``Trajectory`` with ``n_runs`` = 0 for laws in closed form.
    Warns:
        UnstableWarning: the learning rate lies beyond the mean-square or the full-batch limit.
    Raises:
        ValueError: what the dynamics cannot represent, with the one that can; a record past the end.
    """
    n_steps = whole_number("n_steps", n_steps)
    steps = recorded_steps(n_steps, record)
    check_observables(observe)
    linearization = as_linearization(problem_or_linearization, progress=progress)
    problem = linearization.problem
    sgd.plan(problem.n_train, n_steps)
    if dynamics is None:
        dynamics = MomentRecursion() if isinstance(problem.criterion, SquaredError) else SDEPaths()
    if not isinstance(dynamics, Dynamics):
        remedy = "use dynamics.MomentRecursion() or another of sgdsde.dynamics"
        raise TypeError(complaint("dynamics", "an instance of sgdsde.dynamics.Dynamics", repr(dynamics), remedy))
    limit = warn_if_unstable(linearization, sgd, n_steps)
    reducer = Reducer(problem, observe)
    for law in dynamics.evolve(linearization, sgd, steps.tolist(), progress=progress):
        reducer.add(law)
    return reducer.trajectory(steps, repr(dynamics), n_steps, limit)


def recorded_steps(n_steps: int, record: Sequence[int] | None = None) -> Tensor:
    """The steps to record, sorted and without repetition, int64; by default about 50, geometric, with 0, 1, n_steps."""
    if record is None:
        spaced = np.geomspace(1, max(n_steps, 1), num=min(N_RECORDED, max(n_steps, 1)))
        return torch.from_numpy(np.unique(np.concatenate([[0], np.rint(spaced)])).astype(np.int64)[: n_steps + 1])
    steps = sorted({whole_number("record", step) for step in record})
    if not steps:
        raise ValueError(complaint("record", "at least one step", "none", "omit it for about 50 geometric steps"))
    if steps[-1] > n_steps:
        raise ValueError(complaint("record", f"within 0 ... n_steps={n_steps}", f"step {steps[-1]}", "raise n_steps"))
    return torch.tensor(steps, dtype=torch.int64)


def check_observables(observe: Iterable[str]) -> None:
    if isinstance(observe, str):
        raise TypeError(complaint("observe", "a tuple of words", repr(observe), f"use observe=({observe!r},)"))
    for name in observe:
        word("observe", name, get_args(Observable))
