"""Recorder of the losses and outputs of an ensemble."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdsde._types import Observable
from sgdsde.bands import AccuracyBand, LossBand, OutputBand
from sgdsde.ensemble.transfer import sent
from sgdsde.losses import in_dtype, is_right
from sgdsde.problem import Problem
from sgdsde.sgd import StepPlan
from sgdsde.trajectory import Trajectory


class Recorder:
    """Losses (and outputs) of consecutive runs at the recorded steps, and when each run diverged."""

    def __init__(
        self, problem: Problem, steps: Tensor, runs: range, n_steps: int, *, observe: Sequence[Observable]
    ) -> None:
        self._problem, self._steps, self._first = problem, steps, runs.start
        self._n_runs = n_runs = len(runs)
        self._rows = {int(step): row for row, step in enumerate(steps)}
        sides = {"train": problem.n_train} | ({"test": problem.n_test} if problem.n_test else {})
        self._losses = {side: torch.full((n_runs, len(steps)), torch.inf, dtype=torch.float64) for side in sides}
        shape = (n_runs, len(steps))
        self._outputs = {
            side: torch.full((*shape, size, problem.n_outputs), torch.nan, dtype=torch.float64)
            for side, size in sides.items()
            if "outputs" in observe
        }
        self._accuracies = {side: torch.zeros(shape, dtype=torch.float64) for side in sides if "accuracy" in observe}
        self._labels = {
            side: problem.criterion.labels(f"y_{side}", getattr(problem, f"y_{side}"), problem.n_outputs)
            for side in self._accuracies
        }
        self._diverged_at = torch.full((n_runs,), n_steps + 1, dtype=torch.int64, device=problem.device)

    @property
    def stretches(self) -> list[range]:
        """The steps up to each record, which may be none: 0 -> first record, first -> second and so on."""
        edges = [0, *self._steps.tolist()]
        return [range(start, stop) for start, stop in itertools.pairwise(edges)]

    def watch(self, steps: Tensor, runs: range, losses: Tensor) -> None:
        """Mark runs whose losses [K, runs] at these steps [K] are not all finite; nothing waits for the device."""
        window = self._diverged_at[self._rows_of(runs)]
        now = torch.where(torch.isfinite(losses), window, sent(steps, window.device)[:, None])
        torch.minimum(window, now.amin(0), out=window)

    def record(self, step: int, runs: range, train: Tensor, test: Tensor | None) -> None:
        row = self._rows[step]
        for side, outputs in (("train", train), ("test", test)):
            if outputs is None:
                continue
            targets = self._problem.y_train if side == "train" else self._problem.y_test
            assert targets is not None
            loss = self._problem.criterion.mean(outputs, in_dtype(targets, outputs.dtype)).double()
            if side == "train":
                self.watch(torch.tensor([step]), runs, loss[None])
            self._losses[side][self._rows_of(runs), row] = loss.cpu()
            if side in self._accuracies:
                right = is_right(outputs, self._labels[side]).double().mean(-1)
                self._accuracies[side][self._rows_of(runs), row] = right.cpu()
            if side in self._outputs:
                self._outputs[side][self._rows_of(runs), row] = outputs.double().cpu()

    def _rows_of(self, runs: range) -> slice:
        return slice(runs.start - self._first, runs.stop - self._first)

    def trajectory(self, plan: StepPlan, label: str) -> Trajectory:
        diverged_at = self._diverged_at.cpu()
        late = self._steps[None, :] >= diverged_at[:, None]
        bands = {side: LossBand.from_samples(loss.masked_fill(late, torch.inf)) for side, loss in self._losses.items()}
        outputs = {side: OutputBand.from_samples(values) for side, values in self._outputs.items()}
        accuracies = {side: AccuracyBand.from_samples(values) for side, values in self._accuracies.items()}
        return Trajectory(
            steps=self._steps,
            times=torch.from_numpy(plan.times)[self._steps],
            train_loss=bands["train"],
            test_loss=bands.get("test"),
            train_outputs=outputs.get("train"),
            test_outputs=outputs.get("test"),
            n_runs=self._n_runs,
            dynamics=label,
            problem_digest=self._problem.digest,
            diverged_at=diverged_at,
            train_accuracy=accuracies.get("train"),
            test_accuracy=accuracies.get("test"),
            origin="measured",
        )
