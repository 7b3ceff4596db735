"""BackPACK: gradients of every example, output after output, and their products, each pair of outputs once."""

from __future__ import annotations

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import Tensor

from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix
from benchmarks.ntk.torch_models import torch_case


def prepare(case: Case) -> Prepared:
    model, x = torch_case(case)
    extend(model)
    c, n = case.n_outputs, case.n

    def gradients() -> list[list[Tensor]]:
        """Per output, per parameter: [n, size]."""
        found = []
        with backpack(BatchGrad(), retain_graph=True):  # what one output leaves behind, the next one needs
            outputs = model(x)
            for a in range(c):
                outputs[:, a].sum().backward(retain_graph=a < c - 1)
                found.append([value.grad_batch.flatten(1) for value in model.parameters()])
        return found

    def call() -> Tensor:
        found = gradients()
        kernel = torch.zeros(n, c, n, c) if case.outputs == "full" else torch.zeros(n, n)
        for a in range(c):
            for b in range(a, c) if case.outputs == "full" else (a,):
                block = sum(left @ right.mT for left, right in zip(found[a], found[b]))
                if case.outputs == "trace":
                    kernel += block
                    continue
                kernel[:, a, :, b] = block
                kernel[:, b, :, a] = block.mT  # type: ignore[union-attr]
        return kernel

    return call, matrix
