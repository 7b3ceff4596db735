"""The empirical neural tangent kernel K = J J^T."""

from sgdsde.kernel.contraction import gram
from sgdsde.kernel.empirical import empirical_ntk
from sgdsde.kernel.plan import KernelPlan

__all__ = ["KernelPlan", "empirical_ntk", "gram"]
