"""The empirical neural tangent kernel K = J J^T of any network, in blocks that fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint, finite_entries, nonempty
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde._probe import probe
from sgdsde._progress import ticker
from sgdsde._types import Params, Progress
from sgdsde.jacobian import Blocks, ExampleBytes, column_pieces, jacobian


def empirical_ntk(
    model: Any,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Params | None = None,
    where: Callable[[str], bool] | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = None,
) -> Tensor:
    """Empirical neural tangent kernel between two sets of inputs.

        K[i*c + a, j*c + b] = sum over parameters of  df_a(x1_i)/dtheta . df_b(x2_j)/dtheta

    Args:
        model: an ``nn.Module`` (not mutated) or a pair ``(f, params)``.
        x1: [n1, ...]. x2: [n2, ...]; None means x1, and only half of the kernel is computed.
        params: values by name in place of the model's own, all or some of them.
        where: keeps the parameters whose name satisfies it, e.g. ``lambda name: "weight" in name``.
        memory: bytes allowed for tensors, the result included; default a quarter of what is free.
        dtype: of products and result; default float64 whatever the model's dtype.
    Returns:
        [n1*c, n2*c], rows and columns sample-major; no factor 1/n or 1/c.
    Raises:
        ValueError, TypeError: a model whose output is no deterministic function of one example (named by layer), bad
            inputs, unknown parameter names. MemoryError: the budget is too small; names the bytes, before taking them.
    Exactness: equal to one backward pass per output, to rounding; Jacobians in the model's dtype.
    Cost: 2 d1 d2 p operations (half when symmetric) and the Jacobians: those of a block of rows are made once, those of
        the columns once per block.
    """
    functional = as_functional(model)
    functional = _with_params(functional, params)
    chosen = {name: value for name, value in functional.params.items() if where is None or where(name)}
    if not chosen:
        names = ", ".join(functional.params)
        raise ValueError(complaint("where", "a predicate that keeps at least one parameter", f"none of {names}"))
    for name, x in (("x1", x1), ("x2", x2)):
        _check_inputs(name, x, functional)
    if x2 is not None and x2.shape[1:] != x1.shape[1:]:
        raise ValueError(complaint("x2", f"examples of shape {list(x1.shape[1:])} like x1", list(x2.shape[1:])))
    functional, outputs = probe(functional, x1, "x1")
    plan = KernelPlan.make(functional, chosen, x1, x2, outputs.shape[1], memory=memory, dtype=dtype)
    return gram(functional, x1, x2, plan=plan, params=chosen, progress=progress)


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
        return cls(rows, n_outputs, dtype, result, peak)


def gram(
    functional: FunctionalModel,
    x1: Tensor,
    x2: Tensor | None,
    *,
    plan: KernelPlan,
    params: Params | None = None,
    progress: Progress = None,
) -> Tensor:
    """J(x1) J(x2)^T by blocks; with x2 None the lower half only, mirrored."""
    columns = x1 if x2 is None else x2
    c = plan.n_outputs
    kernel = torch.empty(len(x1) * c, len(columns) * c, dtype=plan.dtype, device=functional.device)
    row_starts, column_starts = range(0, len(x1), plan.rows), range(0, len(columns), plan.rows)
    ticks = ticker(progress, len(row_starts) * len(column_starts), "kernel")
    for j in column_starts:
        right = jacobian(functional, columns[j : j + plan.rows], params=params)
        for i in row_starts:
            ticks.update(1)
            if x2 is None and i < j:
                continue
            same = x2 is None and i == j
            left = right if same else jacobian(functional, x1[i : i + plan.rows], params=params)
            block = kernel[i * c : (i + plan.rows) * c, j * c : (j + plan.rows) * c]
            _contract(left, right, out=block)
            if x2 is None and not same:
                kernel[j * c : (j + plan.rows) * c, i * c : (i + plan.rows) * c] = block.mT
            del left  # before the next is made: the plan counts two blocks, not three
        del right
    ticks.close()
    return kernel


def _contract(left: Blocks, right: Blocks, *, out: Tensor) -> None:
    """Writes left right^T, in place: a copy of a block may be as large as the result."""
    keep = 0.0
    for name, first in left.items():
        second = right[name]
        for columns in column_pieces(first.shape[1]):
            row_piece = first[:, columns].to(out.dtype)
            column_piece = row_piece if second is first else second[:, columns].to(out.dtype)
            out.addmm_(row_piece, column_piece.mT, beta=keep)
            keep = 1.0


def _kernel_dtype(dtype: torch.dtype | None) -> torch.dtype:
    if dtype not in (None, torch.float64, torch.float32):
        raise ValueError(complaint("dtype", "torch.float64 or torch.float32", dtype))
    return dtype or torch.float64


def _with_params(functional: FunctionalModel, params: Params | None) -> FunctionalModel:
    if params is None:
        return functional
    unknown = sorted(set(params) - set(functional.params))
    if unknown:
        known = ", ".join(functional.params)
        raise ValueError(complaint("params", f"values of the trainable parameters {known}", f"unknown {unknown[0]!r}"))
    for name, value in params.items():
        if value.shape != functional.params[name].shape:
            expected = f"of shape {list(functional.params[name].shape)}"
            raise ValueError(complaint(f"params[{name!r}]", expected, list(value.shape)))
        if value.dtype != functional.dtype or value.device != functional.device:
            expected = f"of {functional.dtype} on {functional.device}, like the model"
            raise ValueError(complaint(f"params[{name!r}]", expected, f"{value.dtype} on {value.device}"))
    values = {name: params.get(name, value).detach() for name, value in functional.params.items()}
    return replace(functional, params=values)


def _check_inputs(name: str, x: Tensor | None, functional: FunctionalModel) -> None:
    if x is None and name == "x2":
        return
    if not isinstance(x, Tensor):
        raise TypeError(complaint(name, "a torch.Tensor", type(x).__name__, "use torch.as_tensor(...)"))
    nonempty(name, x)
    if x.is_complex() or (x.is_floating_point() and x.dtype != functional.dtype):
        raise TypeError(complaint(name, f"of the model's dtype {functional.dtype}", x.dtype))
    if x.device != functional.device:
        raise ValueError(complaint(name, f"on the model's device {functional.device}", x.device))
    if x.is_floating_point():
        finite_entries(name, x)
