"""Some of the training examples, linearized: what the checks of a diagnosis are computed on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.linearization import Linearization, linearize
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability.limits import limit_of_map
from sgdsde.stability.local import local_map, map_at
from sgdsde.stability.second_moments import SecondMomentMap

OUTPUTS = 128
"""Outputs of the examples looked at; all of them where they are no more."""

LIMIT_PRECISION = 0.01
"""Relative precision of the mean-square limit."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Evenly spaced training examples of a problem, as the linearization of a smaller problem.

    Attributes:
        whole: the problem that they stand for. linearization: of the examples taken, without a test set.
    """

    whole: Problem
    linearization: Linearization

    @classmethod
    def of(cls, problem: Problem) -> Sample:
        """At most ``OUTPUTS`` outputs, one example at least."""
        count = min(problem.n_train, max(1, OUTPUTS // problem.n_outputs))
        part = problem
        if count < problem.n_train or problem.x_test is not None:
            some = torch.linspace(0, problem.n_train - 1, count).round().long().to(problem.device)
            x, y = problem.x_train[some], problem.y_train[some]
            part = dataclasses.replace(problem, x_train=x, y_train=y, x_test=None, y_test=None)
        return cls(problem, linearize(part))

    @property
    def kernel(self) -> Tensor:
        return self.linearization.dense_kernel

    def kernel_at(self, params: Params) -> Tensor:
        """The kernel of these examples at other weights."""
        return kernel_between(self.linearization.problem, params, self.linearization.problem.x_train).to(self.kernel)

    def drift(self, kernel: Tensor) -> float:
        """|K_k - K_0| / |K_0| in Frobenius norm; infinite where K_k is not finite."""
        norm = float(torch.linalg.norm(self.kernel))
        change = float(torch.linalg.norm(kernel - self.kernel))
        if not math.isfinite(change):
            return math.inf
        return change / norm if norm > 0 else 0.0

    def limit_ratio(self, sgd: SGD, n_steps: int, params: Params | None = None, kernel: Tensor | None = None) -> float:
        """The largest learning rate over the mean-square limit of the smallest batch, at the start or where a run got.

        Shuffled epochs are held against fresh batches without replacement, other losses than squared error by their
        quadratic at the outputs. NaN where that is no minimum.
        """
        iid = sgd
        if sgd.sampling == "shuffled":
            iid = dataclasses.replace(sgd, sampling="without_replacement", drop_last=False)
        plan = iid.plan(self.whole.n_train, n_steps)
        noise = plan.noise_factor(int(plan.batch_size.argmin()))
        try:
            moments = local_map(self.linearization) if params is None else self._moments(params, kernel)
        except ValueError:  # no positive curvature
            return math.nan
        return float(plan.lr.max()) / limit_of_map(moments, noise, sgd=sgd, precision=LIMIT_PRECISION)

    def _moments(self, params: Params, kernel: Tensor | None) -> SecondMomentMap:
        problem = self.linearization.problem
        with torch.no_grad():
            outputs = problem.forward(params, problem.x_train).to(self.kernel)
        reached = self.kernel_at(params) if kernel is None else kernel
        return map_at(reached, problem.criterion, outputs, self.linearization.targets)

    @cached_property
    def gradients(self) -> tuple[float, float]:
        """m, the mean of |g_i|^2, and the mean of g_i . g_j over pairs i != j, of the examples' loss gradients."""
        at = self.linearization
        n, c = at.outputs.shape
        gradient = at.problem.criterion.gradient(at.outputs, at.targets)
        blocks = at.operator.diagonal_blocks(c)
        squares = float(torch.einsum("ia,iab,ib->", gradient, blocks, gradient))
        whole = float(gradient.flatten() @ (at.kernel @ gradient.flatten()))
        return squares / n, (whole - squares) / (n * (n - 1)) if n > 1 else squares / n

    def noise_ratio(self, sgd: SGD) -> float:
        """phi tr Sigma / (B |g|^2): the variance of the first minibatch gradient over its squared mean.

        Without bias by the number of examples taken: tr Sigma = (1 - 1/n)(m - cbar), |g|^2 = m/n + (1 - 1/n) cbar.
        """
        n, (square, product) = self.whole.n_train, self.gradients
        factor = sgd.plan(n, 1).noise_factor(0)
        mean = square / n + (1 - 1 / n) * product
        variance = (1 - 1 / n) * (square - product)
        if factor == 0 or variance <= 0:
            return 0.0
        return factor * variance / mean if mean > 0 else math.inf
