"""Leading eigenpairs of a kernel that is known by its products, many vectors at a time.

Block Lanczos with full reorthogonalization and thick restarts. With Q [d, m] orthonormal and a next block N [d, b],

    K Q = Q T + N C [0 ... 0 I],      T = Q^T K Q,

so an eigenpair (l, y) of T gives the Ritz pair (l, Q y) with residual |K Q y - l Q y| = |C y_last|, at no product. When
Q is full it is replaced by the leading Ritz vectors, which keeps that form. SciPy's eigsh and torch.lobpcg were the
alternatives: the first takes one vector at a time, where an implicit kernel or one on a disk costs nearly the same for
sixty-four; the second iterates on all k vectors without a memory of earlier ones and needs several times the products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint, positive_number, whole_number
from sgdsde._progress import Ticker, ticker
from sgdsde._types import Progress
from sgdsde.kernel.operator import KernelOperator, as_operator

DENSE_UP_TO = 1024
"""Rows up to which the whole matrix is decomposed."""

BLOCK = 64
"""Vectors of one product: what ``ImplicitKernel`` takes at once."""


CONFIRMING = 5
"""Blocks from a new start that must find nothing larger before eigenpairs are the leading ones."""


class NotConvergedError(ArithmeticError):
    """Eigenpairs that are not as exact as was asked for."""


@dataclass(frozen=True, eq=False)
class LeadingEigenpairs:
    """The k largest eigenvalues with their eigenvectors.

    Attributes:
        values: l, [k], descending. vectors: U, [d, k], orthonormal.
        residuals: |K u - l u|, [k], from a product with K made at the end; every l is within its residual of an
            eigenvalue of K.
        n_products: vectors that K was multiplied with.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    n_products: int


def leading_eigenpairs(
    operator: KernelOperator | Tensor,
    k: int,
    *,
    tolerance: float | None = None,
    seed: int = 0,
    max_products: int | None = None,
    progress: Progress = None,
) -> LeadingEigenpairs:
    """The k leading eigenpairs of a positive semidefinite kernel.

    Args:
        operator: symmetric, [d, d]. k: at most d.
        tolerance: of the residual |K u - l u|, in units of the largest eigenvalue; default 1e-10, or 1e-5 in float32.
        seed: of the random block that is started from. Same seed, operator and threads: same bits.
        max_products: vectors that K may be multiplied with; default 20 k + 2000.
    Raises:
        NotConvergedError: a residual is larger than the tolerance when the products are used up; names it.
        ValueError: not symmetric, k larger than d, or a clearly negative eigenvalue among those found.
    Exactness: to the tolerance. That no larger eigenvalue was missed is confirmed from a second random start, which
        also finds further copies of a repeated one.
    Cost: two to four k products with K where the spectrum decays, 4 d m^2 operations and d m numbers for a basis of
        m = 2 k + 128 vectors. Up to 1024 rows, or where k is more than a quarter of them, the dense matrix and eigh.
    """
    operator = as_operator(operator)
    operator._check_symmetric("leading_eigenpairs")
    d = len(operator)
    k = whole_number("k", k, minimum=1)
    if k > d:
        raise ValueError(complaint("k", f"at most the {d} rows of the kernel", k))
    eps = torch.finfo(operator.dtype).eps
    if tolerance is None:
        tolerance = 1e-10 if operator.dtype == torch.float64 else 1e-5
    if positive_number("tolerance", tolerance) < 10 * eps:
        raise ValueError(complaint("tolerance", f"at least {10 * eps:.1e} in {operator.dtype}", tolerance))
    limit = 20 * k + 2000 if max_products is None else whole_number("max_products", max_products, minimum=1)
    ticks = ticker(progress, limit, "eigenpairs")
    counted = _Counted(operator, ticks)
    if d <= DENSE_UP_TO or 4 * k > d:
        values, vectors = _dense(counted, k)
    else:
        values, vectors = _Lanczos(counted, k, tolerance / 2, seed, limit).run()
    ticks.close()
    return _checked(counted, values, vectors, tolerance)


class _Counted:
    """Products with the kernel, counted."""

    def __init__(self, operator: KernelOperator, ticks: Ticker) -> None:
        self.operator, self._ticks, self.count = operator, ticks, 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.count += vectors.shape[1]
        self._ticks.update(vectors.shape[1])
        return self.operator @ vectors


def _dense(counted: _Counted, k: int) -> tuple[Tensor, Tensor]:
    matrix = counted.operator.to_dense()
    counted.count += len(matrix)
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return values.flip(0)[:k].contiguous(), vectors.flip(1)[:, :k].contiguous()


def _checked(counted: _Counted, values: Tensor, vectors: Tensor, tolerance: float) -> LeadingEigenpairs:
    residuals = torch.cat(
        [
            (counted @ vectors[:, i : i + BLOCK] - vectors[:, i : i + BLOCK] * values[i : i + BLOCK]).norm(dim=0)
            for i in range(0, len(values), BLOCK)
        ]
    )
    largest = float(values.abs().max())
    worst = float(residuals.max())
    if not worst <= tolerance * largest + torch.finfo(values.dtype).tiny:
        received = f"{worst / largest if largest else worst:.2e} after {counted.count} products"
        remedy = "allow a larger tolerance or more max_products"
        expected = f"at most {tolerance:.1e} of the largest eigenvalue"
        raise NotConvergedError(complaint("the largest residual", expected, received, remedy))
    floor = 10 * tolerance * largest
    if values.min() < -floor:
        received = f"an eigenvalue {float(values.min()):.3e} beside {largest:.3e}"
        raise ValueError(complaint("kernel", "positive semidefinite", received))
    return LeadingEigenpairs(values.clamp_min(0), vectors, residuals, counted.count)


class _Lanczos:
    def __init__(self, kernel: _Counted, k: int, tolerance: float, seed: int, limit: int) -> None:
        self._kernel, self._k, self._tolerance, self._limit = kernel, k, tolerance, limit
        self._generator = torch.Generator().manual_seed(seed)
        d, dtype, device = len(kernel.operator), kernel.operator.dtype, kernel.operator.device
        self._d, self._like = d, torch.empty(0, dtype=dtype, device=device)
        self._block = min(BLOCK, max(8, k // 4))
        self._most = min(d, 2 * k + 2 * BLOCK)
        self._basis = self._like.new_empty(d, self._most + self._block)
        self._projected = self._like.new_zeros(self._most + self._block, self._most + self._block)
        self._filled = 0

    def run(self) -> tuple[Tensor, Tensor]:
        """Ritz pairs, descending: converged and confirmed, or as far as the limit allows.

        A random block of b vectors spans at most b copies of an eigenvalue that occurs more often, and misses the
        others. So converged pairs are kept, and iterated on from a new random block; only if that finds nothing larger
        within ``CONFIRMING`` blocks they are the leading ones.
        """
        following = torch.linalg.qr(self._random(self._block))[0]
        confirmed, blocks = -torch.inf, 0
        while True:
            coupling, following = self._extend(following)
            m, blocks = self._filled, blocks + 1
            values, inner = torch.linalg.eigh(self._projected[:m, :m])
            values, inner = values.flip(0), inner.flip(1)
            found = min(self._k, m)
            residuals = (coupling @ inner[-self._last :, :found]).norm(dim=0)
            allowed = self._tolerance * float(values[0].abs())
            converged = m >= self._k and bool((residuals <= allowed).all())
            lowest = float(values[found - 1])
            done = converged and lowest <= confirmed + allowed and blocks >= CONFIRMING
            if done or m >= self._d or self._kernel.count + self._block > self._limit:
                return values[:found], self._basis[:, :m] @ inner[:, :found]
            if converged and lowest > confirmed + allowed:
                confirmed, blocks = lowest, 0
                self._restart(values, inner, self._k)
                following = self._orthogonal(self._random(min(self._block, self._d - self._k)))
            elif m + following.shape[1] > self._most:
                self._restart(values, inner, self._k + BLOCK // 2)

    def _extend(self, following: Tensor) -> tuple[Tensor, Tensor]:
        """Takes the next block into the basis; what couples it to the block after, and that block."""
        m, b = self._filled, following.shape[1]
        self._basis[:, m : m + b] = following
        self._filled, self._last = m + b, b
        basis = self._basis[:, : m + b]
        moved = self._kernel @ following
        column = basis.mT @ moved
        self._projected[: m + b, m : m + b] = column
        self._projected[m : m + b, : m + b] = column.mT
        corner = self._projected[m : m + b, m : m + b]
        self._projected[m : m + b, m : m + b] = (corner + corner.mT) / 2
        moved = moved - basis @ column
        moved -= basis @ (basis.mT @ moved)
        left = self._d - (m + b)
        if left == 0:
            return moved.new_zeros(0, b), moved[:, :0]
        return self._orthonormal(moved, basis, min(b, left))

    def _orthonormal(self, moved: Tensor, basis: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """The coupling of ``moved``, and an orthonormal block that spans it, filled up by random directions."""
        left, sizes, _ = torch.linalg.svd(moved, full_matrices=False)
        scale = self._projected[: self._filled, : self._filled].abs().max()
        kept = int((sizes > 10 * torch.finfo(moved.dtype).eps * scale).sum())
        kept = min(kept, width)
        block = left[:, :kept]
        if kept < width:
            block = torch.cat([block, self._random(width - kept)], dim=1)
        block = self._orthogonal(block)
        return block.mT @ moved, block

    def _orthogonal(self, block: Tensor) -> Tensor:
        """Orthonormal, and orthogonal to the basis."""
        basis = self._basis[:, : self._filled]
        for _ in range(2):
            block = block - basis @ (basis.mT @ block)
            block = torch.linalg.qr(block)[0]
        return block

    def _restart(self, values: Tensor, inner: Tensor, kept: int) -> None:
        """Keeps the leading Ritz vectors; the coupling to the next block returns with its product."""
        kept = min(kept, self._filled)
        self._basis[:, :kept] = self._basis[:, : self._filled] @ inner[:, :kept]
        self._projected.zero_()
        self._projected.diagonal()[:kept] = values[:kept]
        self._filled = kept

    def _random(self, width: int) -> Tensor:
        return torch.randn(self._d, width, generator=self._generator, dtype=torch.float64).to(self._like)
