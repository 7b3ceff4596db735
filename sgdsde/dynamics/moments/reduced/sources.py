"""Sources of the second moment: weight decay, fresh label noise, the part of the residual that never moves.

With m the mean, f the immovable residual, c = w b the decay's offset and D = 1 - lr (H + w), one step adds to M

    -lr (D m c^T + c (D m)^T) + lr^2 c c^T + (lr^2 v n / B) H^2
    + (lr^2 q n) H^1/2 C(blocks of U m f^T + f m^T U^T + f f^T) H^1/2,

linear in the mean, which is known: m_k = m* + (1 - lr (h + w))^k (m_0 - m*), m* = -c / (h + w). What is constant in it
has a stationary second moment; around that only decaying sources are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.variances import BulkState


@dataclass(frozen=True, eq=False)
class Sources:
    """The start and the sources of one problem, in the coordinates of ``PairSpace``.

    Attributes:
        moment: Y_0, packed. mean: m_0, [r, columns].
        fixed: f, [n c, columns], None where it is zero. offset: c, [r, columns], None without decay.
        label_variance: v summed over outputs that share a mode. bulk: variances beside the modes, or None.
    """

    space: PairSpace
    moment: Tensor
    mean: Tensor
    fixed: Tensor | None
    offset: Tensor | None
    label_variance: float
    bulk: BulkState | None = None

    @property
    def follow_the_mean(self) -> bool:
        """Whether the mean, which decays half as fast as its square, drives the second moment."""
        return self.fixed is not None or self.offset is not None

    @property
    def is_constant(self) -> bool:
        """Whether something is left of the sources when the mean has settled."""
        return self.follow_the_mean or self.label_variance > 0

    def resting_mean(self, coefficients: StepCoefficients) -> Tensor:
        """m*, [r, columns]."""
        if self.offset is None:
            return torch.zeros_like(self.mean)
        return -self.offset / (self.space.drift[:, None] + coefficients.decay)

    def constant(self, coefficients: StepCoefficients, batch_size: float) -> tuple[Tensor, Tensor | None]:
        """What every step adds once the mean rests: packed, and blocks that pass through C."""
        return self.at(coefficients, batch_size, self.resting_mean(coefficients))

    def at(self, coefficients: StepCoefficients, batch_size: float, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a step adds at this mean [r, columns]."""
        lr, space = coefficients.lr, self.space
        packed, injected = self.from_mean(coefficients, mean)
        if self.offset is not None:
            packed = packed + lr**2 * space.products(*[self._scaled(self.offset)] * 2)
        if self.fixed is not None:
            assert injected is not None
            injected = injected + self._coupling(coefficients) * self.example_blocks(self.fixed, self.fixed)
        if self.label_variance:
            weight = lr**2 * space.n_train * self.label_variance / batch_size
            packed = packed + weight * space.diagonal(space.drift)
        return packed, injected

    def from_mean(self, coefficients: StepCoefficients, mean: Tensor) -> tuple[Tensor, Tensor | None]:
        """The part that is linear in the mean [r, columns]."""
        lr, space = coefficients.lr, self.space
        packed = torch.zeros_like(self.moment)
        if self.offset is not None:
            moved = (1 - lr * (space.drift[:, None] + coefficients.decay)) * mean
            packed = -2 * lr * space.products(self._scaled(moved), self._scaled(self.offset))
        if self.fixed is None:
            return packed, None
        blocks = self.example_blocks(space.vectors @ mean, self.fixed)
        return packed, 2 * self._coupling(coefficients) * blocks

    def transformed(
        self, coefficients: StepCoefficients, t: float, stationary: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """sum_k z^-(k+1) of the sources and the start, at z = 1 + t, around the stationary second moment."""
        start = self.moment if stationary is None else self.moment - stationary
        if not self.follow_the_mean:
            return start, None
        rates = coefficients.lr * (self.space.drift[:, None] + coefficients.decay)
        deviation = (self.mean - self.resting_mean(coefficients)) / (t + rates)
        packed, injected = self.from_mean(coefficients, deviation)
        return start + packed, injected

    def example_blocks(self, left: Tensor, right: Tensor) -> Tensor:
        """Diagonal blocks of (x y^T + y x^T)/2 summed over columns, [n, c, c], for x, y [n c, columns]."""
        n, c, _ = self.space.blocks_shape
        product = left.view(n, c, -1) @ right.view(n, c, -1).mT
        return (product + product.mT) / 2

    def _coupling(self, coefficients: StepCoefficients) -> float:
        return coefficients.numbers[-1] * self.space.n_train

    def _scaled(self, columns: Tensor) -> Tensor:
        return columns * self.space.drift.rsqrt()[:, None]
