"""Real minibatch SGD, many runs at once: the measurement that every prediction is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._progress import Ticker, ticker
from sgdsde._streams import BLOCK, torch_stream
from sgdsde._types import Observable, Progress
from sgdsde.dynamics.update import torch_step
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.recorder import Recorder
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.sampling import block_batches
from sgdsde.sgd import SGD, StepPlan, check_sgd
from sgdsde.trajectory import Trajectory


def run_ensemble(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    n_runs: int,
    *,
    seed: int = 0,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    memory: int | None = None,
    progress: Progress = None,
) -> Trajectory:
    """Losses of ``n_runs`` independent runs of minibatch SGD from the same initial weights.

    Args:
        problem_or_linearization: a ``Problem``: the real network is trained. A ``Linearization``: SGD of the linearized
            model, in output space, on the same batches for the same seed.
        seed: run j draws the same batches whatever ``n_runs`` (see ``sampling.batch_indices``).
        record: steps to report; default about 50, geometric. observe: ``"accuracy"``, and ``"outputs"``
            to keep every run's outputs.
        memory: bytes allowed for the runs stepped together; default a quarter of what is free.
    Returns:
        A measured ``Trajectory`` with samples. A run whose loss stops being finite is recorded in ``diverged_at`` and
        as +inf from there on; the others go on.
    Exactness: equal to a ``torch.optim.SGD`` loop over the same batches, to rounding.
    Cost: the gradients of n_runs batches a step, and a pass over all data for each run and recorded step. A linearized
        step is one product [rows, d] x [d, n_runs].
    """
    n_steps, n_runs = whole_number("n_steps", n_steps), whole_number("n_runs", n_runs, minimum=1)
    seed = whole_number("seed", seed)
    steps = recorded_steps(n_steps, record)
    check_sgd(sgd)
    check_observables(observe)
    learner = _learner(problem_or_linearization)
    problem = learner.problem
    plan = sgd.plan(problem.n_train, n_steps)
    if sgd.label_noise_std and not isinstance(problem.criterion, SquaredError):
        received = type(problem.loss).__name__
        raise ValueError(complaint("label_noise_std", "0 unless the loss is nn.MSELoss()", received))
    recorder = Recorder(problem, steps, n_runs, n_steps, observe=observe)
    at_once = learner.runs_at_once(sgd, plan, memory, n_runs)
    ticks = ticker(progress, n_steps * n_runs, "SGD runs")
    for start in range(0, n_runs, at_once):
        runs = range(start, min(start + at_once, n_runs))
        _Group(learner, sgd, plan, seed, runs).train(recorder, ticks)
    ticks.close()
    return recorder.trajectory(plan, learner.label)


@dataclass(frozen=True, eq=False)
class _Group:
    """Runs that are stepped together."""

    learner: RealLearner | LinearizedLearner
    sgd: SGD
    plan: StepPlan
    seed: int
    runs: range

    def train(self, recorder: Recorder, ticks: Ticker) -> None:
        state = self.learner.start(len(self.runs))
        buffer = {name: torch.zeros_like(value) for name, value in state.items()} if self.sgd.momentum else state
        batches, labels = self._batches(), self._label_noise()
        for k in range(recorder.last_step + 1):
            if recorder.wants(k):
                recorder.record(k, self.runs, *self.learner.all_outputs(state))
            if k == recorder.last_step:
                break
            indices = next(batches)
            noise = labels(indices) if labels is not None else None
            gradient, loss = self.learner.gradient(state, indices, noise)
            recorder.watch(k, self.runs, loss)
            lr = float(self.plan.lr[k])
            for name, value in state.items():
                slope = gradient[name]
                if self.sgd.weight_decay:
                    slope = slope + self.sgd.weight_decay * self.learner.weights(name, value)
                buffer[name], move = torch_step(self.sgd, slope, buffer[name], first=k == 0)
                state[name] = value.sub_(move, alpha=lr)
            ticks.update(len(self.runs))

    def _blocks(self) -> list[tuple[int, slice]]:
        """Stream blocks that these runs touch, and which of each block's 64 rows they are."""
        first, last = self.runs.start // BLOCK, (self.runs.stop - 1) // BLOCK
        starts = [max(self.runs.start - b * BLOCK, 0) for b in range(first, last + 1)]
        stops = [min(self.runs.stop - b * BLOCK, BLOCK) for b in range(first, last + 1)]
        return [(b, slice(i, j)) for b, i, j in zip(range(first, last + 1), starts, stops)]

    def _batches(self) -> Iterator[Tensor]:
        blocks = self._blocks()
        device = self.learner.device
        for parts in zip(*(block_batches(self.plan, self.seed, block) for block, _ in blocks)):
            rows = [torch.from_numpy(part[rows]) for part, (_, rows) in zip(parts, blocks)]
            yield torch.cat(rows).to(device)

    def _label_noise(self) -> Callable[[Tensor], Tensor] | None:
        """Standard normal numbers [runs, B, c] of the next step, times the label noise."""
        if not self.sgd.label_noise_std:
            return None
        device, dtype, c = self.learner.device, self.learner.dtype, self.learner.problem.n_outputs
        streams = [(torch_stream(self.seed, "labels", b, device), rows) for b, rows in self._blocks()]

        def draw(indices: Tensor) -> Tensor:
            shape = (BLOCK, indices.shape[1], c)
            parts = [torch.randn(shape, generator=stream, dtype=dtype, device=device)[rows] for stream, rows in streams]
            return torch.cat(parts) * self.sgd.label_noise_std

        return draw


def _learner(problem_or_linearization: Problem | Linearization) -> RealLearner | LinearizedLearner:
    if isinstance(problem_or_linearization, Problem):
        return RealLearner(problem_or_linearization)
    if isinstance(problem_or_linearization, Linearization):
        return LinearizedLearner(problem_or_linearization)
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))
