"""What a kernel will take, known before it is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel
from sgdsde._types import Params
from sgdsde.jacobian import ExampleBytes

Outputs: TypeAlias = Literal["full", "trace", "per_class"]
"""Which entries K[(i,a),(j,b)]: all [n1*c, n2*c], summed over a = b [n1, n2], or those with a = b [c, n1, n2]."""


@dataclass(frozen=True)
class KernelPlan:
    """What a kernel will take, known before it is allocated.

    Attributes:
        rows: examples a block; two blocks of Jacobians are held at once.
        n_outputs, dtype: c, and the dtype of the result.
        result_bytes, example_bytes: of the result, and of two blocks at their peak for each of their rows.
    """

    rows: int
    n_outputs: int
    dtype: torch.dtype
    result_bytes: int
    example_bytes: int
    outputs: Outputs = "full"

    @classmethod
    def make(
        cls,
        functional: FunctionalModel,
        params: Params,
        x1: Tensor,
        x2: Tensor | None,
        n_outputs: int,
        *,
        memory: int | None = None,
        dtype: torch.dtype | None = None,
        outputs: Outputs = "full",
    ) -> KernelPlan:
        """The largest blocks that the budget allows; MemoryError when one example does not fit."""
        dtype = _kernel_dtype(dtype)
        result = len(x1) * len(x1 if x2 is None else x2) * n_outputs**2 * dtype.itemsize
        allowed = _memory.budget(memory, functional.device)
        example = ExampleBytes.of(functional, params, x1[:1], n_outputs)
        copies = 0 if functional.dtype == dtype else 2 * example.copying
        peak = 2 * example.held + max(example.making, copies)
        most = len(x1) if x2 is None else max(len(x1), len(x2))
        what = f"the Jacobian of an example with {n_outputs} outputs"
        rows = _memory.rows_within(allowed, peak, most, what, fixed=result)
        return cls(rows, n_outputs, dtype, result, peak, outputs)


def _kernel_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype not in (None, torch.float64, torch.float32):
        raise ValueError(complaint("dtype", "torch.float64 or torch.float32", dtype))
    return dtype or torch.float64
