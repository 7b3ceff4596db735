"""Real minibatch SGD, many runs at once: the measurement that every prediction is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgdsde import _memory
from sgdsde._checks import complaint, whole_number
from sgdsde._progress import StageCost, Ticker, announced, covered, ticker
from sgdsde._types import Observable, Progress
from sgdsde.ensemble.batches import settings_in
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.layout import Layout
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.rates import same_words
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.recorder import Recorder
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches, Variant
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import STEP_OVERHEAD, Machine, step_seconds
from sgdsde.problem import Problem, check_training
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.sgd import SGD, StepPlan, check_sgd
from sgdsde.trajectory import Trajectory


def run_ensemble(
    problem_or_linearization: Problem | Linearization,
    sgd: SGD,
    n_steps: int,
    n_runs: int,
    *,
    variant: Variant | None = None,
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
        variant: ``SVAG(l)`` or ``NoisyGradient()`` in place of SGD; default SGD itself.
        seed: run j draws the same batches whatever ``n_runs`` (see ``sampling.batch_indices``).
        record: steps to report; default about 50, geometric. observe: ``"accuracy"``, and ``"outputs"``
            to keep every run's outputs.
        progress: as in ``predict``; the cost of real runs is that of forward passes of a batch, timed where there are
            64 steps or more.
        memory: bytes allowed for the runs held and stepped together; default a quarter of what is free.
    Returns:
        A measured ``Trajectory`` with samples. A run whose loss stops being finite is recorded in ``diverged_at`` and
        as +inf from there on; the others go on.
    Exactness: equal to a ``torch.optim.SGD`` loop over the same batches, to rounding.
    Cost: the gradients of n_runs batches a step, and a pass over all data for each run and recorded step: batched
        products for stacks of dense and convolutional layers, ``vmap`` for other networks, a loop where that cannot. A
        step of the linearized model sums B c columns of its kernel a run.
    """
    check_sgd(sgd)
    return run_ensembles(
        problem_or_linearization,
        [sgd],
        n_steps,
        n_runs,
        variant=variant,
        seed=seed,
        record=record,
        observe=observe,
        memory=memory,
        progress=progress,
    )[0]


def run_ensembles(
    problem_or_linearization: Problem | Linearization,
    sgds: Sequence[SGD],
    n_steps: int,
    n_runs: int,
    *,
    variant: Variant | None = None,
    seed: int = 0,
    record: Sequence[int] | None = None,
    observe: Sequence[Observable] = ("loss",),
    memory: int | None = None,
    progress: Progress = None,
) -> list[Trajectory]:
    """The trajectories of ``run_ensemble`` for several SGDs, all runs of all settings in one ensemble.

    Learning rate, momentum, dampening, weight decay, label noise and batch size may differ from one SGD to the next.
    Those of one batch size and sampling that use the same terms (momentum or none, decay or none) are stepped together
    with a number of their own for each run, and share their draws; the others follow each other.

    Args:
        sgds: at least one. n_runs: of each of them. variant, record, observe: as in ``run_ensemble``.
    Returns:
        One ``Trajectory`` for each SGD, in their order. Every SGD gets the runs of ``seed``: run j of two settings of
        one batch size and sampling is trained on the same batches.
    Exactness: run j of an SGD is its run j alone, the same arithmetic on numbers of its own, to rounding: products
        round by where in memory they read. Measured on a CPU: bit-equal where widths and batches are multiples of 16
        (float32) or 8 (float64) and at least two runs are asked for; elsewhere losses differ by 2e-7 and 4e-16 of
        themselves after 20 steps. Of the linearized model bit-equal while a batch is at most a quarter of the data.
    """
    n_steps, n_runs = whole_number("n_steps", n_steps), whole_number("n_runs", n_runs, minimum=1)
    seed = whole_number("seed", seed)
    steps = recorded_steps(n_steps, record)
    check_observables(observe)
    variant, sgds = _checked_variant(variant), _checked_sgds(sgds)
    learner = _learner(problem_or_linearization)
    problem = learner.problem
    for sgd in sgds:
        variant.check(sgd)
        check_training(problem, sgd)
        check_label_noise(sgd, problem)
    ensemble = _Ensemble(learner, sgds, variant, [sgd.plan(problem.n_train, n_steps) for sgd in sgds], seed, memory)
    _memory.check_count("n_runs", n_runs, 2 * 8 * len(steps) * len(sgds), "runs, with their losses,")
    recorders = [Recorder(problem, steps, n_runs, n_steps, observe=observe) for _ in sgds]
    if progress is not covered:
        progress = announced(ensemble.expected_cost(n_steps, n_runs), progress)
    ticks = ticker(progress, n_steps * n_runs * len(sgds), "SGD runs")
    for settings in ensemble.together():
        ensemble.train(settings, n_runs, recorders, ticks)
    ticks.close()
    label = f"{learner.label}, {variant.label}" if variant.label else learner.label
    return [recorder.trajectory(plan, label) for recorder, plan in zip(recorders, ensemble.plans)]


@dataclass(frozen=True, eq=False)
class _Ensemble:
    """What is trained, and by which SGDs."""

    learner: RealLearner | LinearizedLearner
    sgds: Sequence[SGD]
    variant: Variant
    plans: Sequence[StepPlan]
    seed: int
    memory: int | None

    def together(self) -> list[list[int]]:
        """The SGDs whose runs may be stepped together, by number."""
        found: dict[tuple[object, ...], list[int]] = {}
        for number, (sgd, plan) in enumerate(zip(self.sgds, self.plans)):
            found.setdefault(same_words(sgd, plan), []).append(number)
        return list(found.values())

    def train(self, settings: list[int], n_runs: int, recorders: Sequence[Recorder], ticks: Ticker) -> None:
        """All runs of these SGDs, as many at once as the layout says: all settings of some runs, or some of them."""
        sgds, recorders = [self.sgds[s] for s in settings], [recorders[s] for s in settings]
        plans = [self.variant.refined(self.plans[s]) for s in settings]
        layout = self._layout(settings, n_runs)
        runs_held = min(n_runs, layout.held)
        settings_held = layout.held // runs_held
        for first in range(0, len(settings), settings_held):
            some = slice(first, first + settings_held)
            for start in range(0, n_runs, runs_held):
                runs = range(start, min(start + runs_held, n_runs))
                streams = RunStreams(self.seed, runs, self.learner.device, self.learner.dtype)
                words: dict[str, Any] = {"variant": self.variant, "streams": streams, "layout": layout}
                # Made in the call, so that no group outlives its own training.
                _train(RunGroup(self.learner, sgds[some], plans[some], **words), runs, recorders[some], ticks)

    def expected_cost(self, n_steps: int, n_runs: int) -> StageCost:
        """Real runs: a forward pass is timed where there are many steps. Linearized ones: by their products."""
        learner, problem, total = self.learner, self.learner.problem, n_runs * len(self.sgds)
        at_once = min(total, self._layout([0], total).together)
        if isinstance(learner, RealLearner):
            step = step_seconds(problem, self.sgds[0].batch_size_at(0), n_steps * total)
            # Runs that are stepped together share the overhead of a step.
            seconds = n_steps * (total * (step - STEP_OVERHEAD) + -(-total // at_once) * STEP_OVERHEAD)
            size = problem.functional.n_params * problem.dtype.itemsize
            return StageCost(f"{total} real runs", seconds, 5 * total * size)
        rows, d = len(learner.initial) * problem.n_outputs, problem.n_train * problem.n_outputs

        def count(machine: Machine) -> float:
            return n_steps * total * (2 * d * rows / machine.products + 6 * rows / machine.entries)

        seconds = count(Machine.worth(count)) + n_steps * STEP_OVERHEAD
        return StageCost(f"{total} runs of the linearized model", seconds, 8 * 4 * rows * at_once)

    def _layout(self, settings: Sequence[int], n_runs: int) -> Layout:
        needs = self.learner.needs(self.sgds[settings[0]], self.variant.examples(self.plans[settings[0]]))
        return needs.layout(len(settings) * n_runs, self.memory, self.learner.device)


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


def _learner(problem_or_linearization: Problem | Linearization) -> RealLearner | LinearizedLearner:
    if isinstance(problem_or_linearization, Problem):
        return RealLearner(problem_or_linearization)
    if isinstance(problem_or_linearization, Linearization):
        return LinearizedLearner(problem_or_linearization)
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))
