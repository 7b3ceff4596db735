"""SGD of the linearized model beside SGD of the network, on the same batches, by the cheaper of two ways."""

from __future__ import annotations

from torch import Tensor
from torch.func import jvp

from sgdsde._types import Params
from sgdsde.linearization import Linearization, linearize
from sgdsde.problem import Problem

KERNEL_ENTRIES = 2**23
"""Entries of the kernels up to which linearized runs are made in output space; beyond, by derivatives along weights."""


def linear_twin(problem: Problem) -> Problem:
    """The problem whose model is f(theta_0) + J (theta - theta_0), on the same data with the same loss.

    Exactness: exact; its runs are those of the linearization in weight space, without any kernel.
    Cost: a step of it is a derivative along the weights and its backward pass, two to three plain steps.
    """
    start = problem.params

    def linearized(params: Params, x: Tensor) -> Tensor:
        along = {name: value - start[name] for name, value in params.items()}
        found = jvp(lambda at: problem.forward(at, x), (start,), (along,))
        return found[0] + found[1]

    model = (linearized, dict(start))
    data = {"x_test": problem.x_test, "y_test": problem.y_test}
    return Problem(model, problem.x_train, problem.y_train, loss=problem.loss, **data)


def twin_of(problem_or_linearization: Problem | Linearization) -> Problem | Linearization:
    """What ``run_ensemble`` trains for runs of the linearized model.

    A linearization as it is, that of a problem whose kernels are small, else ``linear_twin``; the linearization after
    all where the model has no derivative in forward mode.
    """
    if isinstance(problem_or_linearization, Linearization):
        return problem_or_linearization
    problem = problem_or_linearization
    n, m, c = problem.n_train, problem.n_test, problem.n_outputs
    if n * (n + m) * c**2 <= KERNEL_ENTRIES:
        return linearize(problem)
    try:
        return linear_twin(problem)
    except (NotImplementedError, RuntimeError, ValueError):
        return linearize(problem)
