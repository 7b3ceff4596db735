"""The empirical neural tangent kernel K = J J^T.

``empirical_ntk`` is the whole of it. Below it, for those who need the kernel tile by tile, stand

    plan = KernelPlan.make(functional, params, x1, x2, n_outputs, outputs="full", memory=None, dtype=None)
    left = factors(functional, x1[rows], plan=plan)          # held as long as it is needed, used for any column block
    right = factors(functional, x2[columns], plan=plan)      # may be ``left`` itself
    tile(left, right, plan=plan)                             # [b1*c, b2*c], [b1, b2] or [c, b1, b2]

with ``plan.rows`` the examples of a block that the budget allows, two blocks at once.

A kernel that does not fit into memory is a ``KernelOperator``: ``TiledKernel`` on disk, ``ImplicitKernel`` never
formed, ``LowRankKernel`` and ``KroneckerKernel`` for approximations. ``leading_eigenpairs`` is what a prediction needs.
"""

from sgdsde.kernel.assembly import gram, tile
from sgdsde.kernel.empirical import empirical_ntk
from sgdsde.kernel.implicit import ImplicitKernel
from sgdsde.kernel.layer_factors import Factors, factors
from sgdsde.kernel.memory_plan import KernelPlan
from sgdsde.kernel.operator import (
    DenseKernel,
    KernelOperator,
    KroneckerKernel,
    LowRankKernel,
    StackedKernel,
    as_operator,
    rows_times,
)
from sgdsde.kernel.spectrum import LeadingEigenpairs, NotConvergedError, leading_eigenpairs
from sgdsde.kernel.tiles.tile_file import StoredKernelError
from sgdsde.kernel.tiles.tiled import TiledKernel

__all__ = [
    "DenseKernel",
    "Factors",
    "ImplicitKernel",
    "KernelOperator",
    "KernelPlan",
    "KroneckerKernel",
    "LeadingEigenpairs",
    "LowRankKernel",
    "NotConvergedError",
    "StackedKernel",
    "StoredKernelError",
    "TiledKernel",
    "as_operator",
    "empirical_ntk",
    "factors",
    "gram",
    "leading_eigenpairs",
    "rows_times",
    "tile",
]
