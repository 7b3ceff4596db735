"""One plain run of ``torch.optim.SGD``, the unit in which costs are told."""

from __future__ import annotations

import time

import torch

from sgdsde.problem import Problem
from sgdsde.sgd import SGD

WARM_UP, TIMED, REPEATS = 3, 8, 3
"""Steps before the clock starts, steps of one timing, and timings, of which the shortest counts."""


def clock(device: torch.device) -> float:
    """Processor seconds of this process, all threads; wall seconds of what a CUDA device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def plain_seconds(problem: Problem, sgd: SGD, n_steps: int) -> float:
    """Seconds of ``n_steps`` steps of a loop around ``torch.optim.SGD``, without any evaluation of the loss.

    Exactness: as repeatable as the machine; batches of the first step's size. Cost: 27 steps.
    """
    values = {name: value.detach().clone().requires_grad_() for name, value in problem.params.items()}
    optimizer = torch.optim.SGD(
        list(values.values()),
        lr=1e-9,  # the numbers do not matter, but must stay finite
        momentum=sgd.momentum,
        dampening=sgd.dampening,
        nesterov=sgd.nesterov,
        weight_decay=sgd.weight_decay,
    )
    size = int(sgd.plan(problem.n_train, 1).batch_size[0])
    stream = torch.Generator().manual_seed(0)

    def steps(count: int) -> float:
        start = clock(problem.device)
        for _ in range(count):
            batch = torch.randint(0, problem.n_train, (size,), generator=stream).to(problem.device)
            optimizer.zero_grad()
            outputs = problem.forward(values, problem.x_train[batch])
            problem.criterion.mean(outputs, problem.y_train[batch]).backward()
            optimizer.step()
        return clock(problem.device) - start

    steps(WARM_UP)
    return max(min(steps(TIMED) for _ in range(REPEATS)), 1e-9) / TIMED * n_steps
