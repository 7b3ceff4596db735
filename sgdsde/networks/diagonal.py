"""Diagonal linear networks: linear in their inputs and not in their weights, and solvable from the kernel to the rich
regime."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, positive_number, real_floating, whole_number


class DiagonalLinear(nn.Module):
    """f(x) = <w_+^D - w_-^D, x>, [n, in_features] -> [n, 1], powers by entry; w_+ = w_- = scale at the start, so f = 0.

    The kernel at the start is 2 D^2 scale^(2D - 2) X X^T. A large scale trains in the kernel regime, toward the
    interpolant of least l2 norm, a small one in the rich regime, toward that of least l1 norm.

    Args:
        in_features: d. depth: D, at least 2. scale: a number, or one for each coordinate [d].
        dtype, device: of the parameters; torch's defaults if None.
    Source: Woodworth et al., arXiv:2002.09277.
    """

    def __init__(
        self,
        in_features: int,
        *,
        depth: int = 2,
        scale: float | Tensor,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = whole_number("in_features", in_features, 1)
        self.depth = whole_number("depth", depth, 2, "depth 1 is linear regression")
        start = scale_vector(scale, self.in_features).to(dtype=dtype or torch.get_default_dtype(), device=device)
        self.plus = nn.Parameter(start.clone())
        self.minus = nn.Parameter(start.clone())

    @property
    def coefficients(self) -> Tensor:
        """beta = w_+^D - w_-^D, [d]."""
        return self.plus**self.depth - self.minus**self.depth

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(complaint("x", f"[n, {self.in_features}]", f"shape {list(x.shape)}"))
        return (x @ self.coefficients)[:, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, depth={self.depth}"


def scale_vector(scale: float | Tensor, d: int) -> Tensor:
    """One positive scale for each of d coordinates, float64."""
    if isinstance(scale, Tensor) and scale.ndim == 1:
        real_floating("scale", scale)
        if len(scale) != d or not (scale > 0).all():
            received = f"shape {list(scale.shape)}, smallest {float(scale.min()):.3g}"
            raise ValueError(complaint("scale", f"positive, a number or [{d}]", received))
        return scale.detach().double()
    return torch.full((d,), positive_number("scale", scale), dtype=torch.float64)
