"""Full-batch gradient descent: SGD's mean path on the linearized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.dynamics.update import Mean, torch_step, update
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class GradientDescent(Dynamics):
    """e' = (I - lr H) e with torch's momentum and decay; the noise of the minibatches left out.

    Any loss. Exactness: under squared error and i.i.d. batches the exact mean of linearized SGD; for other losses exact
    at B = n.
    Cost: n numbers a step under squared error, n^2 c^2 otherwise.
    """

    @property
    def noise_source(self) -> NoiseSource | None:
        return "none"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        if isinstance(linearization.problem.criterion, SquaredError):
            return self._by_modes(linearization, sgd, record, plan)
        return self._by_outputs(linearization, sgd, record, plan, progress)

    def _by_modes(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], plan: StepPlan
    ) -> Iterator[OutputLaw]:
        modes = Modes(linearization)
        offset = sgd.weight_decay * modes.decay_offset() if sgd.weight_decay else None
        mean, times, wanted = Mean.at(modes.start), plan.times, set(record)
        for k in range(record[-1] + 1):
            if k in wanted:
                yield modes.law(k, times[k], mean.e, weight_factor=float(mean.weight_factor))
            if k < record[-1]:
                lr = float(plan.lr[k])
                step = update(sgd, modes.drift, lr=lr, first=k == 0)
                mean.advance(sgd, step, offset, lr=lr, first=k == 0)

    def _by_outputs(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], plan: StepPlan, progress: Progress
    ) -> Iterator[OutputLaw]:
        problem = linearization.problem
        n, c = problem.n_train, problem.n_outputs
        outputs = _stacked(linearization.outputs, linearization.test_outputs)
        kernel, cross = linearization.kernel, linearization.cross_kernel
        weights = outputs.new_zeros(len(outputs), c)
        if sgd.weight_decay:
            if linearization.weight_outputs is None:
                raise self.refuse("weight decay without weight_outputs", "linearize(problem), or weight_decay=0")
            weights = _stacked(linearization.weight_outputs, linearization.test_weight_outputs) - outputs
        buffer, times, wanted = torch.zeros_like(outputs), plan.times, set(record)
        ticks = ticker(progress, record[-1], "gradient descent")
        for k in range(record[-1] + 1):
            if k in wanted:
                test = outputs[n:] if problem.n_test else None
                yield OutputLaw(k, times[k], outputs[:n], test_mean=test)
            if k == record[-1]:
                break
            residual = problem.criterion.gradient(outputs[:n], linearization.targets)
            residual = residual.flatten() / n
            moved = _stacked(kernel @ residual, None if cross is None else cross @ residual)
            gradient = moved.view(-1, c) + sgd.weight_decay * (outputs + weights)
            buffer, move = torch_step(sgd, gradient, buffer, first=k == 0)
            outputs = outputs - float(plan.lr[k]) * move
            ticks.update(1)
        ticks.close()


def _stacked(train: Tensor, test: Tensor | None) -> Tensor:
    return train if test is None else torch.cat([train, test])
