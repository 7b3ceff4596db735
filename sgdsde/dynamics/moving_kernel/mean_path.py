"""The path that a network takes without minibatch noise, and how far its kernel moves along it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._functional import value_and_gradient
from sgdsde._types import Params, Progress
from sgdsde.dynamics.moments.state import march
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.problem import Problem
from sgdsde.recording import recorded_steps
from sgdsde.sgd import SGD, StepPlan, check_sgd
from sgdsde.step import Step

KERNELS = 8
"""Steps at which the drift is measured when the caller names none."""


@dataclass(frozen=True, eq=False)
class MeanPath:
    """The real network under full-batch gradient descent with torch's momentum and decay, at one step.

    Attributes:
        params, buffers: weights and momentum buffers, by name.
    """

    problem: Problem
    sgd: SGD
    plan: StepPlan
    params: Params
    buffers: Params

    @classmethod
    def start(cls, problem: Problem, sgd: SGD, plan: StepPlan) -> MeanPath:
        buffers = {name: torch.zeros_like(value) for name, value in problem.params.items()}
        return cls(problem, sgd, plan, problem.params, buffers)

    def advanced(
        self, step: int, gradient: Params | None = None, correction: Params | None = None, *, count: int = 1
    ) -> MeanPath:
        """The path one step later.

        Args:
            step: k of the update k -> k + 1.
            gradient: of the weights; default that of the mean loss here.
            correction: added to the gradient.
            count: of steps, with the gradient kept.
        """
        gradient = self.gradient() if gradient is None else gradient
        params, buffers = self.params, self.buffers
        if correction is not None:
            gradient = {name: value + correction[name] for name, value in gradient.items()}
        for k in range(step, step + count):
            update = Step.of(self.sgd, float(self.plan.lr[k]), first=k == 0)
            moved = {name: update.move(value, buffers[name], gradient[name]) for name, value in params.items()}
            params = {name: value for name, (value, _) in moved.items()}
            buffers = {name: value for name, (_, value) in moved.items()}
        return dataclasses.replace(self, params=params, buffers=buffers)

    def forward_pass(self, step: int) -> ForwardPass:
        """The training outputs here, kept for a backward pass.

        Raises:
            ValueError: they are not finite at this step.
        """
        leaves = {name: value.detach().requires_grad_() for name, value in self.params.items()}
        with torch.enable_grad():
            outputs = self.problem.forward(leaves, self.problem.x_train)
        return ForwardPass(leaves, _finite(outputs, step))

    def gradient(self, output_gradient: Tensor | None = None) -> Params:
        """(1/n) J^T r by parameter, decay aside."""
        problem = self.problem

        def along(params: Params) -> Tensor:
            outputs = problem.forward(params, problem.x_train)
            r = output_gradient
            if r is None:
                r = problem.criterion.gradient(outputs.detach(), problem.y_train)
            return (outputs * (r.to(outputs) / problem.n_train)).sum()

        return value_and_gradient(along, self.params)[1]

    def train_outputs(self, step: int) -> Tensor:
        """f at all training examples, [n, c].

        Raises:
            ValueError: it is not finite at this step.
        """
        with torch.no_grad():
            return _finite(self.problem.forward(self.params, self.problem.x_train), step)

    def outputs(self, step: int) -> Tensor:
        """f at all train and test examples, [n + m, c].

        Raises:
            ValueError: it is not finite at this step.
        """
        train, test = self.train_outputs(step), self.test_outputs(step)
        return train if test is None else torch.cat([train, test])

    def test_outputs(self, step: int) -> Tensor | None:
        """f at all test examples, [m, c], or None without any. Raises as ``train_outputs``."""
        x_test = self.problem.x_test
        if x_test is None:
            return None
        with torch.no_grad():
            return _finite(self.problem.forward(self.params, x_test), step)


def _finite(outputs: Tensor, step: int) -> Tensor:
    if not torch.isfinite(outputs).all():
        raise ValueError(
            f"the mean path of the network must stay finite, got NaN or infinity at step {step}; full-batch "
            "descent diverges at this learning rate, use a smaller lr"
        )
    return outputs


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """Training outputs of one pass through the network, [n, c], and the way back."""

    leaves: Params
    graph: Tensor

    @property
    def outputs(self) -> Tensor:
        return self.graph.detach()

    def pull(self, output_gradient: Tensor) -> Params:
        """(1/n) J^T r by parameter for r [n, c], once."""
        r = output_gradient.to(self.graph) / len(self.graph)
        with torch.enable_grad():  # a checkpoint in forward computes again while the backward pass runs
            parts = torch.autograd.grad(
                self.graph, list(self.leaves.values()), r, allow_unused=True, materialize_grads=True
            )
        return {name: part.to_dense() for name, part in zip(self.leaves, parts)}


class PathWalk:
    """A mean path under way, from step to step."""

    def __init__(self, path: MeanPath) -> None:
        self.path = path

    def advance(self, k: int) -> None:
        self.path = self.path.advanced(k)


@dataclass(frozen=True, eq=False)
class KernelDrift:
    """How far the kernel is from where it started, |K_k - K_0| / |K_0| in Frobenius norm.

    Attributes:
        steps: [T], int64. values: [T], float64, 0 at step 0. n_examples: how many of the training examples it is over.
    """

    steps: Tensor
    values: Tensor
    n_examples: int

    @property
    def largest(self) -> float:
        return float(self.values.max())


def kernel_drift(
    problem: Problem,
    sgd: SGD,
    n_steps: int,
    *,
    record: Sequence[int] | None = None,
    most_outputs: int = 512,
    progress: Progress = None,
) -> KernelDrift:
    """Relative change of the empirical kernel along full-batch training with these words (``KernelDrift``).

    Args:
        record: steps to report; default 8, geometric, with 0, 1 and n_steps.
        most_outputs: the kernel is that of evenly spaced training examples with at most this many outputs together.
    Raises:
        ValueError: the outputs stop being finite; names the step.
    Exactness: exact for the mean path at full batch; the noise of minibatches moves the kernel besides.
    Cost: one gradient of the whole training set a step, a kernel of at most ``most_outputs`` rows a recorded step.
    """
    n_steps, most_outputs = whole_number("n_steps", n_steps), whole_number("most_outputs", most_outputs, minimum=1)
    check_sgd(sgd)
    if record is None:
        spaced = np.geomspace(1, max(n_steps, 1), KERNELS - 1).round().astype(int)
        record = sorted({0, min(1, n_steps), n_steps, *(int(k) for k in spaced if k < n_steps)})
    steps = recorded_steps(n_steps, record)
    count = min(problem.n_train, max(1, most_outputs // problem.n_outputs))
    examples = torch.linspace(0, problem.n_train - 1, count).round().long().to(problem.device)
    x, values = problem.x_train[examples], []
    walk = PathWalk(MeanPath.start(problem, sgd, sgd.plan(problem.n_train, n_steps)))
    initial = kernel_between(problem, walk.path.params, x)
    for k in march(walk, steps.tolist(), "kernel drift", progress):
        walk.path.outputs(k)
        kernel = initial if k == 0 else kernel_between(problem, walk.path.params, x)
        values.append(torch.linalg.norm(kernel - initial) / torch.linalg.norm(initial))
    return KernelDrift(steps, torch.stack(values).double().cpu(), count)
