"""Operations of real and of linearized runs, counted: what decides must not depend on how busy a machine is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from sgdsde._linear_parts import check_spectrum_fits
from sgdsde.dynamics.reduced_moments import pays_after
from sgdsde.kernel import KernelPlan
from sgdsde.losses import SquaredError
from sgdsde.problem import Problem
from sgdsde.sgd import SGD

DOUBLE = 2.0
"""Cost of an operation in float64, which linearized runs use, in one of float32."""

EXAMPLE_OVERHEAD = 2.0
"""Operations of a pass that no product counts (copies, activations), per weight."""

SAMPLED_RUNS = 1024
"""Linearized runs that stand for their expectation where it has no closed form."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations, those in float64 counted twice.

    Attributes:
        run: of one real run with its recorded losses. linear_run: of one linearized run. theory: of the kernel and of
            the expected losses of linearized SGD, once; infinite where the kernel does not fit.
    """

    run: float
    linear_run: float
    theory: float

    @classmethod
    def of(cls, problem: Problem, sgd: SGD, n_steps: int, n_recorded: int) -> Operations:
        forward, plan = forward_operations(problem), sgd.plan(problem.n_train, n_steps)
        examples, evaluated = float(plan.batch_size.sum()), n_recorded * (problem.n_train + problem.n_test)
        run = forward * (3 * examples + evaluated)
        d, rows = problem.n_train * problem.n_outputs, (problem.n_train + problem.n_test) * problem.n_outputs
        scale = DOUBLE if problem.dtype.itemsize == 4 else 1.0
        linear_run = scale * 2 * rows * d * n_steps
        try:
            check_spectrum_fits(problem)
            kernel = _kernel_operations(problem)
        except MemoryError:
            return cls(run, linear_run, float("inf"))
        rank = min(d, problem.functional.n_params)
        theory = kernel + scale * _expectation(problem, sgd, n_steps, n_recorded, d, rank, linear_run / scale)
        return cls(run, linear_run, theory)


def has_exact_expectation(problem: Problem, sgd: SGD) -> bool:
    """Whether the expected losses of linearized SGD have a closed form."""
    return isinstance(problem.criterion, SquaredError) and sgd.sampling != "shuffled"


def forward_operations(problem: Problem) -> float:
    """Multiplications and additions of the pass of one example: of its matrix products, and two per weight."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        problem.forward(problem.params, problem.x_train[:1])
    return counter.get_total_flops() + EXAMPLE_OVERHEAD * problem.functional.n_params


def _kernel_operations(problem: Problem) -> float:
    functional, x, c = problem.functional, problem.x_train, problem.n_outputs
    pairs = [(x, None)] + ([] if problem.x_test is None else [(problem.x_test, x)])
    return float(sum(KernelPlan.make(functional, functional.params, a, b, c).operations for a, b in pairs))


def _expectation(
    problem: Problem, sgd: SGD, n_steps: int, n_recorded: int, d: int, rank: int, linear_run: float
) -> float:
    if not has_exact_expectation(problem, sgd):
        return SAMPLED_RUNS * linear_run
    step = 4 * d * rank**2 * (1.5 if sgd.momentum else 1.0)
    return (
        9 * d**3 + min(n_steps, pays_after(sgd, rank)) * step + n_recorded * 2 * rank**3 * (2 if problem.n_test else 1)
    )
