"""Minibatch SGD of the linearized model, sampled: the theory that represents every SGD under every loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import whole_number
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics
from sgdsde.dynamics.moments.state import MomentState, laws
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan

PREDICTED = 2**32
"""Added to the seed, so that no prediction shares its batches with the runs that it is held against."""


@dataclass(frozen=True)
class LinearizedSGD(Dynamics):
    """Runs of SGD on the model f_0 + J (theta - theta_0), on batches drawn as SGD draws them; no run of the network.

    Any loss, any sampling (shuffled epochs with their last smaller batch), momentum, decay, schedules: nothing of the
    noise is idealized, neither its shape nor its dependence within an epoch.

    Args:
        n_runs: sampled runs; the standard error of the mean loss is the spread over runs / sqrt(n_runs).
        seed: the runs do not share batches with ``run_ensemble`` under any seed.
    Exactness: exact in law for a model linear in its parameters; sampling error as reported.
    Cost: one product [n_runs, d] x [d, d + m c] a step, d = n c.
    Raises:
        ValueError: label noise under another loss than squared error; weight decay where J theta_0 is unknown.
    """

    n_runs: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_runs", whole_number("n_runs", self.n_runs, minimum=2))
        object.__setattr__(self, "seed", whole_number("seed", self.seed))

    @property
    def needs_spectrum(self) -> bool:
        return False

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        _memory.check_count("n_runs", self.n_runs, 3 * 8 * linearization.outputs.numel(), "runs")
        runs = SampledRuns(LinearizedLearner(linearization), sgd, plan, n_runs=self.n_runs, seed=self.seed + PREDICTED)
        return laws(runs, plan, record, "SGD of the linearized model", progress)


class SampledRuns(MomentState):
    """Independent runs as samples of the law of the outputs."""

    def __init__(self, learner: LinearizedLearner, sgd: SGD, plan: StepPlan, *, n_runs: int, seed: int) -> None:
        variant = Minibatches()
        layout = learner.needs(sgd, variant.examples(plan)).layout(n_runs, None, learner.device)
        starts = range(0, n_runs, layout.held)
        blocks = [range(start, min(start + layout.held, n_runs)) for start in starts]
        streams = [RunStreams(seed, runs, learner.device, learner.dtype) for runs in blocks]
        self._groups = [
            RunGroup(learner, [sgd], [plan], variant=variant, streams=part, layout=layout) for part in streams
        ]

    def advance(self, k: int) -> None:
        for group in self._groups:
            for _ in group.advance(range(k, k + 1)):
                pass

    def law(self, step: int, time: float) -> OutputLaw:
        parts = [(train, test) for group in self._groups for _, train, test in group.outputs()]
        train = torch.cat([part for part, _ in parts])
        tests: list[Tensor] = [test for _, test in parts if test is not None]
        if not tests:
            return OutputLaw(step, time, train.mean(0), samples=train)
        test = torch.cat(tests)
        return OutputLaw(step, time, train.mean(0), samples=train, test_mean=test.mean(0), test_samples=test)
