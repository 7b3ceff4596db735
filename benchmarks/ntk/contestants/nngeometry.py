"""nngeometry: a Gram matrix of the Jacobian by hooks. It knows no trace over outputs; the sum is taken at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nngeometry.gram import GramMatrix
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.ntk.cases import Case
from benchmarks.ntk.contestants import Prepared, matrix
from benchmarks.ntk.torch_models import torch_case


def prepare(case: Case) -> Prepared:
    model, x = torch_case(case)

    def call() -> Tensor:
        loader = DataLoader(TensorDataset(x.clone()), batch_size=case.n)
        gram = GramMatrix(model, loader).to_torch()  # [c, n, c, n]
        return gram if case.outputs == "full" else torch.einsum("aiaj->ij", gram)

    def convert(result: Any) -> np.ndarray:
        return matrix(result.permute(1, 0, 3, 2) if result.ndim == 4 else result)

    return call, convert
