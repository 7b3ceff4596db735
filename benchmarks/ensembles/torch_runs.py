"""The same runs as a user of torch writes them: final training losses [runs] of SGD on given batches."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

import sgdsde

Batches = Tensor
"""[runs, steps, B]"""


def optimizer_loop(problem: sgdsde.Problem, lr: float, batches: Batches) -> Tensor:
    """One ``torch.optim.SGD`` loop after the other."""
    losses, x, y = [], problem.x_train, problem.y_train
    for rows in batches:
        model = copy.deepcopy(problem.model)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for batch in rows:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(nn.functional.mse_loss(model(x), y))
    return torch.stack(losses)


def vmapped(problem: sgdsde.Problem, lr: float, batches: Batches) -> Tensor:
    """``vmap(grad)`` over all runs at once, weights moved in place."""
    model, x, y = problem.model, problem.x_train, problem.y_train

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(functional_call(model, params, (x,)), y)

    gradient = vmap(grad(loss))
    weights = {
        name: value.detach().expand(len(batches), *value.shape).clone() for name, value in model.named_parameters()
    }
    for batch in batches.unbind(1):
        for name, slope in gradient(weights, x[batch], y[batch]).items():
            weights[name].sub_(slope, alpha=lr)
    evaluate = vmap(loss, in_dims=(0, None, None))
    with torch.no_grad():  # eight runs at a time: all at once takes gigabytes
        parts = [{name: value[i : i + 8] for name, value in weights.items()} for i in range(0, len(batches), 8)]
        return torch.cat([evaluate(part, x, y) for part in parts])


def products(problem: sgdsde.Problem, lr: float, batches: Batches, at_once: int = 8) -> Tensor:
    """The two products of a step with the first weight and nothing else, eight runs at once: no training, no losses."""
    weight = next(value for value in problem.model.parameters() if value.ndim == 2).detach()
    weights = weight.expand(at_once, *weight.shape).clone()
    for block in batches.split(at_once):
        some = weights[: len(block)]
        outputs = weights.new_empty(len(block), batches.shape[2], len(weight))
        for batch in block.unbind(1):
            x = problem.x_train[batch]
            torch.bmm(x, some.mT, out=outputs)
            some.baddbmm_(outputs.mT, x, alpha=-1e-9)
    return batches.new_empty(0)


def embedding_bags(made: sgdsde.Linearization, lr: float, batches: Batches) -> Tensor:
    """The linearized model of one output, trained in output space by the shortest code there is: the floor."""
    kernel, outputs, targets = made.kernel, made.outputs[:, 0].repeat(len(batches), 1), made.targets[:, 0]
    scale = -2 * lr / batches.shape[2]
    for batch in batches.unbind(1):
        residual = outputs.gather(1, batch).sub_(targets[batch]).mul_(scale)
        outputs += functional.embedding_bag(batch, kernel, per_sample_weights=residual, mode="sum")
    return (outputs - targets).square().mean(1)


def gathers(made: sgdsde.Linearization, lr: float, batches: Batches) -> Tensor:
    """The same by a product with the whole kernel, the residual zero outside of the batch."""
    kernel, outputs, targets = made.kernel, made.outputs[:, 0].repeat(len(batches), 1), made.targets[:, 0]
    scale = -2 * lr / batches.shape[2]
    for batch in batches.unbind(1):
        residual = outputs.gather(1, batch).sub_(targets[batch]).mul_(scale)
        outputs += torch.zeros_like(outputs).scatter_add_(1, batch, residual) @ kernel
    return (outputs - targets).square().mean(1)
