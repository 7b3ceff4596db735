"""Activations and deltas by hand, for the chains of this benchmark alone: what the others are measured by.

A linear layer adds (activation Gram + 1) o (delta Gram), a convolution J J^T with J = deltas x patches. Grams are made
in blocks of rows that stay in the cache, the lower half only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix
from benchmarks.ntk.torch_models import torch_case

BLOCK_ROWS = 320


def prepare(case: Case) -> Prepared:
    model, x = torch_case(case)
    layers = [module for module in model if isinstance(module, (nn.Linear, nn.Conv2d))]
    grams = _trace if case.outputs == "trace" else _convolutional if case.input_shape[1:] else _full

    def call() -> Tensor:
        with torch.no_grad():
            return grams(layers, x)

    return call, matrix


def _full(layers: list[nn.Module], x: Tensor) -> Tensor:
    activations, deltas = _chain(layers, x)
    n, c, _ = deltas[-1].shape
    kernel = torch.empty(n * c, n * c)
    grams = [_with_bias(value) for value in activations]
    flat = [value.flatten(0, 1) for value in deltas]
    step = max(1, BLOCK_ROWS // c)
    for i in range(0, n, step):
        j = min(i + step, n)
        rows = kernel[i * c : j * c, : j * c]
        shape = (j - i, c, j, c)
        for index, delta in enumerate(flat):
            block = (delta[i * c : j * c] @ delta[: j * c].mT).view(shape)
            block *= grams[index][i:j, None, :j, None]
            rows.copy_(block.view(rows.shape)) if index == 0 else rows.add_(block.view(rows.shape))
        rows.unflatten(1, (j, c)).unflatten(0, (j - i, c)).diagonal(dim1=1, dim2=3).add_(grams[-1][i:j, :j, None])
        kernel[: i * c, i * c : j * c] = rows[:, : i * c].mT
    return kernel


def _trace(layers: list[nn.Module], x: Tensor) -> Tensor:
    activations, deltas = _chain(layers, x)
    kernel = deltas[0].shape[1] * _with_bias(activations[-1])
    for activation, delta in zip(activations, deltas):
        flat = delta.flatten(1)
        kernel.addcmul_(_with_bias(activation), flat @ flat.mT)
    return kernel


def _chain(layers: list[nn.Module], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of every linear layer [n, in], and deltas [n, c, out] of all but the last."""
    activations = [x]
    for layer in layers[:-1]:
        activations.append(layer(activations[-1]).relu_())
    deltas: list[Tensor] = []
    delta = layers[-1].weight * (activations[-1] > 0)[:, None]
    for layer, activation in zip(layers[-2:0:-1], activations[-2:0:-1]):
        deltas.insert(0, delta)
        delta = (delta @ layer.weight).mul_((activation > 0)[:, None])
    return activations, [delta, *deltas]


def _with_bias(activation: Tensor) -> Tensor:
    return (activation @ activation.mT).add_(1.0)


def _convolutional(layers: list[nn.Module], x: Tensor) -> Tensor:
    convolutions, readout = layers[:-1], layers[-1]
    activations = [x]
    for layer in convolutions:
        activations.append(layer(activations[-1]).relu_())
    n, c, positions = len(x), readout.out_features, x.shape[2:].numel()
    kernel = torch.zeros(n * c, n * c)
    pooled = _with_bias(activations[-1].mean((2, 3)))
    kernel.view(n, c, n, c).diagonal(dim1=1, dim2=3).copy_(pooled[:, :, None].expand(n, n, c))
    delta = (readout.weight / positions)[:, :, None, None] * (activations[-1] > 0)[:, None]  # [n, c, out, h, w]
    for index in reversed(range(len(convolutions))):
        below = activations[index]
        patches = functional.pad(functional.unfold(below, 3, padding=1), (0, 0, 0, 1), value=1.0)  # ones: the bias
        jacobian = torch.bmm(delta.flatten(3).flatten(1, 2), patches.mT).view(n * c, -1)
        for i in range(0, n * c, BLOCK_ROWS):
            j = i + BLOCK_ROWS
            kernel[i:j, :j].addmm_(jacobian[i:j], jacobian[:j].mT)
        if index:
            weight = convolutions[index].weight
            delta = functional.conv_transpose2d(delta.flatten(0, 1), weight, padding=1)
            delta = delta.view(n, c, *below.shape[1:]).mul_((below > 0)[:, None])
    return kernel.tril_() + kernel.tril(-1).mT
