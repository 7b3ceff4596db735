"""The quadratic that a loss is near the initial outputs, in the eigenbasis of its curvature."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sgdsde.curvature import curved_kernel
from sgdsde.kernel import KroneckerKernel
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError


@dataclass(frozen=True, eq=False)
class LocalModes:
    """Squared error itself; another loss as the squared error of curvature 1 whose kernel is G^{1/2} K G^{1/2}.

    With G the loss's Hessian at the outputs f, small deviations move by e' = (I - (lr/n) K G) e, and the part of the
    noise that grows with them has second moment K N(G M G) K; in the coordinates G^{1/2} e both are those of squared
    error.

    Attributes:
        values, vectors: eigenbasis of the kernel on its range, [r] and [n*c, r]. loss_curvature: s.
    """

    values: Tensor
    vectors: Tensor
    n_train: int
    n_outputs: int
    loss_curvature: float

    @property
    def drift(self) -> Tensor:
        """Eigenvalues h = s l / n of the drift matrix, [r]."""
        return self.loss_curvature * self.values / self.n_train


def local_modes(linearization: Linearization) -> LocalModes:
    """The modes in which stability is decided; for another loss than squared error with its Hessian at initialization.

    Raises:
        ValueError: the loss has no second derivative, or a Hessian at the initial outputs that is not positive.
    Cost: squared error none beyond the linearization's eigenbasis; else one eigendecomposition, 9 d^3, at every call.
    """
    problem = linearization.problem
    if isinstance(problem.criterion, SquaredError):
        kernel, curvature = linearization.kernel, problem.criterion.curvature
        if isinstance(kernel, KroneckerKernel):  # the second moments of any two outputs evolve by the map of one
            shared = linearization.basis or Eigenbasis.of(kernel.base).scaled(kernel.scale)
            return LocalModes(shared.values, shared.vectors, problem.n_train, 1, curvature)
        basis = linearization.eigenbasis
    else:
        kernel, curvature = local_kernel(linearization)
        basis = Eigenbasis.of(kernel)
    return LocalModes(basis.values, basis.vectors, problem.n_train, problem.n_outputs, curvature)


def local_kernel(linearization: Linearization) -> tuple[Tensor, float]:
    """K [n*c, n*c] and s under squared error, G^{1/2} K G^{1/2} and 1 under another loss, at the initial outputs."""
    problem = linearization.problem
    return curved_kernel(linearization.dense_kernel, problem.criterion, linearization.outputs, linearization.targets)
