"""Training of an ensemble: what is trained by which SGDs, and the trajectories of some of the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._progress import StageCost, Ticker, ticker
from sgdsde._types import Observable
from sgdsde.ensemble.batches import settings_in
from sgdsde.ensemble.blocks import BlockRun
from sgdsde.ensemble.cuda_graphs import Graphs, graphs_of
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.layout import Layout, Needs
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.rates import same_words
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.recorder import Recorder
from sgdsde.ensemble.stepper import Compiled
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches, Variant
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import CALL_OVERHEAD, Machine, linearized_runs_seconds, runs_seconds
from sgdsde.problem import Problem, check_training
from sgdsde.sgd import SGD, StepPlan, check_sgd, in_words
from sgdsde.trajectory import Trajectory


@dataclass(frozen=True, eq=False)
class Ensemble:
    """What is trained, and by which SGDs; ``of`` checks all of it.

    Attributes:
        graphs: makes what records the steps of a group of runs, or None.
    """

    learner: RealLearner | LinearizedLearner
    sgds: Sequence[SGD]
    variant: Variant
    plans: Sequence[StepPlan]
    seed: int
    memory: int | None
    steps: Tensor
    observe: Sequence[Observable]
    graphs: Callable[[torch.device], Graphs | None] = graphs_of

    @classmethod
    def of(
        cls,
        problem_or_linearization: Problem | Linearization,
        sgds: Sequence[SGD],
        steps: Tensor,
        *,
        n_steps: int,
        variant: Variant | None = None,
        seed: int = 0,
        memory: int | None = None,
        observe: Sequence[Observable] = ("loss",),
        compiled: bool = False,
    ) -> Ensemble:
        """Checked, nothing computed."""
        variant, sgds = _checked_variant(variant), _checked_sgds(sgds)
        learner = _learner(problem_or_linearization, compiled)
        for sgd in sgds:
            variant.check(sgd)
            check_training(learner.problem, sgd)
            check_label_noise(sgd, learner.problem)
        plans = [sgd.plan(learner.problem.n_train, n_steps) for sgd in sgds]
        return cls(learner, sgds, variant, plans, seed, memory, steps, tuple(observe))

    def trajectories(self, numbers: Sequence[int], runs: range, ticks: Ticker) -> list[Trajectory]:
        """The trajectories of these runs of some of the SGDs, by number."""
        problem, learner = self.learner.problem, self.learner
        recorders = {
            number: Recorder(problem, self.steps, runs, len(self.plans[number]), observe=self.observe)
            for number in numbers
        }
        for settings in self._together(numbers):
            self._train(settings, runs, [recorders[s] for s in settings], ticks)
        label = f"{learner.label}, {self.variant.label}" if self.variant.label else learner.label
        return [recorders[number].trajectory(self.plans[number], label) for number in numbers]

    def block(self, job: BlockRun) -> Trajectory:
        """The trajectory of one block of runs of one SGD."""
        return self.trajectories([job[0]], job[1], ticker(None, 0, ""))[0]

    def in_words(self) -> dict[str, str]:
        """Everything that decides the numbers but for the function that the model is, in words."""
        problem, n_steps = self.learner.problem, len(self.plans[0])
        words = {"trained": self.learner.label, "problem": problem.digest, "n_steps": str(n_steps)}
        words |= {"record": str(self.steps.tolist()), "observe": str(sorted({"loss", *self.observe}))}
        words |= {"variant": repr(self.variant), "seed": str(self.seed)}
        words |= {"steps": "compiled"} if self.is_compiled else {}
        words["dtype and device"] = f"{self.learner.dtype}, {self.learner.device.type}"
        for number, sgd in enumerate(self.sgds):
            words[f"setting {number}"] = in_words(sgd, self.plans[number])
        return words

    @property
    def is_compiled(self) -> bool:
        return isinstance(self.learner, RealLearner) and isinstance(self.learner.stepper, Compiled)

    def _together(self, numbers: Sequence[int]) -> list[list[int]]:
        """The SGDs whose runs may be stepped together, by number."""
        found: dict[tuple[object, ...], list[int]] = {}
        for number in numbers:
            found.setdefault(same_words(self.sgds[number], self.plans[number]), []).append(number)
        return list(found.values())

    def _train(self, settings: list[int], runs: range, recorders: Sequence[Recorder], ticks: Ticker) -> None:
        """These runs of these SGDs, as many at once as the layout says: all settings of some runs, or some of them."""
        sgds = [self.sgds[s] for s in settings]
        plans = [self.variant.refined(self.plans[s]) for s in settings]
        layout = self._layout(settings, len(runs))
        runs_held = min(len(runs), layout.held)
        settings_held = layout.held // runs_held
        for first in range(0, len(settings), settings_held):
            some = slice(first, first + settings_held)
            for start in range(runs.start, runs.stop, runs_held):
                held = range(start, min(start + runs_held, runs.stop))
                streams = RunStreams(self.seed, held, self.learner.device, self.learner.dtype)
                words: dict[str, Any] = {"variant": self.variant, "streams": streams, "layout": layout}
                words["graphs"] = None if self.is_compiled else self.graphs(self.learner.device)
                # Made in the call, so that no group outlives its own training.
                _train(RunGroup(self.learner, sgds[some], plans[some], **words), held, recorders[some], ticks)

    def expected_cost(self, n_steps: int, n_runs: int) -> StageCost:
        """Real runs: a forward pass is timed where there are many steps. Linearized ones: by their products."""
        learner, problem, total = self.learner, self.learner.problem, n_runs * len(self.sgds)
        needs, layout, batch_size = self._needs([0]), self._layout([0], total), self.sgds[0].batch_size_at(0)
        held = layout.held * needs.held + layout.together * needs.moved
        if isinstance(learner, RealLearner):
            seconds = runs_seconds(problem, batch_size, n_steps, total, -(-total // layout.together))
            return StageCost(f"{total} real runs", seconds, held)
        rows, d = len(learner.initial) * problem.n_outputs, problem.n_train * problem.n_outputs

        def count(machine: Machine) -> float:
            examples = batch_size * problem.n_outputs
            return n_steps * total * linearized_runs_seconds(rows, d, examples, machine)

        seconds = count(Machine.worth(count)) + n_steps * CALL_OVERHEAD
        return StageCost(f"{total} runs of the linearized model", seconds, held)

    def _layout(self, settings: Sequence[int], n_runs: int) -> Layout:
        return self._needs(settings).layout(len(settings) * n_runs, self.memory, self.learner.device)

    def _needs(self, settings: Sequence[int]) -> Needs:
        return self.learner.needs(self.sgds[settings[0]], self.variant.examples(self.plans[settings[0]]))


def _train(group: RunGroup, runs: range, recorders: Sequence[Recorder], ticks: Ticker) -> None:
    for stretch in recorders[0].stretches:
        done = stretch.start
        for steps, losses in group.advance(stretch):
            for recorder, part in zip(recorders, losses.split(len(runs), dim=1)):
                recorder.watch(steps, runs, part)
            ticks.update(group.n_members * (int(steps[-1]) - done))  # the last of several substeps may be missing
            done = int(steps[-1])
        ticks.update(group.n_members * (stretch.stop - done))
        for members, train, test in group.outputs():
            for setting, which, rows in settings_in(members, len(runs)):
                those = runs[which]
                recorders[setting].record(stretch.stop, those, train[rows], None if test is None else test[rows])


def check_label_noise(sgd: SGD, problem: Problem) -> None:
    """Label noise needs targets that numbers can be added to."""
    if sgd.label_noise_std and not isinstance(problem.criterion, SquaredError):
        received = type(problem.loss).__name__
        raise ValueError(complaint("label_noise_std", "0 unless the loss is nn.MSELoss()", received))


def _checked_sgds(sgds: Sequence[SGD]) -> list[SGD]:
    remedy = (
        "use run_ensemble for one SGD" if isinstance(sgds, SGD) else "pass a list of sgdsde.SGD(lr=..., batch_size=...)"
    )
    if isinstance(sgds, str) or not isinstance(sgds, Sequence) or not sgds:
        received = "none" if isinstance(sgds, Sequence) and not isinstance(sgds, str) else type(sgds).__name__
        raise TypeError(complaint("sgds", "a sequence of one SGD at least", received, remedy))
    for sgd in sgds:
        check_sgd(sgd)
    return list(sgds)


def _checked_variant(variant: Variant | None) -> Variant:
    if variant is None:
        return Minibatches()
    if not isinstance(variant, Variant):
        remedy = "use sgdsde.SVAG(l=4) or sgdsde.NoisyGradient(), or omit it for SGD"
        raise TypeError(complaint("variant", "SVAG, NoisyGradient or None", repr(variant), remedy))
    return variant


def _learner(problem_or_linearization: Problem | Linearization, compiled: bool) -> RealLearner | LinearizedLearner:
    if isinstance(problem_or_linearization, Problem):
        return RealLearner(problem_or_linearization, compiled=compiled)
    if isinstance(problem_or_linearization, Linearization):
        if compiled:
            received = "True for a Linearization"
            remedy = "omit it: its steps are sums of columns of the kernel, and no forward pass is compiled"
            raise ValueError(complaint("compiled", "used with a Problem", received, remedy))
        return LinearizedLearner(problem_or_linearization)
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))
