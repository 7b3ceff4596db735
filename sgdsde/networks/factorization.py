"""Matrix factorization: the entries of U V^T."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, positive_number, whole_number


class MatrixFactorization(nn.Module):
    """Entry (i, j) of M = U V^T, for integer pairs x [n, 2] to [n, 1].

    U = [U_0, -U_0], V = [V_0, V_0] with entries of U_0 and V_0 from N(0, scale^2): M = 0 at the start. What decides
    between the kernel and the rich regime is scale^2 width, which the kernel's size follows.

    Args:
        rows, columns: of M. width: of the factors, even. scale: of their entries.
        dtype, device: of the parameters. generator: draws them; torch's default if None.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        width: int,
        *,
        scale: float,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        rows, columns = whole_number("rows", rows, 1), whole_number("columns", columns, 1)
        half, odd = divmod(whole_number("width", width, 2), 2)
        if odd:
            raise ValueError(complaint("width", "even, for two copies of opposite sign", width))
        self.width, self.scale = 2 * half, positive_number("scale", scale)
        source = torch.device("cpu") if generator is None else generator.device
        left, right = (
            self.scale * torch.randn(size, half, dtype=torch.float64, device=source, generator=generator)
            for size in (rows, columns)
        )
        dtype = dtype or torch.get_default_dtype()
        self.left = nn.Parameter(torch.cat([left, -left], 1).to(dtype=dtype, device=device))
        self.right = nn.Parameter(torch.cat([right, right], 1).to(dtype=dtype, device=device))

    @property
    def matrix(self) -> Tensor:
        """M, [rows, columns]."""
        return self.left @ self.right.mT

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != 2 or x.is_floating_point():
            raise ValueError(complaint("x", "integer pairs [n, 2]", f"{x.dtype} of shape {list(x.shape)}"))
        half = self.width // 2
        entries = self.left[x[:, 0]] * self.right[x[:, 1]]
        return (entries[:, :half] + entries[:, half:]).sum(1, keepdim=True)  # the copies cancel to the last bit
