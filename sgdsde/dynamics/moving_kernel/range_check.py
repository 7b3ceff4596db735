"""A cheap look at runs of the network, before a long prediction that cannot be right.

The runs decide whether a prediction is made, and enter none of its numbers. What is refused was seen to fail: networks
that diverge in runs where the prediction does not; networks that die; and, under losses other than squared error, runs
that differ by more than 11 % in their loss after a third of the steps while the kernel moves by more than its own size.
There the mean loss was missed by 22 to 68 % in five of five settings; in seven that are taken by 1 to 6 %, at drifts
from 1 to 70, and in two by 11 and 15 %, whose spread grew only later (docs/choosing_a_dynamics.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from sgdsde._functional import value_and_gradient, vectorize
from sgdsde._streams import torch_stream
from sgdsde._types import Params
from sgdsde.kernel.moved_weights import kernel_between
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.step import Step

FEWEST_STEPS = 16
"""Of a training that is worth a look."""

LOOKS = 4
"""Steps after that at which one run is looked at."""

OUTPUTS = 128
"""Rows of the kernels that are compared."""

MOST_GROWTH = 100.0
"""Of the loss, beyond which a run counts as diverged."""

N_RUNS, SHARE = 8, 1 / 3
"""Runs whose losses are compared, and after which share of the steps."""

MOST_SPREAD, MOST_DRIFT = 0.11, 1.0
"""Relative spread of the loss over runs and drift of the kernel, beyond which together nothing is predicted under other
losses than squared error."""

REMEDY = "measure it: sgdsde.measure(problem, sgd, n_steps), or use a smaller lr"


def refuse_out_of_range(problem: Problem, sgd: SGD, n_steps: int) -> None:
    """Looks at a few sampled runs of so many steps, all at once, on batches that no ensemble takes.

    Raises:
        ValueError: they diverge, die, or leave the range in which predictions were right; names what was seen.
    Cost: two to four plain runs where torch.func.vmap takes the model, less where it refuses.
    """
    if n_steps < FEWEST_STEPS:
        return
    compared = round(SHARE * n_steps)
    steps = [0, compared, *sorted({compared + (n_steps - compared) * i // LOOKS for i in range(1, LOOKS + 1)})]
    first, last = 0.0, problem.params
    for step, runs in zip(steps, _runs(problem, sgd, steps, compared)):
        last, losses = runs[0], torch.stack([_loss(problem, params) for params in runs])
        loss = float(losses.max())
        first = loss if step == 0 else first
        if not loss <= MOST_GROWTH * max(first, torch.finfo(problem.dtype).tiny):
            raise ValueError(
                f"the loss of a run of the network must stay finite and near its size, got {loss:.3g} at step {step} "
                f"from {first:.3g}: minibatch SGD diverges at this learning rate; {REMEDY}"
            )
        if step == compared and len(runs) > 1:
            _refuse_wide(problem, last, losses, step)
    if _is_dead(problem, last):
        raise ValueError(
            "the outputs of a run of the network must stay dependent on its weights, got none that are at the end: the "
            f"network dies on the way (dead units); {REMEDY}"
        )


def _refuse_wide(problem: Problem, params: Params, losses: Tensor, step: int) -> None:
    """Refuses runs whose losses differ where the kernel has moved."""
    spread = float(losses.double().log().std())
    if not spread > MOST_SPREAD:
        return
    drift = _drift(problem, params)
    if drift > MOST_DRIFT:
        raise ValueError(
            f"the training must stay in the range of MovingKernel, got runs whose losses differ by {spread:.0%} after "
            f"{step} steps under {type(problem.loss).__name__} while the kernel moves by {drift:.2g} of itself: there "
            f"predictions were 20 to 50 % off; {REMEDY}, or see how far MovingKernel(range_check=False) comes"
        )


def _runs(problem: Problem, sgd: SGD, record: list[int], compared: int) -> Iterator[list[Params]]:
    """The weights of the runs at each step of ``record``: several up to the step at which they are compared, then one.

    Batches are fresh and without repetition.
    """
    plan, stream = sgd.plan(problem.n_train, record[-1]), torch_stream(0, "range", 0, torch.device("cpu"))
    count = 1 if isinstance(problem.criterion, SquaredError) else N_RUNS
    params = {name: value.expand(count, *value.shape) for name, value in problem.params.items()}
    buffers = {name: torch.zeros_like(value) for name, value in params.items()}
    for k in range(record[-1] + 1):
        if k in record:
            yield [{name: value[i] for name, value in params.items()} for i in range(count)]
        if k == record[-1]:
            return
        if k == compared:
            count = 1
            params, buffers = ({name: value[:1] for name, value in part.items()} for part in (params, buffers))
        batches = (
            torch.rand(count, problem.n_train, generator=stream).topk(int(plan.batch_size[k]), sorted=False).indices
        )
        gradients = _gradients(problem, params, batches.to(problem.device))
        step = Step.of(sgd, float(plan.lr[k]), first=k == 0)
        moved = {name: step.move(value, buffers[name], gradients[name]) for name, value in params.items()}
        params = {name: pair[0] for name, pair in moved.items()}
        buffers = {name: pair[1] for name, pair in moved.items()}


def _gradients(problem: Problem, params: Params, indices: Tensor) -> Params:
    """Of the losses of all runs at their own batches [R, B]."""
    x, y = problem.x_train[indices], problem.y_train[indices]

    def total(at: Params) -> Tensor:
        if len(x) > 1 and problem.functional.vectorizes:
            outputs = vectorize(problem.functional.forward)(at, x)
        else:
            each = [{name: value[i] for name, value in at.items()} for i in range(len(x))]
            outputs = torch.stack([problem.forward(one, rows) for one, rows in zip(each, x)])
        return problem.criterion.mean(outputs.flatten(0, 1), y.flatten(0, 1)) * len(x)

    return value_and_gradient(total, params)[1]


def _loss(problem: Problem, params: Params) -> Tensor:
    with torch.no_grad():
        return problem.criterion.mean(problem.forward(params, problem.x_train), problem.y_train)


def _is_dead(problem: Problem, params: Params) -> bool:
    """Whether no output depends on the weights: a gradient along random outputs is zero then."""
    shape = (problem.n_train, problem.n_outputs)
    along = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    along = along.to(problem.device, problem.dtype)

    def projected(at: Params) -> Tensor:
        return (problem.forward(at, problem.x_train) * along).sum()

    return not any(bool(part.any()) for part in value_and_gradient(projected, params)[1].values())


def _drift(problem: Problem, params: Params) -> float:
    count = min(problem.n_train, max(1, OUTPUTS // problem.n_outputs))
    examples = torch.linspace(0, problem.n_train - 1, count).round().long().to(problem.device)
    of = partial(kernel_between, problem, x=problem.x_train[examples])
    initial = of(problem.params)
    return float(torch.linalg.norm(of(params) - initial) / torch.linalg.norm(initial))
