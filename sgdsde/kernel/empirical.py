"""The empirical neural tangent kernel K = J J^T of any network, in blocks that fit a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde._probe import probe, probe_vectorization
from sgdsde._types import Params, Progress
from sgdsde.kernel.assembly import gram
from sgdsde.kernel.flop_model import Outputs
from sgdsde.kernel.inputs import check_inputs
from sgdsde.kernel.memory_plan import KernelPlan


@overload
def empirical_ntk(
    model: Any,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Params | None = None,
    where: Callable[[str], bool] | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    outputs: Outputs = "full",
    explain: Literal[False] = False,
    progress: Progress = None,
) -> Tensor: ...


@overload
def empirical_ntk(
    model: Any,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Params | None = None,
    where: Callable[[str], bool] | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    outputs: Outputs = "full",
    explain: Literal[True],
    progress: Progress = None,
) -> KernelPlan: ...


def empirical_ntk(
    model: Any,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Params | None = None,
    where: Callable[[str], bool] | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    outputs: Outputs = "full",
    explain: bool = False,
    progress: Progress = None,
) -> Tensor | KernelPlan:
    """Empirical neural tangent kernel between two sets of inputs.

        K[i*c + a, j*c + b] = sum over parameters of  df_a(x1_i)/dtheta . df_b(x2_j)/dtheta

    Args:
        model: an ``nn.Module`` (not mutated) or a pair ``(f, params)``.
        x1: [n1, ...]. x2: [n2, ...]; None means x1, and only half of the kernel is computed.
        params: values by name in place of the model's own, all or some of them.
        where: keeps the parameters whose name satisfies it, e.g. ``lambda name: "weight" in name``.
        memory: bytes allowed for tensors, the result included; default a quarter of what is free.
        dtype: of products and result; default float64 whatever the model's dtype.
        outputs: "full" for all pairs of outputs; "trace" for the sum of K[(i,a),(j,a)] over a; "per_class" for these
            terms one by one.
        explain: nothing is computed; the plan comes back, whose ``str`` lists operations, bytes, tiles and seconds.
    Returns:
        [n1*c, n2*c], rows and columns sample-major ([n1, n2] for the trace, [c, n1, n2] per class); no factor 1/n or
        1/c. With ``explain`` a ``KernelPlan``.
    Raises:
        ValueError, TypeError: a model whose output is no deterministic function of one example (named by layer), bad
            inputs, unknown parameter names. MemoryError: the budget is too small; names the bytes, before taking them.
    Exactness: equal to one backward pass per output, to rounding; inputs, gradients and Jacobians in the model's dtype.
        How the parameters act is found by watching one forward pass, and held against a backward pass at four examples;
        what cannot be watched goes to plain Jacobians, and a warning is logged.
    Cost: c backward passes an example, and for a dense layer [q] -> [o] 2 n1 n2 (q + c^2 o) operations (c o in place of
        c^2 o for the trace), where the Jacobian would take 2 n1 n2 c^2 q o; half of that when symmetric.
    Source: docs/derivations.md, section 9; laws/test_structured_kernel_*.py.
    """
    functional = as_functional(model)
    functional = _with_params(functional, params)
    if where is not None and not callable(where):
        remedy = 'use where=lambda name: "weight" in name, say'
        raise TypeError(complaint("where", "a predicate on parameter names or None", type(where).__name__, remedy))
    chosen = {name: value for name, value in functional.params.items() if where is None or where(name)}
    if not chosen:
        names = ", ".join(functional.params)
        raise ValueError(complaint("where", "a predicate that keeps at least one parameter", f"none of {names}"))
    check_inputs(functional, x1, x2)
    functional, at_two = probe(functional, x1, "x1", vectorization=False)
    plan = KernelPlan.make(functional, chosen, x1, x2, at_two.shape[1], memory=memory, dtype=dtype, outputs=outputs)
    if plan.structure is None or not plan.structure.terms:
        # Plain Jacobians are vectorized only where that is right, and a model must depend on some of its parameters.
        functional = probe_vectorization(functional, x1)
    if explain:
        return plan.timed(functional)
    return gram(functional, x1, x2, plan=plan, params=chosen, progress=progress)


def _with_params(functional: FunctionalModel, params: Params | None) -> FunctionalModel:
    if params is None:
        return functional
    if not isinstance(params, dict) or not all(isinstance(value, Tensor) for value in params.values()):
        raise TypeError(complaint("params", "a dict of tensors by parameter name, or None", type(params).__name__))
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
