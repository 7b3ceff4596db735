"""The law of all outputs at one step: means, covariances in factors, samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Covariance:
    """F C F^T, kept in factors: the outputs of thousands of test examples move in few directions.

    Attributes:
        factor: F, [rows, r]. core: C, [r, r], symmetric. gram: F^T F, [r, r].
    """

    factor: Tensor
    core: Tensor
    gram: Tensor

    @property
    def trace(self) -> Tensor:
        """The trace of the covariance."""
        return (self.gram * self.core).sum()

    @property
    def squared_norm(self) -> Tensor:
        """tr of the square: the sum of all squared entries."""
        product = self.gram @ self.core
        return (product * product.mT).sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        """v^T (F C F^T) v for v [rows]."""
        reduced = self.factor.mT @ vector
        return reduced @ self.core @ reduced

    def diagonal(self) -> Tensor:
        """Variances, [rows]."""
        return ((self.factor @ self.core) * self.factor).sum(1)

    def blocks(self, n_outputs: int) -> Tensor:
        """The covariance of each example's outputs, [rows / c, c, c]."""
        shape = (-1, n_outputs, self.factor.shape[1])
        return (self.factor @ self.core).view(shape) @ self.factor.view(shape).mT

    def to_dense(self) -> Tensor:
        """[rows, rows]."""
        return self.factor @ self.core @ self.factor.mT


@dataclass(frozen=True, eq=False)
class SharedCovariance(Covariance):
    """F C F^T, the sum over outputs of the covariances of one output each, [n, n].

    Of the whole covariance S, [n*c, n*c], it knows the trace; ``squared_norm`` and ``quadratic`` are bounds from above,
    as if the outputs were perfectly correlated.
    """

    n_outputs: int = 1

    @property
    def squared_norm(self) -> Tensor:
        product = self.gram @ self.core
        return self.n_outputs * (product * product.mT).sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        reduced = self.factor.mT @ vector.view(-1, self.n_outputs)
        return self.n_outputs * (reduced * (self.core @ reduced)).sum()

    def diagonal(self) -> Tensor:
        raise _unknown()

    def blocks(self, n_outputs: int) -> Tensor:
        raise _unknown()

    def to_dense(self) -> Tensor:
        raise _unknown()


def _unknown() -> ValueError:
    return ValueError(
        "ModalMoments on a shared kernel and TracedRecursion cannot represent the law of single outputs; use "
        'MomentRecursion or observe "loss"'
    )


@dataclass(frozen=True, eq=False)
class CovarianceWithBulk(Covariance):
    """F C F^T and, in the directions outside of the orthonormal F, variances of which only sums are known.

    Attributes:
        inside: F C F^T. variances: v_j, [J], each in counts_j directions. density: of these on the rows, [rows], 1 on
            average.
    """

    inside: Covariance
    variances: Tensor
    counts: Tensor
    density: Tensor

    @classmethod
    def around(cls, inside: Covariance, variances: Tensor, counts: Tensor, density: Tensor) -> CovarianceWithBulk:
        return cls(inside.factor, inside.core, inside.gram, inside, variances, counts, density)

    @property
    def _of_rows(self) -> Tensor:
        return self.density * ((self.counts * self.variances).sum() / len(self.density))

    @property
    def trace(self) -> Tensor:
        return self.inside.trace + (self.counts * self.variances).sum()

    @property
    def squared_norm(self) -> Tensor:
        columns = self.inside.n_outputs if isinstance(self.inside, SharedCovariance) else 1
        return self.inside.squared_norm + columns * (self.counts * self.variances.square()).sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        rows = vector.view(len(self.factor), -1)
        left = rows - self.factor @ (self.factor.mT @ rows)
        return self.inside.quadratic(vector) + (self._of_rows[:, None] * left.square()).sum()

    def diagonal(self) -> Tensor:
        return self.inside.diagonal() + self._of_rows

    def blocks(self, n_outputs: int) -> Tensor:
        return self.inside.blocks(n_outputs) + torch.diag_embed(self._of_rows.view(-1, n_outputs))

    def to_dense(self) -> Tensor:
        return self.inside.to_dense() + self._of_rows.diag()


@dataclass(frozen=True, eq=False)
class OutputLaw:
    """The law of all outputs at one step.

    Attributes:
        mean: [n, c]. covariance: of the n*c outputs, or None when they are certain or sampled. samples: [P, n, c].
        test_mean, test_covariance, test_samples: the same for the test set.
    """

    step: int
    time: float
    mean: Tensor
    covariance: Covariance | None = None
    samples: Tensor | None = None
    test_mean: Tensor | None = None
    test_covariance: Covariance | None = None
    test_samples: Tensor | None = None
