"""Groups of runs stepped with or without recordings: one walk for every kind of step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sgdsde
from sgdsde import SGD, SVAG, NoisyGradient
from sgdsde.ensemble.group import RunGroup
from sgdsde.ensemble.layout import Layout
from sgdsde.ensemble.linearized import LinearizedLearner
from sgdsde.ensemble.real import RealLearner
from sgdsde.ensemble.stepper import Loop, Vmapped
from sgdsde.ensemble.streams import RunStreams
from sgdsde.ensemble.variants import Minibatches, Variant

N_STEPS, N_RUNS = 23, 3
RECORDED = (0, 2, 3, 17, N_STEPS)
AT_ONCE = 6
"""Steps that are drawn at once, at most."""

MADE: dict[str, Callable[[sgdsde.Problem], Any]] = {
    "fastest": RealLearner,
    "vmap": lambda problem: RealLearner(problem, Vmapped),
    "loop": lambda problem: RealLearner(problem, Loop),
    "linearized": lambda problem: LinearizedLearner(sgdsde.linearize(problem)),
}
"""Learners by name; ``fastest`` takes batched products where there are layers."""


@dataclass(frozen=True)
class Walk:
    """SGDs that are stepped together, and the batch sizes of their steps with how often each comes."""

    sgds: Sequence[SGD]
    sizes: dict[int, int]
    variant: Variant = field(default_factory=Minibatches)


PAIR = [SGD(0.1, 2, momentum=0.5, weight_decay=0.1), SGD(0.05, 2, momentum=0.9, weight_decay=0.2, dampening=0.4)]
WALKS = {
    "plain": Walk([SGD(0.1, 2)], {2: N_STEPS}),
    "momentum, dampening": Walk([SGD(0.1, 2, momentum=0.7, dampening=0.5)], {2: N_STEPS}),
    "nesterov, decay": Walk([SGD(0.1, 2, momentum=0.7, nesterov=True, weight_decay=0.1)], {2: N_STEPS}),
    "decay": Walk([SGD(0.1, 2, weight_decay=0.2)], {2: N_STEPS}),
    "label noise": Walk([SGD(0.1, 2, label_noise_std=0.5)], {2: N_STEPS}),
    "shuffled": Walk([SGD(0.1, 3, sampling="shuffled")], {3: 16, 1: 7}),
    "batch sizes": Walk([SGD(0.1, lambda k: 1 + (k // 4) % 2)], {1: 12, 2: 11}),
    "a size that is rare": Walk([SGD(0.1, lambda k: 2 if k % 6 else 3, momentum=0.5)], {2: 19, 3: 4}),
    "learning rates": Walk([SGD(lambda k: 0.2 / (1 + k), 2, momentum=0.5)], {2: N_STEPS}),
    "several settings": Walk(PAIR, {2: N_STEPS}),
    "label noise of several": Walk([SGD(0.1, 2, label_noise_std=s) for s in (0.2, 0.6)], {2: N_STEPS}),
    "SVAG": Walk([SGD(0.1, 2)], {2: 2 * N_STEPS}, SVAG(2)),
    "SVAG of a batch schedule": Walk([SGD(0.1, lambda k: 1 + k % 2)], {1: 24, 2: 22}, SVAG(2)),
    "noisy gradient": Walk([SGD(0.05, 2)], {2: N_STEPS}, NoisyGradient()),
    "noisy gradient, sometimes all": Walk(
        [SGD(0.05, lambda k: 7 if k % 3 else 2, sampling="without_replacement")], {7: 15, 2: 8}, NoisyGradient()
    ),
}


def group_of(learner: Any, walk: Walk, graphs: Any, *, together: int | None = None) -> RunGroup:
    plans = [walk.variant.refined(sgd.plan(learner.problem.n_train, N_STEPS)) for sgd in walk.sgds]
    streams = RunStreams(5, range(N_RUNS), learner.device, learner.dtype)
    n_members = N_RUNS * len(walk.sgds)
    words: dict[str, Any] = {"variant": walk.variant, "streams": streams, "graphs": graphs}
    one = RunGroup(learner, walk.sgds, plans, layout=Layout(n_members, n_members, 1), **words)._draws._bytes
    layout = Layout(n_members, together or n_members, AT_ONCE * one)
    return RunGroup(learner, walk.sgds, plans, layout=layout, **words)


def walked(learner: Any, walk: Walk, graphs: Any = None, *, together: int | None = None) -> Tensor:
    """Numbers of the steps, losses before them, and outputs at the records, as one vector."""
    group = group_of(learner, walk, graphs, together=together)
    found: list[Tensor] = []
    for start, stop in zip((0, *RECORDED), RECORDED):
        for steps, losses in group.advance(range(start, stop)):
            assert len(steps) <= AT_ONCE
            found += [steps, losses]
        found += [part for _, train, test in group.outputs() for part in (train, test) if part is not None]
    return torch.cat([part.flatten().double().cpu() for part in found])
