"""The kernel by which small deviations of the outputs move under any loss."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.losses import Loss, SquaredError


def curved_kernel(kernel: Tensor, criterion: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """K [n*c, n*c] and s under squared error, G^{1/2} K G^{1/2} and 1 under another loss with Hessian G at the outputs.

    s/n times its eigenvalues are those of the Gauss-Newton matrix of the loss.

    Raises:
        ValueError: the loss has no second derivative, or a Hessian at the outputs that is not positive.
    """
    if isinstance(criterion, SquaredError):
        return kernel, criterion.curvature
    n, c = outputs.shape
    values, vectors = torch.linalg.eigh(criterion.hessian(outputs, targets))
    if values.min() < -1e-9 * values.abs().max() or not values.max() > 0:
        received = f"one with eigenvalues from {float(values.min()):.3g} to {float(values.max()):.3g}"
        raise ValueError(complaint("loss", "of positive curvature at the initial outputs", received))
    roots = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    half = (roots @ kernel.view(n, c, -1)).view(n * c, -1)
    kernel = (roots @ half.mT.reshape(n, c, -1)).view(n * c, -1)
    return (kernel + kernel.mT) / 2, 1.0
