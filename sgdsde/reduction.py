"""From laws of outputs to what a trajectory reports: losses, accuracies, bands of outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._streams import torch_stream
from sgdsde._types import Observable
from sgdsde.dynamics import Covariance, OutputLaw
from sgdsde.losses import Loss, SquaredError, is_right
from sgdsde.losses.expectations import gaussian_loss
from sgdsde.problem import Problem
from sgdsde.trajectory import AccuracyBand, LossBand, OutputBand, Trajectory

GAUSSIAN_DRAWS = 1024
"""Draws of a Gaussian law for the accuracy that has no closed form."""

SPREAD_DRAWS = 256
"""Of these, at least, for the spread of a loss that has none: known to 2 to 4 %."""

NUMBERS_AT_ONCE = 2**23
"""Drawn outputs held together."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """One number under the law at one step: mean, std, standard error of the mean, and its samples if it has any."""

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def certain(cls, value: Tensor) -> Reduced:
        zero = torch.zeros((), dtype=torch.float64)
        return cls(value.double().cpu(), zero, zero)

    @classmethod
    def from_samples(cls, samples: Tensor) -> Reduced:
        samples = samples.double().cpu()
        std = samples.std(correction=1)
        return cls(samples.mean(), std, std / len(samples) ** 0.5, samples)


class Reducer:
    """Turns laws of outputs into bands, one recorded step after the other."""

    def __init__(self, problem: Problem, observe: Sequence[Observable]) -> None:
        self._problem, self._observe = problem, observe
        self._labels: dict[str, Tensor] = {}
        if "accuracy" in observe:
            for side, targets in (("train", problem.y_train), ("test", problem.y_test)):
                if targets is not None:
                    self._labels[side] = problem.criterion.labels(f"y_{side}", targets, problem.n_outputs)
        self._parts: dict[str, list[Reduced]] = {}
        self._outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._times: list[float] = []

    def add(self, law: OutputLaw) -> None:
        """Reduces one law and lets it go."""
        self._times.append(law.time)
        problem = self._problem
        drawn = self._labels or not isinstance(problem.criterion, SquaredError)
        draws = _gaussian_draws(law) if drawn else None
        self._add_side("train", law.mean, law.covariance, law.samples, problem.y_train, draws)
        if law.test_mean is not None and problem.y_test is not None:
            self._add_side("test", law.test_mean, law.test_covariance, law.test_samples, problem.y_test, draws)

    def _add_side(
        self,
        side: str,
        mean: Tensor,
        covariance: Covariance | None,
        samples: Tensor | None,
        targets: Tensor,
        draws: Tensor | None,
    ) -> None:
        targets = targets.to(mean.dtype) if targets.is_floating_point() else targets
        loss = loss_of_law(self._problem.criterion, mean, targets, covariance=covariance, samples=samples, draws=draws)
        self._parts.setdefault(f"{side}_loss", []).append(loss)
        if side in self._labels:
            labels = self._labels[side].to(mean.dtype) if self._labels[side].is_floating_point() else self._labels[side]
            accuracy = accuracy_of_law(mean, labels, covariance=covariance, samples=samples, draws=draws)
            self._parts.setdefault(f"{side}_accuracy", []).append(accuracy)
        if "outputs" in self._observe:
            std = torch.zeros_like(mean)
            if covariance is not None:
                std = covariance.diagonal().clamp_min(0).sqrt().view_as(mean)
            elif samples is not None:
                std = samples.std(0, correction=1)
            self._outputs.setdefault(side, []).append((mean.double().cpu(), std.double().cpu()))

    def trajectory(self, steps: Tensor, dynamics: str, n_steps: int, limit: float | None) -> Trajectory:
        """What was reduced, as a result."""
        losses = {side: _loss_band(self._parts[f"{side}_loss"]) for side in self._sides("loss")}
        accuracies = {side: _accuracy_band(self._parts[f"{side}_accuracy"]) for side in self._sides("accuracy")}
        outputs = {side: _output_band(parts) for side, parts in self._outputs.items()}
        samples = losses["train"].samples
        diverged = torch.full((0 if samples is None else len(samples),), n_steps + 1, dtype=torch.int64)
        if samples is not None:
            bad = ~torch.isfinite(samples)
            diverged = torch.where(bad.any(1), steps[bad.int().argmax(1)], diverged)
        return Trajectory(
            steps=steps,
            times=torch.tensor(self._times, dtype=torch.float64),
            train_loss=losses["train"],
            test_loss=losses.get("test"),
            train_outputs=outputs.get("train"),
            test_outputs=outputs.get("test"),
            n_runs=len(diverged),
            dynamics=dynamics,
            problem_digest=self._problem.digest,
            diverged_at=diverged,
            mean_square_limit=limit,
            train_accuracy=accuracies.get("train"),
            test_accuracy=accuracies.get("test"),
        )

    def _sides(self, what: str) -> list[str]:
        return [side for side in ("train", "test") if f"{side}_{what}" in self._parts]


def loss_of_law(
    criterion: Loss,
    mean: Tensor,
    targets: Tensor,
    *,
    covariance: Covariance | None,
    samples: Tensor | None,
    draws: Tensor | None = None,
) -> Reduced:
    """Mean and standard deviation of the loss under a law of the outputs, and the loss of each sample.

    Gaussian under squared error, e the mean residual and S the covariance, N examples:

        E L = (s / 2N) (|e|^2 + tr S)               exact for any law with these moments
        Var L = (s / 2N)^2 (2 tr S^2 + 4 e^T S e)   Gaussian closure

    Gaussian under another loss: the mean by ``noise.gaussian_loss``; the standard deviation from ``draws``, [P, r]
    draws of the covariance's core, or without them NaN.
    """
    if samples is not None:
        return Reduced.from_samples(criterion.mean(samples, targets))
    if covariance is None:
        return Reduced.certain(criterion.mean(mean, targets))
    zero = torch.zeros((), dtype=torch.float64)
    if not isinstance(criterion, SquaredError):
        blocks = covariance.blocks(mean.shape[1])
        expected_loss = gaussian_loss(criterion, mean, blocks, targets).mean()
        std = torch.tensor(torch.nan, dtype=torch.float64)
        if draws is not None:
            enough = draws[: max(SPREAD_DRAWS, NUMBERS_AT_ONCE // mean.numel())]
            drawn = [criterion.mean(outputs, targets) for outputs in _drawn_outputs(mean, covariance, enough)]
            std = _finite_or_infinite(torch.cat(drawn).std(correction=1))
        return Reduced(_finite_or_infinite(expected_loss), std, zero)
    scale = criterion.curvature / (2 * len(mean))
    residual = (mean - targets).flatten()
    expected_loss = scale * (residual.square().sum() + covariance.trace)
    variance = 2 * covariance.squared_norm + 4 * covariance.quadratic(residual)
    std = scale * variance.clamp_min(0).sqrt()
    return Reduced(_finite_or_infinite(expected_loss), _finite_or_infinite(std), zero)


def accuracy_of_law(
    mean: Tensor,
    labels: Tensor,
    *,
    covariance: Covariance | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
) -> Reduced:
    """Mean and standard deviation of the fraction of examples that are right (``Loss.labels``), under a law of outputs.

    One output of mean m and variance v: P(right) = Phi(sign m / sqrt(v)), in closed form. Several: from ``draws`` of
    the law, [P, r] standard normal numbers times a root of the covariance's core; the standard deviation always is.
    """
    if samples is not None:
        return Reduced.from_samples(is_right(samples, labels).double().mean(-1))
    if covariance is None or draws is None:
        return Reduced.certain(is_right(mean, labels).double().mean(-1))
    right = [is_right(outputs, labels).double().mean(-1) for outputs in _drawn_outputs(mean, covariance, draws)]
    sampled = Reduced.from_samples(torch.cat(right))
    if not labels.is_floating_point():
        return Reduced(sampled.mean, sampled.std, sampled.standard_error)
    std = covariance.diagonal().clamp_min(0).sqrt()
    certain = is_right(mean, labels).double()
    chance = torch.special.ndtr(labels * mean[:, 0] / std.clamp_min(torch.finfo(std.dtype).tiny)).double()
    exact = torch.where(std > 0, chance, certain).mean()
    return Reduced(exact.cpu(), sampled.std, torch.zeros((), dtype=torch.float64))


def _drawn_outputs(mean: Tensor, covariance: Covariance, draws: Tensor) -> Iterator[Tensor]:
    """Outputs [p, n, c] of the draws, some at a time."""
    for some in draws.split(max(1, NUMBERS_AT_ONCE // mean.numel())):
        yield mean + (some @ covariance.factor.mT).view(-1, *mean.shape)


def _gaussian_draws(law: OutputLaw) -> Tensor | None:
    """Draws of the modal coordinates that train and test outputs share, [P, r]; the same at every call."""
    if law.covariance is None:
        return None
    core = law.covariance.core
    # What is added is far below the accuracy of a draw, and lets a core of lower rank pass.
    root, failed = torch.linalg.cholesky_ex(core + 1e-12 * core.diagonal().abs().max() * torch.eye(len(core)).to(core))
    if failed or not torch.isfinite(root).all():
        values, vectors = torch.linalg.eigh(core)
        root = vectors * values.clamp_min(0).sqrt()
    stream = torch_stream(0, "accuracy", 0, core.device)
    normal = torch.randn(GAUSSIAN_DRAWS, len(core), generator=stream, dtype=core.dtype, device=core.device)
    return normal @ root.mT


def _finite_or_infinite(value: Tensor) -> Tensor:
    value = value.double().cpu()
    return value if math.isfinite(value) else torch.tensor(torch.inf, dtype=torch.float64)


def _loss_band(parts: list[Reduced]) -> LossBand:
    samples = _stacked_samples(parts)
    return LossBand(*_columns(parts)) if samples is None else LossBand.from_samples(samples)


def _accuracy_band(parts: list[Reduced]) -> AccuracyBand:
    samples = _stacked_samples(parts)
    return AccuracyBand(*_columns(parts)) if samples is None else AccuracyBand.from_samples(samples)


def _columns(parts: list[Reduced]) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = torch.stack([part.mean for part in parts]), torch.stack([part.std for part in parts])
    return mean, std, torch.stack([part.standard_error for part in parts])


def _stacked_samples(parts: list[Reduced]) -> Tensor | None:
    samples = [part.samples for part in parts if part.samples is not None]
    return torch.stack(samples, dim=1) if samples else None


def _output_band(parts: list[tuple[Tensor, Tensor]]) -> OutputBand:
    return OutputBand(torch.stack([mean for mean, _ in parts]), torch.stack([std for _, std in parts]))
