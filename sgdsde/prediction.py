"""The whole prediction: linearize, evolve the law of the outputs, reduce it to losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word
from sgdsde._types import Observable, Progress
from sgdsde.dynamics import Covariance, Dynamics, MomentRecursion, OutputLaw
from sgdsde.linearization import Linearization, as_linearization
from sgdsde.losses import Loss, SquaredError
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability import warn_if_unstable
from sgdsde.trajectory import LossBand, OutputBand, Trajectory

N_RECORDED = 50
OBSERVABLES = ("loss", "outputs")


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
        dynamics: the theory; default ``MomentRecursion()``, the exact second moments of the linearized model.
        record: steps to report; default about 50, geometric, with 0, 1 and n_steps.
        observe: ``"loss"``, and ``"outputs"`` for mean and std of every output.
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
    dynamics = dynamics or MomentRecursion()
    if not isinstance(dynamics, Dynamics):
        remedy = "use dynamics.MomentRecursion() or another of sgdsde.dynamics"
        raise TypeError(complaint("dynamics", "an instance of sgdsde.dynamics.Dynamics", repr(dynamics), remedy))
    limit = warn_if_unstable(linearization, sgd, n_steps)
    reducer = _Reducer(problem, "outputs" in observe)
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
        word("observe", name, OBSERVABLES)


class _Reducer:
    """Turns laws of outputs into bands, one recorded step after the other."""

    def __init__(self, problem: Problem, keep_outputs: bool) -> None:
        self._problem, self._keep_outputs = problem, keep_outputs
        self._losses: dict[str, list[tuple[Tensor, Tensor, Tensor | None]]] = {"train": [], "test": []}
        self._outputs: dict[str, list[tuple[Tensor, Tensor]]] = {"train": [], "test": []}
        self._times: list[float] = []

    def add(self, law: OutputLaw) -> None:
        self._times.append(law.time)
        self._add_side("train", law.mean, law.covariance, law.samples, self._problem.y_train)
        if law.test_mean is not None and self._problem.y_test is not None:
            self._add_side("test", law.test_mean, law.test_covariance, law.test_samples, self._problem.y_test)

    def _add_side(
        self, side: str, mean: Tensor, covariance: Covariance | None, samples: Tensor | None, targets: Tensor
    ) -> None:
        criterion = self._problem.criterion
        self._losses[side].append(loss_of_law(criterion, mean, targets, covariance=covariance, samples=samples))
        if self._keep_outputs:
            std = torch.zeros_like(mean)
            if covariance is not None:
                std = covariance.diagonal().clamp_min(0).sqrt().view_as(mean)
            elif samples is not None:
                std = samples.std(0, correction=1)
            self._outputs[side].append((mean.double().cpu(), std.double().cpu()))

    def trajectory(self, steps: Tensor, dynamics: str, n_steps: int, limit: float | None) -> Trajectory:
        bands = {f"{side}_loss": _loss_band(parts) if parts else None for side, parts in self._losses.items()}
        samples = bands["train_loss"].samples if bands["train_loss"] is not None else None
        n_runs = 0 if samples is None else len(samples)
        outputs = {f"{side}_outputs": _output_band(parts) if parts else None for side, parts in self._outputs.items()}
        diverged = torch.full((n_runs,), n_steps + 1, dtype=torch.int64)
        if samples is not None:
            bad = ~torch.isfinite(samples)
            first = steps[bad.int().argmax(1)]
            diverged = torch.where(bad.any(1), first, diverged)
        assert bands["train_loss"] is not None
        return Trajectory(
            steps=steps,
            times=torch.tensor(self._times, dtype=torch.float64),
            train_loss=bands["train_loss"],
            test_loss=bands["test_loss"],
            **outputs,
            n_runs=n_runs,
            dynamics=dynamics,
            problem_digest=self._problem.digest,
            diverged_at=diverged,
            mean_square_limit=limit,
        )


def loss_of_law(
    criterion: Loss, mean: Tensor, targets: Tensor, *, covariance: Covariance | None, samples: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean and standard deviation of the loss under a law of the outputs, and the loss of each sample.

    Gaussian under squared error, e the mean residual and S the covariance, N examples:

        E L = (s / 2N) (|e|^2 + tr S)          exact for any law with these moments
        Var L = (s / 2N)^2 (2 tr S^2 + 4 e^T S e)   Gaussian closure
    """
    targets = targets.to(mean.dtype) if targets.is_floating_point() else targets
    if samples is not None:
        losses = criterion.mean(samples, targets).double().cpu()
        return losses.mean(), losses.std(correction=1), losses
    if covariance is None:
        return criterion.mean(mean, targets).double().cpu(), torch.zeros((), dtype=torch.float64), None
    if not isinstance(criterion, SquaredError):
        expected = "nn.MSELoss() for a Gaussian law"
        raise ValueError(complaint("loss", expected, type(criterion).__name__, "use dynamics.SDEPaths"))
    scale = criterion.curvature / (2 * len(mean))
    residual = (mean - targets).flatten()
    expected_loss = scale * (residual.square().sum() + covariance.trace)
    variance = 2 * covariance.squared_norm + 4 * covariance.quadratic(residual)
    std = scale * variance.clamp_min(0).sqrt()
    return _finite_or_infinite(expected_loss), _finite_or_infinite(std), None


def _finite_or_infinite(value: Tensor) -> Tensor:
    value = value.double().cpu()
    return value if math.isfinite(value) else torch.tensor(torch.inf, dtype=torch.float64)


def _loss_band(parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> LossBand:
    if parts[0][2] is not None:
        return LossBand.from_samples(torch.stack([samples for _, _, samples in parts if samples is not None], dim=1))
    mean, std = torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
    return LossBand(mean, std, torch.zeros_like(mean))


def _output_band(parts: list[tuple[Tensor, Tensor]]) -> OutputBand:
    return OutputBand(torch.stack([mean for mean, _ in parts]), torch.stack([std for _, std in parts]))
