"""Symmetric matrices over pairs of modes, and the coupling of the second-moment map between them and examples.

In the coordinates Y = H^-1/2 M H^-1/2 of a second moment M [r, r] (eigenbasis, H = diag h) one SGD step is

    T = k0 - k1 A1 + k2 A2 + k3 A3,    A1 = (h_i + h_j) o,    A2 = (h_i h_j) o,    A3 = n C C^T,

    C(b) = W^T blockdiag(b) W,    C^T(Y) = diagonal blocks of W Y W^T,    W = U H^1/2,

every one of them self-adjoint in the Frobenius product. A symmetric matrix is kept as the panels of its upper triangle,
entries off the diagonal blocks times sqrt 2, so that the dot product of two packed matrices is their Frobenius product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PANELS = 5
"""Panels of columns: (1 + 1/5) / 2 of the operations of full matrices, in 0.7 of their time; more take longer."""

NARROWEST = 32
"""Columns of a panel, below which a product costs more than it saves."""

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True)
class StepCoefficients:
    """Of T, for one learning rate, noise factor q = phi/B and weight decay w:

    k0 = (1 - lr w)^2,    k1 = lr (1 - lr w),    k2 = lr^2 (1 - q),    k3 = lr^2 q.

    Attributes:
        shrunk: 1 - k0. numbers: k1, k2, k3.
    """

    lr: float
    noise: float
    decay: float = 0.0

    @property
    def shrunk(self) -> float:
        return self.lr * self.decay * (2 - self.lr * self.decay)

    @property
    def numbers(self) -> tuple[float, float, float]:
        return self.lr * (1 - self.lr * self.decay), self.lr**2 * (1 - self.noise), self.lr**2 * self.noise


class PairSpace:
    """Packed symmetric matrices [size] over modes with drift h [r] and vectors U [n c, r].

    Cost: ``to_blocks`` and ``from_blocks`` one product [n c, r] x [r, r] each by panels, ``couple`` both without
    writing the matrix out.
    """

    def __init__(self, drift: Tensor, vectors: Tensor, n_outputs: int) -> None:
        self.drift, self.vectors = drift, vectors
        self.rank, self.n_outputs, self.n_train = len(drift), n_outputs, len(vectors) // n_outputs
        self.blocks_shape = (self.n_train, n_outputs, n_outputs)
        self.rows = vectors * drift.sqrt()
        width = max(NARROWEST, -(-self.rank // PANELS))
        self._edges = [(a, min(a + width, self.rank)) for a in range(0, self.rank, width)]
        self.size = sum(b * (b - a) for a, b in self._edges)
        self._single: PairSpace | None = None

    @property
    def single(self) -> PairSpace:
        """The same in single precision."""
        if self._single is None:
            self._single = PairSpace(self.drift.float(), self.vectors.float(), self.n_outputs)
        return self._single

    def panels(self, packed: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Views [b, b - a] of the columns a ... b with the rows up to b."""
        start = 0
        for a, b in self._edges:
            stop = start + b * (b - a)
            yield a, b, packed[start:stop].view(b, b - a)
            start = stop

    def empty(self) -> Tensor:
        return torch.empty(self.size, dtype=self.rows.dtype, device=self.rows.device)

    def pack(self, matrix: Tensor) -> Tensor:
        """Of a symmetric matrix [r, r]."""
        packed = self.empty()
        for a, b, panel in self.panels(packed):
            panel.copy_(matrix[:b, a:b])
            panel[:a] *= SQRT2
        return packed

    def pack_gains(self, matrix: Tensor) -> Tensor:
        """Of symmetric factors [r, r] that multiply entry by entry, without sqrt 2."""
        packed = self.empty()
        for a, b, panel in self.panels(packed):
            panel.copy_(matrix[:b, a:b])
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """The symmetric matrix [r, r]."""
        matrix = torch.empty(self.rank, self.rank, dtype=packed.dtype, device=packed.device)
        for a, b, panel in self.panels(packed):
            matrix[:b, a:b] = panel
            matrix[:a, a:b] /= SQRT2
            matrix[a:b, :a] = matrix[:a, a:b].mT
        return matrix

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """sum over columns of (x y^T + y x^T)/2 for x, y [r] or [r, columns]."""
        x, y = left.view(self.rank, -1), right.view(self.rank, -1)
        packed = self.empty()
        for a, b, panel in self.panels(packed):
            torch.mm(x[:b], y[a:b].mT, out=panel)
            if left is not right:
                panel.addmm_(y[:b], x[a:b].mT).mul_(0.5)
            panel[:a] *= SQRT2
        return packed

    def diagonal(self, values: Tensor) -> Tensor:
        """Of diag(values)."""
        packed = self.empty().zero_()
        for a, b, panel in self.panels(packed):
            panel[a:].diagonal().copy_(values[a:b])
        return packed

    def diagonal_of(self, packed: Tensor) -> Tensor:
        return torch.cat([panel[a:].diagonal() for a, _, panel in self.panels(packed)])

    def elementwise(self, coefficients: StepCoefficients) -> Tensor:
        """1 - k0 + k1 (h_i + h_j) - k2 h_i h_j, packed without sqrt 2: what T without coupling takes away."""
        k1, k2, _ = coefficients.numbers
        h, values = self.drift, self.empty()
        for a, b, panel in self.panels(values):
            torch.outer(h[:b], -k2 * h[a:b], out=panel)
            panel.add_(h[a:b], alpha=k1).add_(h[:b, None], alpha=k1)
        return values.add_(coefficients.shrunk)

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """C(b) for blocks [n, c, c]: packed."""
        packed, weighted = self.empty(), self._weighted(blocks)
        for a, b, panel in self.panels(packed):
            torch.mm(self.rows[:, :b].mT, weighted[:, a:b], out=panel)
            panel[:a] *= SQRT2
        return packed

    def to_blocks(self, packed: Tensor) -> Tensor:
        """C^T(Y), [n, c, c]."""
        total = self._no_blocks()
        for a, b, panel in self.panels(packed):
            doubled = panel.clone()
            doubled[:a] *= SQRT2
            self._add_blocks(total, a, b, doubled)
        return self._symmetric(total)

    def couple(self, gains: Tensor, blocks: Tensor) -> Tensor:
        """C^T(g o C(b)) for gains as ``elementwise`` gives them."""
        total, weighted = self._no_blocks(), self._weighted(blocks)
        for a, b, gain in self.panels(gains):
            panel = torch.mm(self.rows[:, :b].mT, weighted[:, a:b]).mul_(gain)
            panel[:a] *= 2
            self._add_blocks(total, a, b, panel)
        return self._symmetric(total)

    def _no_blocks(self) -> Tensor:
        return torch.zeros(self.blocks_shape, dtype=self.rows.dtype, device=self.rows.device)

    def _weighted(self, blocks: Tensor) -> Tensor:
        if self.n_outputs == 1:
            return blocks.view(-1, 1) * self.rows
        return (blocks @ self.rows.view(self.n_train, self.n_outputs, -1)).view_as(self.rows)

    def _add_blocks(self, total: Tensor, a: int, b: int, panel: Tensor) -> None:
        product, own = self.rows[:, :b] @ panel, self.rows[:, a:b]
        if self.n_outputs == 1:
            total += (product.mul_(own)).sum(1).view(-1, 1, 1)
            return
        shape = (self.n_train, self.n_outputs, b - a)
        total.baddbmm_(product.view(shape), own.reshape(shape).mT)

    def _symmetric(self, blocks: Tensor) -> Tensor:
        return blocks if self.n_outputs == 1 else (blocks + blocks.mT) / 2
