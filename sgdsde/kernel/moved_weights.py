"""The kernel of a problem's model at other weights than its own."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sgdsde._types import Params
from sgdsde.kernel.assembly import gram
from sgdsde.kernel.memory_plan import KernelPlan
from sgdsde.problem import Problem


def kernel_between(problem: Problem, params: Params, x: Tensor, x2: Tensor | None = None) -> Tensor:
    """K(x, x2) of the problem's model at other parameters than its own, in float64."""
    functional = dataclasses.replace(problem.functional, params=params)
    plan = KernelPlan.make(functional, params, x, x2, problem.n_outputs)
    return gram(functional, x, x2, plan=plan)
