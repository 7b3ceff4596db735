"""Real minibatch SGD, many runs at once: the measurement that every prediction is held against."""

from __future__ import annotations

from collections.abc import Sequence

from sgdsde import _memory
from sgdsde._checks import complaint, whole_number
from sgdsde._progress import StageCost, Ticker, announced, covered, ticker
from sgdsde._types import Observable, Progress
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.recorder import Recorder
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches, Variant
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.machine import STEP_OVERHEAD, Machine, step_seconds
from sgdsde.problem import Problem, check_training
from sgdsde.recording import check_observables, recorded_steps
from sgdsde.sgd import SGD, check_sgd
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
    variant = _checked_variant(variant, sgd)
    learner = _learner(problem_or_linearization)
    problem = learner.problem
    check_training(problem, sgd)
    plan = sgd.plan(problem.n_train, n_steps)
    refined = variant.refined(plan)
    check_label_noise(sgd, problem)
    _memory.check_count("n_runs", n_runs, 2 * 8 * len(steps), "runs, with their losses,")
    recorder = Recorder(problem, steps, n_runs, n_steps, observe=observe)
    at_once = learner.runs_at_once(sgd, variant.examples(plan), memory, n_runs)
    if progress is not covered:
        progress = announced(_expected_cost(learner, sgd, n_steps, n_runs, at_once), progress)
    ticks = ticker(progress, n_steps * n_runs, "SGD runs")
    for start in range(0, n_runs, at_once):
        runs = range(start, min(start + at_once, n_runs))
        streams = RunStreams(seed, runs, learner.device, learner.dtype)
        _train(RunGroup(learner, sgd, variant, refined, streams), recorder, ticks)
    ticks.close()
    return recorder.trajectory(plan, f"{learner.label}, {variant.label}" if variant.label else learner.label)


def _train(group: RunGroup, recorder: Recorder, ticks: Ticker) -> None:
    for k in range(recorder.last_step + 1):
        if recorder.wants(k):
            recorder.record(k, group.runs, *group.outputs())
        if k == recorder.last_step:
            break
        recorder.watch(k, group.runs, group.advance(k))
        ticks.update(len(group.runs))


def _expected_cost(
    learner: RealLearner | LinearizedLearner, sgd: SGD, n_steps: int, n_runs: int, at_once: int
) -> StageCost:
    """Real runs: a forward pass is timed where there are many steps. Linearized ones: by their products."""
    problem = learner.problem
    if isinstance(learner, RealLearner):
        batch = sgd.batch_size_at(0)
        step, steps = step_seconds(problem, batch, n_steps * n_runs), n_steps * n_runs
        # Runs that are stepped together share the overhead of a step.
        seconds = steps * (step - STEP_OVERHEAD) + n_steps * -(-n_runs // at_once) * STEP_OVERHEAD
        size = learner.functional.n_params * problem.dtype.itemsize
        return StageCost(f"{n_runs} real runs", seconds, 5 * at_once * size)
    rows, d = len(learner.initial) * problem.n_outputs, problem.n_train * problem.n_outputs

    def count(machine: Machine) -> float:
        return n_steps * n_runs * (2 * d * rows / machine.products + 6 * rows / machine.entries)

    seconds = count(Machine.worth(count)) + n_steps * STEP_OVERHEAD
    return StageCost(f"{n_runs} runs of the linearized model", seconds, 8 * 4 * rows * at_once)


def check_label_noise(sgd: SGD, problem: Problem) -> None:
    """Label noise needs targets that numbers can be added to."""
    if sgd.label_noise_std and not isinstance(problem.criterion, SquaredError):
        received = type(problem.loss).__name__
        raise ValueError(complaint("label_noise_std", "0 unless the loss is nn.MSELoss()", received))


def _checked_variant(variant: Variant | None, sgd: SGD) -> Variant:
    if variant is None:
        return Minibatches()
    if not isinstance(variant, Variant):
        remedy = "use sgdsde.SVAG(l=4) or sgdsde.NoisyGradient(), or omit it for SGD"
        raise TypeError(complaint("variant", "SVAG, NoisyGradient or None", repr(variant), remedy))
    variant.check(sgd)
    return variant


def _learner(problem_or_linearization: Problem | Linearization) -> RealLearner | LinearizedLearner:
    if isinstance(problem_or_linearization, Problem):
        return RealLearner(problem_or_linearization)
    if isinstance(problem_or_linearization, Linearization):
        return LinearizedLearner(problem_or_linearization)
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))
