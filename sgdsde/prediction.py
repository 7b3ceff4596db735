"""The whole prediction: linearize, evolve the law of the outputs, reduce it to losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sgdsde._checks import complaint, whole_number
from sgdsde._types import Observable, Progress
from sgdsde.dynamics import (
    Dynamics,
    LinearizedSGD,
    MomentRecursion,
    ReducedLaws,
    ReducedMoments,
    SDEPaths,
    truncation_error,
)
from sgdsde.frozen_kernel import warn_if_kernel_moves
from sgdsde.linearization import Linearization, as_linearization, problem_of
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.reduction import Reducer
from sgdsde.sgd import SGD, check_sgd
from sgdsde.stability import warn_if_unstable
from sgdsde.trajectory import Trajectory


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
        dynamics: the theory; default under squared error ``MomentRecursion()``, the exact second moments of the
            linearized model, or, where it is cheaper and only losses are observed, ``ReducedMoments()``, the same to
            1e-4 (``Trajectory.dynamics`` says which). Under any other loss ``SDEPaths()``, 1000 sample paths of SGD
            with Gaussian noise, or, for shuffled epochs, ``LinearizedSGD()``, 256 sampled runs of the linearized model
            (``GaussianClosure()`` has no sampling error and needs a second derivative).
        record: steps to report; default about 50, geometric, with 0, 1 and n_steps.
        observe: ``"loss"``; ``"accuracy"`` for the fraction of examples whose output is right (its sign, or the
            largest of several; the loss says what the targets mean);
            ``"outputs"`` for mean and std of every output.
    Returns:
        A ``Trajectory`` with ``n_runs`` = 0 for laws in closed form; on a truncated eigenbasis with a bound on what the
        truncation changes, ``truncation_error``.
    Warns:
        UnstableWarning: the learning rate lies beyond the mean-square or the full-batch limit of the kernel at
            initialization. FrozenKernelWarning: a ``Problem`` was given, and its kernel moves so far along a short
            full-batch path that the frozen one is likely off by more than 5 %.
    Raises:
        ValueError: what the dynamics cannot represent, with the one that can; a record past the end.
    """
    n_steps = whole_number("n_steps", n_steps)
    steps = recorded_steps(n_steps, record)
    check_sgd(sgd)
    check_observables(observe)
    if dynamics is not None and not isinstance(dynamics, Dynamics):
        remedy = "use dynamics.MomentRecursion() or another of sgdsde.dynamics"
        raise TypeError(complaint("dynamics", "an instance of sgdsde.dynamics.Dynamics", repr(dynamics), remedy))
    problem = problem_of(problem_or_linearization)
    is_default = dynamics is None
    if dynamics is None:
        dynamics = default_dynamics(problem, sgd)
    spectrum = dynamics.needs_spectrum or isinstance(problem.criterion, SquaredError)  # the limit's, for the warning
    linearization = as_linearization(problem_or_linearization, sgd=sgd, spectrum=spectrum, progress=progress)
    if is_default and tuple(observe) == ("loss",) and ReducedMoments.is_cheaper(linearization, sgd, n_steps):
        dynamics = ReducedMoments()
    limit = warn_if_unstable(linearization, sgd, n_steps) if dynamics.freezes_kernel else None
    record = steps.tolist()
    predicted = evolve(dynamics, linearization, sgd, record, n_steps=n_steps, observe=observe, progress=progress)
    predicted = replace(predicted, mean_square_limit=limit)
    if isinstance(problem_or_linearization, Problem) and dynamics.freezes_kernel and limit is None:
        warn_if_kernel_moves(linearization, sgd, predicted)
    if dynamics.noise_source is None or not isinstance(problem.criterion, SquaredError):
        return predicted
    return replace(
        predicted, truncation_error=truncation_error(linearization, sgd, record, noise=dynamics.noise_source)
    )


def evolve(
    dynamics: Dynamics,
    linearization: Linearization,
    sgd: SGD,
    record: Sequence[int],
    *,
    n_steps: int | None = None,
    observe: Sequence[Observable] = ("loss",),
    progress: Progress = None,
) -> Trajectory:
    """The trajectory that a dynamics predicts at the steps of ``record``, without checks and warnings.

    Args:
        n_steps: number of updates; default the last of ``record``.
    """
    reducer = Reducer(linearization.problem, observe)
    laws = dynamics.evolve(linearization, sgd, record, progress=progress)
    for law in laws:
        reducer.add(law)
    n_steps = record[-1] if n_steps is None else n_steps
    name, error = (laws.used, laws.estimated_error) if isinstance(laws, ReducedLaws) else (repr(dynamics), None)
    reduced = reducer.trajectory(torch.tensor(record), name, n_steps, None)
    return replace(reduced, assumptions=dynamics.assumptions(sgd), estimated_error=error)


def default_dynamics(problem: Problem, sgd: SGD) -> Dynamics:
    """The theory that ``predict`` uses where none is named."""
    if isinstance(problem.criterion, SquaredError):
        return MomentRecursion()
    return LinearizedSGD() if sgd.sampling == "shuffled" else SDEPaths()
