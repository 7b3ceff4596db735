"""The whole prediction: linearize, evolve the law of the outputs, reduce it to losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._progress import announce_barless, announced, covered, wants_cost
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
from sgdsde.evolution_cost import Course, evolution_seconds
from sgdsde.frozen_kernel import warn_if_kernel_moves
from sgdsde.linearization import Linearization, as_linearization, problem_of
from sgdsde.losses import SquaredError
from sgdsde.machine import spectrum_cost, step_seconds
from sgdsde.problem import Problem
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.reduction import Reducer
from sgdsde.sgd import SGD, check_sgd
from sgdsde.stability import warn_if_unstable
from sgdsde.trajectory import Trajectory

SAFETY_OF_HALVING = 8.0
"""With it the estimate for a followed tail was above the true error in 38 of 40 cases, 1.4 times below it at worst."""


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
        progress: True for a bar, or a wrapper of an iterable; the iterable's attribute ``cost`` (``name``, ``seconds``,
            ``bytes``) is what the stage ahead is expected to cost. The same is logged by ``sgdsde`` at level INFO
            before each stage, in plain training runs too: operations are counted, rates of machine and network measured
            only where that is nothing beside the stage. ``expected_cost`` measures first.
        observe: ``"loss"``; ``"accuracy"`` for the fraction of examples whose output is right (its sign, or the
            largest of several; the loss says what the targets mean);
            ``"outputs"`` for mean and std of every output.
    Returns:
        A ``Trajectory`` with ``n_runs`` = 0 for laws in closed form; on a truncated eigenbasis with an estimate of what
        the truncation changes, ``truncation_error`` (a bound where its tail is frozen).
    Warns:
        UnstableWarning: the learning rate lies beyond the mean-square or the full-batch limit of the kernel at
            initialization. FrozenKernelWarning: a ``Problem`` was given, and its kernel moves so far along a short
            full-batch path that the frozen one is likely off by more than 5 %.
    Raises:
        ValueError: what the dynamics cannot represent, with the one that can; a record past the end; of a ``Problem``,
            a training that a cheap look shows to be out of its range (``MovingKernel.look``).
    """
    n_steps = whole_number("n_steps", n_steps)
    steps = recorded_steps(n_steps, record)
    check_sgd(sgd)
    check_observables(observe)
    if dynamics is not None and not isinstance(dynamics, Dynamics):
        remedy = "use dynamics.MomentRecursion() or another of sgdsde.dynamics"
        raise TypeError(complaint("dynamics", "an instance of sgdsde.dynamics.Dynamics", repr(dynamics), remedy))
    problem = problem_of(problem_or_linearization)
    is_default, is_squared = dynamics is None, isinstance(problem.criterion, SquaredError)
    if dynamics is None:
        dynamics = default_dynamics(problem, sgd)
    looked = dynamics.look(problem, sgd, n_steps) if isinstance(problem_or_linearization, Problem) else ""
    spectrum = dynamics.needs_spectrum or (is_squared and dynamics.freezes_kernel)  # the limit's, for the warning
    linearization = as_linearization(problem_or_linearization, sgd=sgd, spectrum=spectrum, progress=progress)
    if is_default and tuple(observe) == ("loss",) and ReducedMoments.is_cheaper(linearization, sgd, n_steps):
        dynamics = ReducedMoments()
    limit = None
    if dynamics.freezes_kernel:
        if progress is not covered and isinstance(linearization.kernel, Tensor) and n_steps and is_squared:
            announce_barless(spectrum_cost(linearization.outputs.numel(), "stability limit", part=0.4))
        limit = warn_if_unstable(linearization, sgd, n_steps)
    record = steps.tolist()
    predicted = evolve(dynamics, linearization, sgd, record, n_steps=n_steps, observe=observe, progress=progress)
    assumptions = (*predicted.assumptions, looked) if looked else predicted.assumptions
    predicted = replace(predicted, mean_square_limit=limit, assumptions=assumptions)
    if isinstance(problem_or_linearization, Problem) and dynamics.freezes_kernel and limit is None:
        warn_if_kernel_moves(linearization, sgd, predicted)
    if dynamics.noise_source is None or not is_squared:
        return predicted
    error: Tensor | None
    if linearization.follows_tail:
        error = _change_of_halving(predicted, dynamics, linearization, sgd, record)
    else:
        error = truncation_error(linearization, sgd, record, noise=dynamics.noise_source)
    return replace(predicted, truncation_error=error)


def _change_of_halving(
    predicted: Trajectory, dynamics: Dynamics, linearization: Linearization, sgd: SGD, record: Sequence[int]
) -> Tensor:
    """What the expected training loss changes by on half of the leading eigenpairs, the largest so far in its own
    units, times ``SAFETY_OF_HALVING``, [T]."""
    coarse = evolve(dynamics, linearization.halved(), sgd, record)
    loss = predicted.train_loss.mean
    return ((coarse.train_loss.mean - loss).abs() / loss).nan_to_num().cummax(0).values * loss * SAFETY_OF_HALVING


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
    n_steps = record[-1] if n_steps is None else n_steps
    progress = _announced_evolution(dynamics, linearization, sgd, record, progress)
    reducer = Reducer(linearization.problem, observe)
    laws = dynamics.evolve(linearization, sgd, record, progress=progress)
    for law in laws:
        reducer.add(law)
    name, error = (laws.used, laws.estimated_error) if isinstance(laws, ReducedLaws) else (repr(dynamics), None)
    reduced = reducer.trajectory(torch.tensor(record), name, n_steps, None)
    assumptions = dynamics.assumptions(sgd)
    if linearization.follows_tail and dynamics.noise_source not in (None, "none") and not dynamics.follows_bulk:
        assumptions = (*assumptions, "no noise reaches the directions outside of the leading and the followed ones")
    return replace(reduced, assumptions=assumptions, estimated_error=error)


def _announced_evolution(
    dynamics: Dynamics, linearization: Linearization, sgd: SGD, record: Sequence[int], progress: Progress
) -> Progress:
    """The progress of an evolution whose cost has been said, in plain runs too where somebody sees it."""
    if progress is covered:
        return progress
    problem, last = linearization.problem, record[-1]
    cost = evolution_seconds(dynamics, Course.of(linearization, sgd, record))
    run = last * step_seconds(problem, sgd.batch_size_at(0), last) if wants_cost(progress) and last else None
    return announced(cost, progress, run)


def default_dynamics(problem: Problem, sgd: SGD) -> Dynamics:
    """The theory that ``predict`` uses where none is named."""
    if isinstance(problem.criterion, SquaredError):
        return MomentRecursion()
    return LinearizedSGD() if sgd.sampling == "shuffled" else SDEPaths()
