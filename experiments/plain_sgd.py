"""One run of SGD as anybody would write it: ``torch.optim.SGD`` in a loop, on the batches of an ensemble's run."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

import sgdsde


def plain_sgd(
    problem: sgdsde.Problem, sgd: sgdsde.SGD, record: Sequence[int], *, seed: int, run: int = 0
) -> list[dict[str, Tensor]]:
    """Parameters by name at each step of ``record`` (sorted), plain SGD with constant learning rate."""
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=sgd.lr_at(0))
    batches = sgdsde.sampling.batch_indices(sgd, problem.n_train, record[-1], seed=seed, run=run).to(problem.device)
    wanted, kept = set(record), []
    for step in range(record[-1] + 1):
        if step in wanted:
            kept.append({name: value.detach().clone() for name, value in model.named_parameters()})
        if step == record[-1]:
            break
        optimizer.zero_grad()
        problem.loss(model(problem.x_train[batches[step]]), problem.y_train[batches[step]]).backward()
        optimizer.step()
    return kept
