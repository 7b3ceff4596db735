"""The dense twin of the reduced engine: second moments of modes as plain matrices, one step of SGD written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients
from sgdsde.dynamics.moments.reduced.sources import Sources


def random_space(n_train: int, n_outputs: int, rank: int, *, seed: int = 0) -> PairSpace:
    """Orthonormal U and a drift over two decades."""
    stream = torch.Generator().manual_seed(seed)
    rows = n_train * n_outputs
    vectors = torch.linalg.qr(torch.randn(rows, rank, generator=stream, dtype=torch.float64)).Q
    drift = torch.logspace(-2, 0, rank, dtype=torch.float64)
    return PairSpace(drift, vectors.contiguous(), n_outputs)


def symmetric(rank: int, *, seed: int) -> Tensor:
    """Positive definite."""
    root = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT / rank + torch.eye(rank, dtype=torch.float64)


def normal(*size: int, seed: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Driven:
    """What drives a second moment: the immovable residual f [n c, k], the pull of decay c [r, k], label noise."""

    fixed: Tensor | None = None
    offset: Tensor | None = None
    label_variance: float = 0.0

    @classmethod
    def by_all(cls, space: PairSpace, *, columns: int = 1, label_variance: float = 0.3) -> Driven:
        """f lies outside of the span of U."""
        f = normal(len(space.vectors), columns, seed=11)
        f -= space.vectors @ (space.vectors.mT @ f)
        return cls(f, 0.1 * normal(space.rank, columns, seed=12), label_variance)

    def sources(self, space: PairSpace, moment: Tensor, mean: Tensor) -> Sources:
        """From E[a a^T] [r, r] and E[a] [r, k] in the coordinates a = U^T e."""
        return Sources(
            space,
            moment=space.pack(scaled(space, moment)),
            mean=mean,
            fixed=self.fixed,
            offset=self.offset,
            label_variance=self.label_variance,
        )


def scaled(space: PairSpace, moment: Tensor) -> Tensor:
    """H^-1/2 M H^-1/2."""
    root = space.drift.rsqrt()
    return root[:, None] * moment * root


def step(
    space: PairSpace, coefficients: StepCoefficients, batch_size: float, driven: Driven, moment: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """E[a a^T] and E[a] after a step: the covariance of a batch's gradient is q that of one example's."""
    lr, q, h = coefficients.lr, coefficients.noise, space.drift
    kept = 1 - lr * (h + coefficients.decay)
    moved = kept[:, None] * mean
    after = kept[:, None] * moment * kept
    if driven.offset is not None:
        pull = driven.offset
        after = after - lr * (moved @ pull.mT + pull @ moved.mT) + lr**2 * pull @ pull.mT
        moved = moved - lr * pull
    return after + lr**2 * gradient_noise(space, q, batch_size, driven, moment, mean), moved


def gradient_noise(
    space: PairSpace, q: float, batch_size: float, driven: Driven, moment: Tensor, mean: Tensor
) -> Tensor:
    """Covariance of a batch's gradient at E[a a^T] and E[a], [r, r], from the examples one by one."""
    n, c, h = space.n_train, space.n_outputs, space.drift
    gradients = torch.zeros_like(moment)
    for i in range(n):
        rows = space.vectors[i * c : (i + 1) * c]
        seen = rows @ moment @ rows.mT
        if driven.fixed is not None:
            own = driven.fixed[i * c : (i + 1) * c]
            crossed = rows @ mean @ own.mT
            seen = seen + crossed + crossed.mT + own @ own.mT
        pulled = n * h[:, None] * rows.mT
        gradients = gradients + pulled @ seen @ pulled.mT / n
    return q * (gradients - h[:, None] * moment * h) + driven.label_variance * n / batch_size * h.square().diag()


def every_symmetric(rank: int) -> list[Tensor]:
    """A basis of the symmetric matrices, with repetitions."""
    units = [torch.zeros(rank, rank, dtype=torch.float64) for _ in range(rank**2)]
    for k, unit in enumerate(units):
        i, j = divmod(k, rank)
        unit[i, j] = unit[j, i] = 1.0
    return units
