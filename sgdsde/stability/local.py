"""The quadratic that a loss is near the initial outputs, in the eigenbasis of its curvature."""

from __future__ import annotations

from torch import Tensor

from sgdsde.curvature import curved_kernel
from sgdsde.kernel import KroneckerKernel
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.stability.second_moments import SecondMomentMap


def local_map(linearization: Linearization) -> SecondMomentMap:
    """The map by which stability is decided: of squared error itself, of another loss as a squared error near by.

    With G the loss's Hessian at the outputs f, small deviations move by e' = (I - (lr/n) K G) e, and the part of the
    noise that grows with them has second moment K N(G M G) K; in the coordinates G^{1/2} e both are those of squared
    error with curvature 1 and the kernel G^{1/2} K G^{1/2}.

    Raises:
        ValueError: the loss has no second derivative, or a Hessian at the initial outputs that is not positive.
    Cost: squared error none beyond the linearization's eigenbasis; else one eigendecomposition, 9 d^3, at every call.
    """
    problem = linearization.problem
    if isinstance(problem.criterion, SquaredError):
        kernel, curvature = linearization.kernel, problem.criterion.curvature
        if isinstance(kernel, KroneckerKernel):  # the second moments of any two outputs evolve by the map of one
            shared = linearization.basis or Eigenbasis.of(kernel.base).scaled(kernel.scale)
            return SecondMomentMap(shared.values, shared.vectors, n_outputs=1, curvature=curvature)
        basis = linearization.eigenbasis
    else:
        kernel, curvature = local_kernel(linearization)
        basis = Eigenbasis.of(kernel)
    return SecondMomentMap(basis.values, basis.vectors, n_outputs=problem.n_outputs, curvature=curvature)


def local_kernel(linearization: Linearization) -> tuple[Tensor, float]:
    """K [n*c, n*c] and s under squared error, G^{1/2} K G^{1/2} and 1 under another loss, at the initial outputs."""
    problem = linearization.problem
    return curved_kernel(linearization.dense_kernel, problem.criterion, linearization.outputs, linearization.targets)
