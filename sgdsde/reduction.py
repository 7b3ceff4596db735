"""Reduction of the laws of outputs, one recorded step after the other, to a trajectory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sgdsde._types import Observable
from sgdsde.bands import AccuracyBand, LossBand, OutputBand
from sgdsde.dynamics import Covariance, OutputLaw
from sgdsde.losses import SquaredError, in_dtype
from sgdsde.observables import Estimate, accuracy_of_law, gaussian_draws, loss_of_law
from sgdsde.problem import Problem
from sgdsde.trajectory import Trajectory


class Reducer:
    """Collects losses, accuracies and outputs of one law after the other."""

    def __init__(self, problem: Problem, observe: Sequence[Observable]) -> None:
        self._problem, self._observe = problem, observe
        self._labels: dict[str, Tensor] = {}
        if "accuracy" in observe:
            for side, targets in (("train", problem.y_train), ("test", problem.y_test)):
                if targets is not None:
                    self._labels[side] = problem.criterion.labels(f"y_{side}", targets, problem.n_outputs)
        self._parts: dict[str, list[Estimate]] = {}
        self._outputs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._times: list[float] = []

    def add(self, law: OutputLaw) -> None:
        """Reduce the law of one recorded step, of which only the numbers are kept."""
        self._times.append(law.time)
        problem = self._problem
        drawn = self._labels or not isinstance(problem.criterion, SquaredError)
        draws = gaussian_draws(law) if drawn else None
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
        targets = in_dtype(targets, mean.dtype)
        loss = loss_of_law(self._problem.criterion, mean, targets, covariance=covariance, samples=samples, draws=draws)
        self._parts.setdefault(f"{side}_loss", []).append(loss)
        if side in self._labels:
            labels = in_dtype(self._labels[side], mean.dtype)
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
        """The trajectory of all steps so far; ``limit`` is the mean-square limit if the learning rate is past it."""
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
            origin="predicted",
        )

    def _sides(self, what: str) -> list[str]:
        return [side for side in ("train", "test") if f"{side}_{what}" in self._parts]


def _loss_band(parts: list[Estimate]) -> LossBand:
    samples = _stacked_samples(parts)
    return LossBand(*_columns(parts)) if samples is None else LossBand.from_samples(samples)


def _accuracy_band(parts: list[Estimate]) -> AccuracyBand:
    samples = _stacked_samples(parts)
    return AccuracyBand(*_columns(parts)) if samples is None else AccuracyBand.from_samples(samples)


def _columns(parts: list[Estimate]) -> tuple[Tensor, Tensor, Tensor]:
    mean, std = torch.stack([part.mean for part in parts]), torch.stack([part.std for part in parts])
    return mean, std, torch.stack([part.standard_error for part in parts])


def _stacked_samples(parts: list[Estimate]) -> Tensor | None:
    samples = [part.samples for part in parts if part.samples is not None]
    return torch.stack(samples, dim=1) if samples else None


def _output_band(parts: list[tuple[Tensor, Tensor]]) -> OutputBand:
    return OutputBand(torch.stack([mean for mean, _ in parts]), torch.stack([std for _, std in parts]))
