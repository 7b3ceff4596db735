"""This library."""

from __future__ import annotations

import torch
from torch import Tensor

import sgdsde
from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix
from benchmarks.ntk.torch_models import torch_case


def prepare(case: Case) -> Prepared:
    model, x = torch_case(case)

    def call() -> Tensor:
        return sgdsde.empirical_ntk(model, x, dtype=torch.float32, outputs=case.outputs)

    return call, matrix
