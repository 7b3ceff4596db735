"""Pairs of positions that a kernel recursion follows: none (dense), the same position, or all pairs.

A dense network has one number per pair of examples. A convolutional one with a vector read-out needs the covariance
between equal positions, Sigma(al, al), one with global average pooling between all positions, Sigma(al, al'):

    Sigma^l(al, al') = sigma_b^2 + sigma_w^2 / k^2 sum_be E phi phi (al + be, al' + be)
    K^l(al, al')     = sigma_w^2 / k^2 sum_be [E phi' phi' K^{l-1}](al + be, al' + be) + Sigma^l(al, al')

where positions outside the image contribute 0, as zero padding does. The sum over a patch is ``spread``; the read-out's
average over positions is ``read``.

Source: Novak et al., arXiv:1810.05148; Arora et al., arXiv:1904.11955. Checked against networks of finite width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class DenseLayout:
    """One covariance per pair of examples, [n1, n2]; variances are [n]."""

    def first(self, x1: Tensor, x2: Tensor) -> Tensor:
        """x1 . x2 / d."""
        rows_1, rows_2 = x1.flatten(1), x2.flatten(1)
        return (rows_1 @ rows_2.T).div_(rows_1.shape[1])

    def first_variance(self, x: Tensor) -> Tensor:
        """x . x / d, [n]."""
        return (x.flatten(1) ** 2).mean(1)

    def spread(self, covariance: Tensor) -> Tensor:
        """The patch average; here the covariance itself."""
        return covariance

    def spread_variance(self, variance: Tensor) -> Tensor:
        """The patch average of variances."""
        return variance

    def read(self, covariance: Tensor, n1: int, n2: int) -> Tensor:
        """Covariance at the read-out, [n1, n2]."""
        return covariance

    def rows(self, variance: Tensor, part: slice) -> Tensor:
        """Variances of some examples in the shape that pairs with ``first``."""
        return variance[part]

    def entries(self) -> int:
        """Numbers per pair of examples."""
        return 1


@dataclass(frozen=True)
class SamePosition:
    """Covariances between equal positions, [h w, n1, n2]; variances are [n, h, w]."""

    size: int
    kernel_size: int

    def first(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Channel and patch average of x1 x2 at equal positions."""
        covariance = torch.einsum("ichw,jchw->hwij", x1, x2).flatten(0, 1) / x1.shape[1]
        return self.spread(covariance)

    def first_variance(self, x: Tensor) -> Tensor:
        """Channel and patch average of x^2, [n, h, w]."""
        return self.spread_variance((x * x).mean(1))

    def spread(self, covariance: Tensor) -> Tensor:
        """The patch average over positions."""
        grid = covariance.unflatten(0, (self.size, self.size))
        return _box(_box(grid, (0,), self.kernel_size), (1,), self.kernel_size).flatten(0, 1)

    def spread_variance(self, variance: Tensor) -> Tensor:
        """The patch average of variances [n, h, w]."""
        return functional.avg_pool2d(variance[:, None], self.kernel_size, 1, self.kernel_size // 2)[:, 0]

    def read(self, covariance: Tensor, n1: int, n2: int) -> Tensor:
        """The average over positions, [n1, n2]."""
        return covariance.mean(0)

    def rows(self, variance: Tensor, part: slice) -> Tensor:
        """Variances of some examples as [h w, n]."""
        return variance[part].flatten(1).T

    def entries(self) -> int:
        """Numbers per pair of examples."""
        return self.size**2


@dataclass(frozen=True)
class AllPositions(SamePosition):
    """Covariances between all positions, [n1 h w, n2 h w]; variances are [n, h, w]."""

    def first(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Channel and patch average of x1 x2 at all pairs of positions."""
        rows_1, rows_2 = (x.movedim(1, -1).flatten(0, -2) for x in (x1, x2))
        return self.spread((rows_1 @ rows_2.T).div_(x1.shape[1]))

    def spread(self, covariance: Tensor) -> Tensor:
        """The patch average along the diagonal of position pairs."""
        grid = covariance.unflatten(1, (-1, self.size, self.size)).unflatten(0, (-1, self.size, self.size))
        return _box(_box(grid, (1, 4), self.kernel_size), (2, 5), self.kernel_size).flatten(3).flatten(0, 2)

    def read(self, covariance: Tensor, n1: int, n2: int) -> Tensor:
        """The average over all pairs of positions, [n1, n2]."""
        return covariance.unflatten(1, (n2, -1)).unflatten(0, (n1, -1)).mean((1, 3))

    def rows(self, variance: Tensor, part: slice) -> Tensor:
        """Variances of some examples as [n h w]."""
        return variance[part].flatten()

    def entries(self) -> int:
        """Numbers per pair of examples."""
        return self.size**4


Layout = DenseLayout | SamePosition | AllPositions


def _box(grid: Tensor, axes: tuple[int, ...], width: int) -> Tensor:
    """The average of ``grid`` over shifts by -width//2 ... width//2 along all ``axes`` at once, zeros outside."""
    total = grid.clone()
    length = grid.shape[axes[0]]
    for shift in range(1, min(width // 2, length - 1) + 1):
        head, tail, source_head, source_tail = total, total, grid, grid
        for axis in axes:
            head, tail = head.narrow(axis, 0, length - shift), tail.narrow(axis, shift, length - shift)
            source_tail = source_tail.narrow(axis, shift, length - shift)
            source_head = source_head.narrow(axis, 0, length - shift)
        head.add_(source_tail)
        tail.add_(source_head)
    return total.div_(width)
