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
from sgdsde.kernel import KernelPlan, gram
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

    def advanced(self, step: int, output_gradient: Tensor | None = None, correction: Params | None = None) -> MeanPath:
        """The path one step later.

        Args:
            step: k of the update k -> k + 1.
            output_gradient: what stands for r(f), [n, c]; default the gradient of the loss of each example.
            correction: added to the gradient of the weights.
        """
        gradient = self.gradient(output_gradient)
        params, buffers = {}, {}
        update = Step.of(self.sgd, float(self.plan.lr[step]), first=step == 0)
        for name, value in self.params.items():
            slope = gradient[name] if correction is None else gradient[name] + correction[name]
            params[name], buffers[name] = update.move(value, self.buffers[name], slope)
        return dataclasses.replace(self, params=params, buffers=buffers)

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
        train, x_test = self.train_outputs(step), self.problem.x_test
        if x_test is None:
            return train
        with torch.no_grad():
            return torch.cat([train, _finite(self.problem.forward(self.params, x_test), step)])


def _finite(outputs: Tensor, step: int) -> Tensor:
    if not torch.isfinite(outputs).all():
        raise ValueError(
            f"the mean path of the network must stay finite, got NaN or infinity at step {step}; full-batch "
            "descent diverges at this learning rate, use a smaller lr"
        )
    return outputs


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


def kernel_between(problem: Problem, params: Params, x: Tensor, x2: Tensor | None = None) -> Tensor:
    """K(x, x2) of the problem's model at other parameters than its own, in float64."""
    functional = dataclasses.replace(problem.functional, params=params)
    plan = KernelPlan.make(functional, params, x, x2, problem.n_outputs)
    return gram(functional, x, x2, plan=plan)
