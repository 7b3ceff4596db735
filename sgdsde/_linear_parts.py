"""The parts of a linearization: outputs at initialization, whether they belong together, what its kernels cost."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint, finite_entries
from sgdsde._progress import StageCost
from sgdsde.jacobian import jacobian_product
from sgdsde.kernel import DenseKernel, ImplicitKernel, KernelOperator, KernelPlan, KroneckerKernel, gram
from sgdsde.kernel.eigenbasis import WORKING_MATRICES
from sgdsde.losses import TorchLoss, refuse_domain
from sgdsde.machine import Machine
from sgdsde.problem import Problem

ZERO_KERNEL = (
    "the kernel is zero: at their initial values the weights do not change the outputs (dead units? zeros "
    "everywhere?); the predicted loss is constant, and no learning rate is too large"
)


def check_spectrum_fits(problem: Problem) -> None:
    """Raises MemoryError where kernel and spectrum take more than a quarter of the free memory; names the bytes."""
    d, allowed = problem.n_train * problem.n_outputs, _memory.budget(None, problem.device)
    needed = (1 + WORKING_MATRICES) * d * d * torch.float64.itemsize
    if needed > allowed:
        remedy = f"predict(linearize(problem, rank=500), ...) follows the leading eigenpairs of its {d:,} rows instead"
        what = "the free memory that a kernel and its spectrum may take, a quarter of it,"
        raise MemoryError(complaint(what, f"at least {needed:,} bytes", f"{allowed:,}", remedy))


def check_problem(problem: Any) -> None:
    """Raises TypeError unless it is a ``Problem``, ValueError where its loss holds behind its last layer only."""
    if not isinstance(problem, Problem):
        received, remedy = type(problem).__name__, "use sgdsde.Problem(model, x_train, y_train, loss=...)"
        raise TypeError(complaint("problem", "a Problem", received, remedy))
    if isinstance(problem.criterion, TorchLoss):
        refuse_domain(problem.criterion)


def check_parts(made: Any) -> None:
    """Raises TypeError or ValueError, by name, for parts of a ``Linearization`` that do not belong together."""
    problem = made.problem
    check_problem(problem)
    check_kernels(problem, made.kernel, made.cross_kernel)
    train = {"outputs": made.outputs, "weight_outputs": made.weight_outputs}
    check_outputs(problem.n_outputs, problem.n_train, train)
    test = {"test_outputs": made.test_outputs, "test_weight_outputs": made.test_weight_outputs}
    check_outputs(problem.n_outputs, problem.n_test, test)
    if (made.cross_kernel is None) != (problem.n_test == 0) or (made.test_outputs is None) != (problem.n_test == 0):
        received = f"n_test={problem.n_test}"
        raise ValueError(complaint("cross_kernel and test_outputs", "given exactly with a test set", received))


def check_kernels(problem: Problem, kernel: Any, cross_kernel: Any) -> None:
    """Raises TypeError or ValueError for kernels that are not [n*c, n*c] and, with a test set, [m*c, n*c].

    Warns:
        UserWarning: the kernel is zero.
    """
    d, m = problem.n_train * problem.n_outputs, problem.n_test * problem.n_outputs
    _check_matrix("kernel", kernel)
    if list(kernel.shape) != [d, d]:
        is_trace = list(kernel.shape) == [problem.n_train] * 2
        remedy = "wrap it: KroneckerKernel(kernel, n_outputs, scale=1 / n_outputs)" if is_trace else ""
        raise ValueError(complaint("kernel", f"[{d}, {d}], n_train * n_outputs", list(kernel.shape), remedy))
    if isinstance(kernel, Tensor):
        finite_entries("kernel", kernel)
        if not kernel.any():
            warnings.warn(ZERO_KERNEL, UserWarning, stacklevel=6)
    if cross_kernel is not None:
        _check_matrix("cross_kernel", cross_kernel)
        if list(cross_kernel.shape) != [m, d]:
            raise ValueError(complaint("cross_kernel", f"[{m}, {d}]", list(cross_kernel.shape)))


def check_outputs(n_outputs: int, count: int, named: dict[str, Any]) -> None:
    """Raises TypeError or ValueError for outputs by name that are not [count, c], or None where they may be."""
    for name, value in named.items():
        if value is None and name != "outputs":
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point():
            received = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(complaint(name, "a real floating-point tensor", received))
        if list(value.shape) != [count, n_outputs]:
            raise ValueError(complaint(name, f"[{count}, {n_outputs}]", list(value.shape)))


def initial_outputs(problem: Problem, x: Tensor, rows: int) -> Tensor:
    """f_0 at x, [len(x), c], in blocks of ``rows`` examples; refuses outputs that are not finite."""
    with torch.no_grad():
        blocks = [problem.forward(problem.params, x[i : i + rows]) for i in range(0, len(x), rows)]
    return finite_entries("model output", torch.cat(blocks))


def _check_matrix(name: str, kernel: Any) -> None:
    if not isinstance(kernel, Tensor | KernelOperator):
        raise TypeError(complaint(name, "a matrix as a tensor, or a KernelOperator", type(kernel).__name__))
    if not kernel.dtype.is_floating_point:
        raise TypeError(complaint(name, "real and floating-point", kernel.dtype))


def kernel_cost(*plans: KernelPlan | None) -> StageCost:
    """The cost of kernels that are to be made, by their operations."""
    made = [plan for plan in plans if plan is not None]

    def seconds(machine: Machine) -> float:
        operations = sum(plan.operations for plan in made)
        return operations / machine.products + sum(plan.n1 * plan.n2 for plan in made) / machine.entries

    held = sum(plan.result_bytes for plan in made) + max(plan.total_bytes - plan.result_bytes for plan in made)
    return StageCost("kernel", seconds(Machine.worth(seconds)), held)


def implicit_where_needed(
    problem: Problem, rank: int | None, memory: int | None, dtype: torch.dtype | None
) -> KernelOperator | None:
    """An implicit kernel where a rank is asked for and the dense kernels do not fit."""
    if rank is None:
        return None
    try:
        kernel_plans(problem, memory, dtype)
    except MemoryError:
        return ImplicitKernel(problem.functional, problem.x_train, memory=memory)
    return None


def cross_by_products(problem: Problem, kernel: KernelOperator, memory: int | None) -> KernelOperator | None:
    """K(test, train) of the kind that the kernel is: of K_0 (x) I_c the mean of the kernels of all outputs."""
    functional, x, x_test = problem.functional, problem.x_train, problem.x_test
    if x_test is None:
        return None
    if not isinstance(kernel, KroneckerKernel):
        return ImplicitKernel(functional, x_test, x, memory=memory)
    plan = KernelPlan.make(functional, functional.params, x_test, x, problem.n_outputs, memory=memory, outputs="trace")
    trace = gram(functional, x_test, x, plan=plan)
    return KroneckerKernel(DenseKernel(trace), problem.n_outputs, scale=1 / problem.n_outputs)


def kernel_plans(
    problem: Problem, memory: int | None, dtype: torch.dtype | None
) -> tuple[KernelPlan, KernelPlan | None]:
    """Of K(train, train) and of K(test, train), which has what the first leaves of the memory."""
    functional, x, x_test = problem.functional, problem.x_train, problem.x_test
    plan = KernelPlan.make(functional, functional.params, x, None, problem.n_outputs, memory=memory, dtype=dtype)
    if x_test is None:
        return plan, None
    left = None if memory is None else memory - plan.result_bytes
    return plan, KernelPlan.make(functional, functional.params, x_test, x, problem.n_outputs, memory=left, dtype=dtype)


def weight_outputs(problem: Problem, x: Tensor, plan: KernelPlan) -> Tensor:
    """J theta_0, [n, c]."""
    return jacobian_product(problem.functional, x, problem.params, rows=plan.rows).to(plan.dtype)
