"""The diagonal blocks through which the noise of minibatches acts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExampleBlocks:
    """Rows W [n*c, r] of n examples with c outputs each: S -> the blocks W_i S W_i^T, and its adjoint.

    Minibatch noise sees the examples one at a time: of a second moment W S W^T of all outputs only the diagonal blocks
    enter the covariance of one example's gradient.
    """

    rows: Tensor
    n_outputs: int

    @property
    def by_example(self) -> Tensor:
        """W as [n, c, r]."""
        return self.rows.view(-1, self.n_outputs, self.rows.shape[1])

    def of(self, moment: Tensor) -> Tensor:
        """The blocks W_i S W_i^T, [n, c, c], of S [r, r]. Cost: 2 n c r^2 operations."""
        return self.of_product(self.rows @ moment)

    def of_product(self, moved: Tensor) -> Tensor:
        """The same from W S [n*c, r]."""
        if self.n_outputs == 1:
            return (moved * self.rows).sum(1).view(-1, 1, 1)
        return moved.view_as(self.by_example) @ self.by_example.mT

    def spread(self, blocks: Tensor) -> Tensor:
        """W^T blockdiag(B) W, [r, r], the adjoint of ``of``. Cost: 2 n c r^2 operations."""
        return self.rows.mT @ times_blocks(blocks, self.rows)


def times_blocks(blocks: Tensor, matrix: Tensor) -> Tensor:
    """blockdiag(B) X [n*c, m] for B [n, c, c] and X [n*c, m]."""
    n, c, _ = blocks.shape
    if c == 1:
        return blocks.view(-1, 1) * matrix
    return (blocks @ matrix.view(n, c, -1)).view(n * c, -1)
