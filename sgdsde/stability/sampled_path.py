"""The weights that one run of minibatch SGD on the network itself takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sgdsde._types import Params
from sgdsde.problem import Problem
from sgdsde.sampling import block_batches
from sgdsde.sgd import SGD
from sgdsde.step import Step

PURPOSE = "limit along the path"
"""Of the random stream of batches: none of them are those of ``run_ensemble``."""


def sampled_path(problem: Problem, sgd: SGD, record: Sequence[int], *, seed: int, run: int) -> Iterator[Params]:
    """The weights at each step of ``record``, ascending; ``run`` is below 64.

    Exactness: torch's update on the module's own gradients. Cost: a plain run up to the last step taken.
    """
    plan = sgd.plan(problem.n_train, record[-1])
    batches = block_batches(plan, seed, 0, purpose=PURPOSE)
    params, buffers = problem.params, {name: torch.zeros_like(value) for name, value in problem.params.items()}
    for k in range(record[-1] + 1):
        if k in record:
            yield params
        if k == record[-1]:
            return
        indices = torch.from_numpy(next(batches)[run]).to(problem.device)
        gradients = _gradients(problem, params, indices)
        step = Step.of(sgd, float(plan.lr[k]), first=k == 0)
        moved = {name: step.move(value, buffers[name], gradients[name]) for name, value in params.items()}
        params = {name: pair[0] for name, pair in moved.items()}
        buffers = {name: pair[1] for name, pair in moved.items()}


def _gradients(problem: Problem, params: Params, indices: Tensor) -> Params:
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        outputs = problem.forward(leaves, problem.x_train[indices])
        loss = problem.criterion.mean(outputs, problem.y_train[indices])
    parts = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return {name: part.to_dense() for name, part in zip(leaves, parts)}
