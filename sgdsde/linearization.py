"""A network replaced by its first-order expansion in the parameters at initialization: everything predictions need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_entries
from sgdsde._types import Progress
from sgdsde.jacobian import jacobian_product
from sgdsde.kernel import KernelPlan, gram
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem

if TYPE_CHECKING:
    from sgdsde.networks import Network


@dataclass(frozen=True, eq=False)
class Linearization:
    """f(theta) = f_0 + J (theta - theta_0), through its kernel.

    Attributes:
        problem: what was linearized.
        kernel: K = J J^T, [n*c, n*c], sample-major, no 1/n.
        cross_kernel: K(test, train), [m*c, n*c], or None.
        outputs, test_outputs: f_0, [n, c] and [m, c] (None without a test set).
        weight_outputs, test_weight_outputs: J theta_0, [n, c] and [m, c]; None where unknown, and then weight decay is
            refused.
    """

    problem: Problem
    kernel: Tensor
    cross_kernel: Tensor | None
    outputs: Tensor
    test_outputs: Tensor | None
    weight_outputs: Tensor | None = None
    test_weight_outputs: Tensor | None = None

    @classmethod
    def from_analytic(
        cls, problem: Problem, network: Network | None = None, *, memory: int | None = None
    ) -> Linearization:
        """The linearization with the kernel of the infinitely wide network in place of the empirical one.

        Outputs at initialization are those of the problem's own model; J theta_0 is unknown: weight decay is refused.

        Args:
            network: a ``networks.*`` instance in NTK parametrization; default the problem's model. Its width and its
                weights do not enter.
            memory: bytes for temporaries beside the kernels.
        Raises:
            TypeError: no such network. ValueError: see ``meanfield.analytic_kernels``.
        Exactness: K_0 (x) I_c with the deterministic limit K_0; the empirical kernel differs by O(width^-1/2).
        Cost: see ``meanfield.analytic_kernels``.
        """
        from sgdsde import meanfield

        network = problem.model if network is None else network
        x, x_test, c = problem.x_train, problem.x_test, problem.n_outputs
        kernel = meanfield.per_output(meanfield.analytic_ntk(x, None, network, memory=memory), c)
        outputs = initial_outputs(problem, x, len(x)).to(kernel.dtype)
        if x_test is None:
            return cls(problem, kernel, cross_kernel=None, outputs=outputs, test_outputs=None)
        cross = meanfield.per_output(meanfield.analytic_ntk(x_test, x, network, memory=memory), c)
        test_outputs = initial_outputs(problem, x_test, len(x_test)).to(kernel.dtype)
        return cls(problem, kernel, cross_kernel=cross, outputs=outputs, test_outputs=test_outputs)

    def __post_init__(self) -> None:
        d, m = self.problem.n_train * self.problem.n_outputs, self.problem.n_test * self.problem.n_outputs
        if list(self.kernel.shape) != [d, d]:
            raise ValueError(complaint("kernel", f"[{d}, {d}], n_train * n_outputs", list(self.kernel.shape)))
        finite_entries("kernel", self.kernel)
        if self.cross_kernel is not None and list(self.cross_kernel.shape) != [m, d]:
            raise ValueError(complaint("cross_kernel", f"[{m}, {d}]", list(self.cross_kernel.shape)))
        if (self.cross_kernel is None) != (m == 0) or (self.test_outputs is None) != (m == 0):
            received = f"n_test={self.problem.n_test}"
            raise ValueError(complaint("cross_kernel and test_outputs", "given exactly with a test set", received))

    @property
    def targets(self) -> Tensor:
        """y in the kernel's dtype where it is an array of numbers: [n, c]."""
        y = self.problem.y_train
        return y.to(self.kernel.dtype) if y.is_floating_point() else y

    @property
    def residual(self) -> Tensor:
        """e_0 = f_0 - y, [n, c]; squared error only."""
        if not isinstance(self.problem.criterion, SquaredError):
            received = type(self.problem.loss).__name__
            raise ValueError(complaint("residual", "asked for under squared error", received, "use problem.criterion"))
        return self.outputs - self.targets

    @cached_property
    def eigenbasis(self) -> Eigenbasis:
        """K = U diag(l) U^T on its range; computed once."""
        return Eigenbasis.of(self.kernel)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Spectral decomposition of a positive semidefinite kernel, restricted to its range.

    Attributes:
        values: l, [r], ascending, all above d eps l_max. vectors: U, [d, r].
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, kernel: Tensor) -> Eigenbasis:
        """Cost: one symmetric eigendecomposition, about 9 d^3 operations."""
        values, vectors = torch.linalg.eigh((kernel + kernel.mT) / 2)
        floor = values.abs().max() * len(kernel) * torch.finfo(kernel.dtype).eps
        if values.min() < -1e3 * floor - 1e-6 * values.abs().max():
            received = f"eigenvalues down to {values.min():.3e} beside {values.max():.3e}"
            raise ValueError(complaint("kernel", "positive semidefinite", received))
        kept = values > floor
        if not kept.any():
            raise ValueError(complaint("kernel", "different from zero", "no positive eigenvalue"))
        return cls(values[kept].contiguous(), vectors[:, kept].contiguous())


def linearize(
    problem: Problem, *, memory: int | None = None, dtype: torch.dtype | None = None, progress: Progress = None
) -> Linearization:
    """The linearization of a problem's model at its initial weights.

    Args:
        memory: bytes allowed for kernels and Jacobians; default a quarter of what is free.
        dtype: of kernels and outputs; default float64 whatever the model's dtype.
    Raises:
        MemoryError: the budget is too small; names the bytes, before anything is allocated.
    Cost: the kernels of ``empirical_ntk``, one more Jacobian pass for J theta_0.
    """
    functional, x, x_test = problem.functional, problem.x_train, problem.x_test
    plan = KernelPlan.make(functional, functional.params, x, None, problem.n_outputs, memory=memory, dtype=dtype)
    test_plan = None
    if x_test is not None:
        left = None if memory is None else memory - plan.result_bytes
        test_plan = KernelPlan.make(
            functional, functional.params, x_test, x, problem.n_outputs, memory=left, dtype=dtype
        )
    kernel = gram(functional, x, None, plan=plan, progress=progress)
    test: dict[str, Tensor | None] = {"cross_kernel": None, "test_outputs": None, "test_weight_outputs": None}
    if x_test is not None and test_plan is not None:
        test["cross_kernel"] = gram(functional, x_test, x, plan=test_plan, progress=progress)
        test["test_outputs"] = initial_outputs(problem, x_test, plan.rows).to(plan.dtype)
        test["test_weight_outputs"] = _weight_outputs(problem, x_test, plan)
    outputs = initial_outputs(problem, x, plan.rows).to(plan.dtype)
    return Linearization(problem, kernel, outputs=outputs, weight_outputs=_weight_outputs(problem, x, plan), **test)


def initial_outputs(problem: Problem, x: Tensor, rows: int) -> Tensor:
    """f_0 at x, [len(x), c], in blocks of ``rows`` examples; refuses outputs that are not finite."""
    with torch.no_grad():
        blocks = [problem.forward(problem.params, x[i : i + rows]) for i in range(0, len(x), rows)]
    return finite_entries("model output", torch.cat(blocks))


def _weight_outputs(problem: Problem, x: Tensor, plan: KernelPlan) -> Tensor:
    return jacobian_product(problem.functional, x, problem.params, rows=plan.rows).to(plan.dtype)


def as_linearization(problem_or_linearization: Problem | Linearization, *, progress: Progress = None) -> Linearization:
    """The linearization itself, or that of a problem."""
    if isinstance(problem_or_linearization, Linearization):
        return problem_or_linearization
    if isinstance(problem_or_linearization, Problem):
        return linearize(problem_or_linearization, progress=progress)
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))
