"""Full-batch gradient descent: SGD's mean path on the linearized model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.modal_state import ModalState
from sgdsde.dynamics.moments.modes import modes_of
from sgdsde.dynamics.moments.state import MomentState, laws
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step


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

    def noise_assumption(self, sgd: SGD) -> str:
        return "no minibatch noise"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        state: MomentState
        if isinstance(linearization.problem.criterion, SquaredError):
            state = ModalState(modes_of(linearization), sgd, plan, noise="none")
        else:
            state = OutputDescent(linearization, sgd, plan)
        return laws(state, plan, record, "gradient descent", progress)


class OutputDescent(MomentState):
    """All outputs f [n + m, c] of the linearized model under full-batch descent of any loss, train first."""

    def __init__(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        self._linearization, self._sgd, self._plan = linearization, sgd, plan
        self._outputs = _stacked(linearization.outputs, linearization.test_outputs)
        self._buffer = torch.zeros_like(self._outputs)
        self._offset = torch.zeros_like(self._outputs)  # J theta - f, which never moves
        if linearization.weight_outputs is not None:
            self._offset = _stacked(linearization.weight_outputs, linearization.test_weight_outputs) - self._outputs

    def law(self, step: int, time: float) -> OutputLaw:
        n = self._linearization.problem.n_train
        test = self._outputs[n:] if self._linearization.problem.n_test else None
        return OutputLaw(step, time, self._outputs[:n], test_mean=test)

    def advance(self, k: int) -> None:
        one, problem = self._linearization, self._linearization.problem
        residual = problem.criterion.gradient(self._outputs[: problem.n_train], one.targets).flatten() / problem.n_train
        cross = None if one.cross_kernel is None else one.cross_kernel @ residual
        gradient = _stacked(one.kernel @ residual, cross).view_as(self._outputs)
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
        weights, self._buffer = step.move(self._outputs + self._offset, self._buffer, gradient)
        self._outputs = weights - self._offset


def _stacked(train: Tensor, test: Tensor | None) -> Tensor:
    return train if test is None else torch.cat([train, test])
