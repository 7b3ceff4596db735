"""Mean and covariance of SGD on the linearized model, in the coordinates of its gradients, for any loss."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sgdsde.dynamics.moments.epochs import EpochFluctuation
from sgdsde.dynamics.moments.feature_state import Expectations, Features, Fluctuation, IndependentFluctuation
from sgdsde.dynamics.moments.state import MomentState
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step


class LinearizedState(MomentState):
    """Mean and law of the outputs f = f_0 + (g - 1) J theta_0 + K w, w [d] the displacement of the weights J^T w.

    Args:
        most_starts: shuffled epochs only, see ``EpochFluctuation``.
        watch: called with every step and what its derivatives are expected to be, before it is taken.
    """

    def __init__(
        self,
        linearization: Linearization,
        sgd: SGD,
        plan: StepPlan,
        *,
        most_starts: int = 0,
        watch: Callable[[int, Expectations], None] | None = None,
    ) -> None:
        self._linearization, self._sgd, self._plan, self._watch = linearization, sgd, plan, watch
        kernel, problem = linearization.dense_kernel, linearization.problem
        self._features = Features(kernel, linearization.dense_cross_kernel, along_gradients=True)
        self._w, self._u = kernel.new_zeros(len(kernel)), kernel.new_zeros(len(kernel))
        self._factor, self._factor_buffer = 1.0, 0.0
        self._fluctuation: Fluctuation
        if sgd.sampling == "shuffled":
            self._fluctuation = EpochFluctuation(
                problem, sgd, plan, size=len(kernel), dtype=kernel.dtype, most_starts=most_starts
            )
        else:
            self._fluctuation = IndependentFluctuation(problem, sgd, plan, size=len(kernel), dtype=kernel.dtype)

    def law(self, step: int, time: float) -> OutputLaw:
        one, features = self._linearization, self._features
        mean, (train, test) = self._train_mean(), self._fluctuation.covariances(features)
        if one.test_outputs is None:
            return OutputLaw(step, time, mean, train)
        assert features.test is not None
        test_mean = self._mean(one.test_outputs, one.test_weight_outputs, features.test)
        return OutputLaw(step, time, mean, train, test_mean=test_mean, test_covariance=test)

    def advance(self, k: int) -> None:
        seen = self._fluctuation.expectations(self._features, self._train_mean())
        if self._watch is not None:
            self._watch(k, seen)
        slope = self._fluctuation.output_gradient(k, seen).flatten() / self._linearization.problem.n_train
        self._fluctuation.advance(k, seen)
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)
        self._w, self._u = step.move(self._w, self._u, slope)
        self._factor, self._factor_buffer = step.move(self._factor, self._factor_buffer, 0.0)

    def _train_mean(self) -> Tensor:
        """m, [n, c]."""
        return self._mean(self._linearization.outputs, self._linearization.weight_outputs, self._features.train)

    def _mean(self, outputs: Tensor, weight_outputs: Tensor | None, kernel: Tensor) -> Tensor:
        if self._sgd.weight_decay and weight_outputs is not None:
            outputs = outputs + (self._factor - 1) * weight_outputs
        return outputs + (kernel @ self._w).view_as(outputs)
