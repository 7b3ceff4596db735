"""A network replaced by its first-order expansion in the parameters at initialization: everything predictions need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from sgdsde import meanfield
from sgdsde._checks import complaint, word
from sgdsde._linear_parts import (
    check_parts,
    check_problem,
    check_spectrum_fits,
    cross_by_products,
    implicit_where_needed,
    initial_outputs,
    kernel_cost,
    kernel_plans,
    weight_outputs,
)
from sgdsde._progress import announce_barless, announced
from sgdsde._types import Progress
from sgdsde.kernel import ImplicitKernel, KernelOperator, KroneckerKernel, as_operator, gram
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.kernel.followed_tail import follow_tail, halved
from sgdsde.losses import SquaredError, in_dtype
from sgdsde.machine import spectrum_cost
from sgdsde.problem import Problem, check_training
from sgdsde.sgd import SGD

if TYPE_CHECKING:
    from sgdsde.networks import Network

TailModel: TypeAlias = Literal["followed", "frozen"]
"""What becomes of a residual outside of the leading eigenvectors."""

ROWS = 256
"""Examples of one forward pass."""


@dataclass(frozen=True, eq=False)
class Linearization:
    """f(theta) = f_0 + J (theta - theta_0), through its kernel.

    Attributes:
        problem: what was linearized.
        kernel: K = J J^T, [n*c, n*c], sample-major, no 1/n; a tensor or a ``KernelOperator``.
        cross_kernel: K(test, train), [m*c, n*c], the same, or None.
        outputs, test_outputs: f_0, [n, c] and [m, c] (None without a test set).
        weight_outputs, test_weight_outputs: J theta_0, [n, c] and [m, c]; None where unknown, and then weight decay is
            refused.
        basis: leading eigenpairs of the kernel that predictions by modes are to use in place of all (``truncate``); of
            a ``KroneckerKernel`` K_0 (x) I_c those of K_0.
    """

    problem: Problem
    kernel: Tensor | KernelOperator
    cross_kernel: Tensor | KernelOperator | None
    outputs: Tensor
    test_outputs: Tensor | None
    weight_outputs: Tensor | None = None
    test_weight_outputs: Tensor | None = None
    basis: Eigenbasis | None = None

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
        check_problem(problem)
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
        check_parts(self)

    @property
    def targets(self) -> Tensor:
        """y in the outputs' dtype where it is an array of numbers: [n, c]."""
        return in_dtype(self.problem.y_train, self.outputs.dtype)

    @property
    def residual(self) -> Tensor:
        """e_0 = f_0 - y, [n, c]; squared error only."""
        if not isinstance(self.problem.criterion, SquaredError):
            received = type(self.problem.loss).__name__
            raise ValueError(complaint("residual", "asked for under squared error", received, "use problem.criterion"))
        return self.outputs - self.targets

    @cached_property
    def eigenbasis(self) -> Eigenbasis:
        """K = U diag(l) U^T on its range, or ``basis`` where it is truncated; computed once."""
        if self.basis is None:
            if isinstance(self.kernel, Tensor):
                announce_barless(spectrum_cost(len(self.kernel)))
            return Eigenbasis.of(self.kernel)
        return self.basis.per_output(self.kernel.n_outputs) if isinstance(self.kernel, KroneckerKernel) else self.basis

    @property
    def operator(self) -> KernelOperator:
        """K by its products."""
        return as_operator(self.kernel)

    @property
    def dense_kernel(self) -> Tensor:
        """K as a tensor, for what needs its entries.

        Raises:
            MemoryError: an operator that is too large to be written out; names the bytes.
        """
        return self.operator.to_dense()

    @property
    def dense_cross_kernel(self) -> Tensor | None:
        """K(test, train) as a tensor, or None without a test set."""
        return None if self.cross_kernel is None else as_operator(self.cross_kernel).to_dense()

    def truncate(
        self, rank: int, *, tail: TailModel = "followed", tolerance: float | None = None, progress: Progress = None
    ) -> Linearization:
        """The same linearization, whose predictions by modes follow the ``rank`` leading eigenpairs of the kernel.

        What the residual has outside of them is followed as well (``tail="followed"``): its mean by some ten Ritz
        vectors for every output that has a kernel of its own, the noise that reaches the other directions by their
        variances. ``Trajectory.truncation_error`` then estimates what is still missing. Dynamics that multiply with
        the kernel itself (``SDEPaths``) are not touched by it.

        Args:
            rank: at most n*c; of a ``KroneckerKernel`` the eigenpairs of K_0, at most n. tolerance: as in
                ``leading_eigenpairs``.
            tail: ``"frozen"`` leaves the rest where it is, which is right as long as lr s l k / n is small for its
                largest eigenvalue l and any step k; ``truncation_error`` is then a bound that is proved. So it is
                under other losses than squared error.
        Cost: that of ``leading_eigenpairs``, and the kernel's diagonal blocks; followed, a hundred products more.
            A prediction then takes about 1.3 times as long for the estimate; frozen, up to three times for the bound.
        """
        word("tail", tail, get_args(TailModel))
        kernel, n_outputs, scale = self.operator, self.problem.n_outputs, 1.0
        if isinstance(self.kernel, KroneckerKernel):
            kernel, n_outputs, scale = self.kernel.base, 1, self.kernel.scale
        basis = Eigenbasis.leading(kernel, rank, n_outputs, self.outputs.dtype, tolerance=tolerance, progress=progress)
        if tail == "followed" and isinstance(self.problem.criterion, SquaredError):
            basis = follow_tail(kernel, basis, self._moving(), n_outputs)
        return replace(self, basis=basis.scaled(scale))

    @property
    def follows_tail(self) -> bool:
        """Whether what lies outside of the leading eigenvectors is followed by its own moments."""
        return self.basis is not None and self.basis.tail is not None and self.basis.tail.bulk is not None

    def halved(self) -> Linearization:
        """The same with half of its leading eigenpairs, the others in a tail that is followed.

        Raises:
            ValueError: no tail is followed.
        """
        if self.basis is None or not self.follows_tail:
            raise ValueError(complaint("a linearization to be halved", "one with a followed tail", "another"))
        return replace(self, basis=halved(self.basis, self._moving()))

    def _moving(self) -> list[Tensor]:
        """What modes must hold: the residual, and J theta_0 where it is known; as columns of one output's kernel."""
        columns = self.problem.n_outputs if isinstance(self.kernel, KroneckerKernel) else 1
        moving = [self.residual] if self.weight_outputs is None else [self.residual, self.weight_outputs]
        return [part.reshape(-1, columns) for part in moving]


def linearize(
    problem: Problem,
    *,
    rank: int | None = None,
    kernel: KernelOperator | None = None,
    memory: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = None,
) -> Linearization:
    """The linearization of a problem's model at its initial weights.

    Args:
        rank: predictions follow this many leading eigenpairs one by one, and the rest by its own moments
            (``Linearization.truncate``). A kernel that does not fit into ``memory`` is then never formed
            (``ImplicitKernel``).
        kernel: K(train, train) as it was made before, e.g. a ``TiledKernel`` of this model and training set; with a
            ``KroneckerKernel`` test outputs follow the mean of the kernels of all outputs.
        memory: bytes allowed for kernels and Jacobians; default a quarter of what is free.
        dtype: of kernels and outputs; default float64 whatever the model's dtype. An ``ImplicitKernel`` has the
            model's.
    Raises:
        MemoryError: the budget is too small and no rank is given; names the bytes, before anything is allocated.
        ValueError: a kernel that was made of other weights or inputs, as far as it knows what it was made of.
    Cost: the kernels of ``empirical_ntk``, one more Jacobian pass for J theta_0; with a rank also the eigenpairs.
    """
    check_problem(problem)
    if kernel is not None and not isinstance(kernel, KernelOperator):
        remedy = "wrap a matrix: sgdsde.kernel.DenseKernel(kernel)"
        raise TypeError(complaint("kernel", "a KernelOperator or None", type(kernel).__name__, remedy))
    if kernel is None:
        kernel = implicit_where_needed(problem, rank, memory, dtype)
    else:
        kernel.check_made_of(problem.functional, problem.x_train)
    if kernel is not None:
        made = _linearize_by_products(problem, kernel, memory, dtype or torch.float64)
    else:
        made = _linearize_dense(problem, memory, dtype, progress)
    return made if rank is None else made.truncate(rank, progress=progress)


def _linearize_by_products(
    problem: Problem, kernel: KernelOperator, memory: int | None, dtype: torch.dtype
) -> Linearization:
    functional, x, x_test = problem.functional, problem.x_train, problem.x_test
    cross = cross_by_products(problem, kernel, memory)
    along = ImplicitKernel(functional, x, memory=memory).along(functional.params).to(dtype)
    test: dict[str, Any] = {"test_outputs": None, "test_weight_outputs": None}
    if cross is not None and x_test is not None:
        test["test_outputs"] = initial_outputs(problem, x_test, ROWS).to(dtype)
        test["test_weight_outputs"] = ImplicitKernel(functional, x_test, x).along(functional.params).to(dtype)
    outputs = initial_outputs(problem, x, ROWS).to(dtype)
    return Linearization(problem, kernel, cross_kernel=cross, outputs=outputs, weight_outputs=along, **test)


def _linearize_dense(
    problem: Problem, memory: int | None, dtype: torch.dtype | None, progress: Progress
) -> Linearization:
    functional, x, x_test = problem.functional, problem.x_train, problem.x_test
    plan, test_plan = kernel_plans(problem, memory, dtype)
    progress = announced(kernel_cost(plan, test_plan), progress)
    kernel = gram(functional, x, None, plan=plan, progress=progress)
    test: dict[str, Any] = {"cross_kernel": None, "test_outputs": None, "test_weight_outputs": None}
    if x_test is not None and test_plan is not None:
        test["cross_kernel"] = gram(functional, x_test, x, plan=test_plan, progress=progress)
        test["test_outputs"] = initial_outputs(problem, x_test, plan.rows).to(plan.dtype)
        test["test_weight_outputs"] = weight_outputs(problem, x_test, plan)
    outputs = initial_outputs(problem, x, plan.rows).to(plan.dtype)
    return Linearization(problem, kernel, outputs=outputs, weight_outputs=weight_outputs(problem, x, plan), **test)


def problem_of(problem_or_linearization: Problem | Linearization) -> Problem:
    """The problem itself, or the one that was linearized."""
    if isinstance(problem_or_linearization, Linearization):
        return problem_or_linearization.problem
    if isinstance(problem_or_linearization, Problem):
        return problem_or_linearization
    received = type(problem_or_linearization).__name__
    raise TypeError(complaint("problem", "a Problem or a Linearization", received, "use sgdsde.Problem(model, ...)"))


def as_linearization(
    problem_or_linearization: Problem | Linearization,
    *,
    sgd: SGD | None = None,
    spectrum: bool = True,
    memory: int | None = None,
    progress: Progress = None,
) -> Linearization:
    """The linearization itself, or that of a problem.

    Args:
        memory: bytes that the kernel is planned for; default a quarter of what is free.
        sgd: what it is to be predicted under, if known: it must train what the problem says.
        spectrum: whether the kernel will be decomposed.
    Raises:
        MemoryError: of a problem, where the kernel (and its spectrum) takes more than a quarter of the free memory;
            names the bytes, before anything is computed.
    """
    problem = problem_of(problem_or_linearization)
    if sgd is not None:
        check_training(problem, sgd)
    if isinstance(problem_or_linearization, Linearization):
        return problem_or_linearization
    if spectrum:
        check_spectrum_fits(problem)
    return linearize(problem, memory=memory, progress=progress)
