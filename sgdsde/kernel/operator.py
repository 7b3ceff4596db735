"""Kernels as linear operators: products with vectors and a diagonal.

A kernel that does not fit into memory is used through the same few words as one that does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint, positive_number, real_floating, whole_number
from sgdsde._functional import FunctionalModel

COLUMNS = 256
"""Columns of the identity that are multiplied at once where a kernel is written out."""


class KernelOperator(ABC):
    """A matrix [rows, columns] that is known by its products; rows and columns are sample-major.

    Attributes:
        shape: (rows, columns). dtype, device: of the entries, and of products with vectors of this dtype.
        is_symmetric: whether it is the kernel of one set of examples, so that it has a diagonal and eigenpairs.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    is_symmetric: bool = True

    @abstractmethod
    def product(self, vectors: Tensor) -> Tensor:
        """K V for V [columns, k], [rows, k]; the vectors are checked by ``@``."""

    @abstractmethod
    def diag(self) -> Tensor:
        """K_xx for every row, [rows]; symmetric kernels only."""

    @abstractmethod
    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        """D(K): the kernel of every example with itself, [rows / c, c, c]; symmetric kernels only."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """K v for v [columns] or [columns, k]."""
        if not isinstance(vectors, Tensor):
            raise TypeError(complaint("the right factor", "a torch.Tensor", type(vectors).__name__))
        if vectors.ndim not in (1, 2) or len(vectors) != self.shape[1]:
            raise ValueError(
                complaint("the right factor", f"[{self.shape[1]}] or [{self.shape[1]}, k]", list(vectors.shape))
            )
        columns = vectors[:, None] if vectors.ndim == 1 else vectors
        product = self.product(columns)
        return product[:, 0] if vectors.ndim == 1 else product

    def __len__(self) -> int:
        return self.shape[0]

    def trace(self) -> float:
        """tr K."""
        return float(self.diag().double().sum())

    def to_dense(self, *, memory: int | None = None) -> Tensor:
        """The matrix itself.

        Args:
            memory: bytes allowed; default a quarter of what is free.
        Raises:
            MemoryError: it takes more; names the bytes.
        Cost: a product with every unit vector.
        """
        self._check_dense(memory)
        dense = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for start in range(0, self.shape[1], COLUMNS):
            stop = min(start + COLUMNS, self.shape[1])
            units = torch.zeros(self.shape[1], stop - start, dtype=self.dtype, device=self.device)
            units[torch.arange(start, stop), torch.arange(stop - start)] = 1
            dense[:, start:stop] = self.product(units)
        return dense

    def check_made_of(self, functional: FunctionalModel, x: Tensor) -> None:  # noqa: B027 - most know nothing of it
        """Raise ``ValueError`` where it is known to be the kernel of another model or other inputs."""

    def _check_dense(self, memory: int | None) -> None:
        needed = self.shape[0] * self.shape[1] * self.dtype.itemsize
        allowed = _memory.budget(memory, self.device)
        if needed > allowed:
            what = f"a dense kernel of {self.shape[0]:,} x {self.shape[1]:,} entries"
            remedy = f"{what} is asked for; use products with the operator, or linearize(problem, rank=...)"
            raise MemoryError(complaint("memory", f"at least {needed:,} bytes", f"{allowed:,}", remedy))

    def _check_symmetric(self, what: str) -> None:
        if not self.is_symmetric:
            received = f"a kernel between two sets, {self.shape[0]} x {self.shape[1]}"
            raise ValueError(complaint(what, "asked of the kernel of one set of examples", received))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shape[0]} x {self.shape[1]}, {self.dtype}, {self.device})"


class DenseKernel(KernelOperator):
    """A kernel in memory, [rows, columns]; a square one is taken for symmetric."""

    def __init__(self, tensor: Tensor) -> None:
        real_floating("kernel", tensor)
        if tensor.ndim != 2:
            raise ValueError(complaint("kernel", "a matrix", f"shape {list(tensor.shape)}"))
        self.tensor = tensor
        self.shape = (tensor.shape[0], tensor.shape[1])
        self.dtype, self.device = tensor.dtype, tensor.device
        self.is_symmetric = tensor.shape[0] == tensor.shape[1]

    def product(self, vectors: Tensor) -> Tensor:
        dtype = torch.promote_types(self.dtype, vectors.dtype)
        return self.tensor.to(dtype) @ vectors.to(dtype)

    def diag(self) -> Tensor:
        self._check_symmetric("the diagonal")
        return self.tensor.diagonal().clone()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        self._check_symmetric("the diagonal")
        n = self.shape[0] // n_outputs
        blocks = self.tensor.reshape(n, n_outputs, n, n_outputs).diagonal(dim1=0, dim2=2)
        return blocks.permute(2, 0, 1).clone()

    def to_dense(self, *, memory: int | None = None) -> Tensor:
        """The tensor itself, not a copy."""
        return self.tensor


class LowRankKernel(KernelOperator):
    """U diag(l) U^T, U [d, r] orthonormal and l [r] >= 0: a truncated kernel.

    Cost: 4 d r operations a product with one vector.
    """

    def __init__(self, values: Tensor, vectors: Tensor) -> None:
        real_floating("vectors", vectors)
        real_floating("values", values)
        if vectors.ndim != 2 or list(values.shape) != [vectors.shape[1]]:
            received = f"{list(values.shape)} and {list(vectors.shape)}"
            raise ValueError(complaint("values and vectors", "[r] and [d, r]", received))
        if (values < 0).any():
            raise ValueError(complaint("values", "zero or positive", f"{float(values.min()):.3e}"))
        gram = vectors.mT @ vectors
        defect = float((gram - torch.eye(len(values)).to(gram)).abs().max())
        if defect > 1e3 * len(vectors) ** 0.5 * torch.finfo(vectors.dtype).eps:
            remedy = "make them with leading_eigenpairs"
            raise ValueError(complaint("vectors", "orthonormal columns", f"off by {defect:.1e}", remedy))
        self.values, self.vectors = values, vectors
        self.shape = (len(vectors), len(vectors))
        self.dtype, self.device = vectors.dtype, vectors.device

    def product(self, vectors: Tensor) -> Tensor:
        return self.vectors @ (self.values[:, None] * (self.vectors.mT @ vectors))

    def diag(self) -> Tensor:
        return self.vectors.square() @ self.values

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        rows = self.vectors.reshape(-1, n_outputs, len(self.values))
        return (rows * self.values) @ rows.mT


class KroneckerKernel(KernelOperator):
    """K_0 (x) I_c with K_0 = scale * base: every output has the same kernel [n, n], and no two outputs are coupled.

    That is the kernel of an infinitely wide network, or of one of which only the read-out is trained; of others an
    approximation, the kernel summed over outputs (``outputs="trace"``) with scale = 1/c being the closest one in the
    Frobenius norm.
    """

    def __init__(self, base: KernelOperator, n_outputs: int, *, scale: float = 1.0) -> None:
        self.base, self.n_outputs = base, whole_number("n_outputs", n_outputs, minimum=1)
        self.scale = positive_number("scale", scale)
        self.shape = (base.shape[0] * self.n_outputs, base.shape[1] * self.n_outputs)
        self.dtype, self.device, self.is_symmetric = base.dtype, base.device, base.is_symmetric

    def product(self, vectors: Tensor) -> Tensor:
        k = vectors.shape[1]
        moved = self.base.product(vectors.reshape(self.base.shape[1], self.n_outputs * k))
        return self.scale * moved.reshape(self.shape[0], k)

    def check_made_of(self, functional: FunctionalModel, x: Tensor) -> None:
        self.base.check_made_of(functional, x)

    def diag(self) -> Tensor:
        return self.scale * self.base.diag().repeat_interleave(self.n_outputs)

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        own = self.diag().view(-1, self.n_outputs)
        if n_outputs != self.n_outputs:
            raise ValueError(complaint("n_outputs", f"that of the kernel, {self.n_outputs}", n_outputs))
        return torch.diag_embed(own)


class StackedKernel(KernelOperator):
    """Kernels of different rows and the same columns, one under the other."""

    is_symmetric = False

    def __init__(self, parts: Sequence[Tensor | KernelOperator]) -> None:
        self.parts = [as_operator(part) for part in parts]
        self.shape = (sum(part.shape[0] for part in self.parts), self.parts[0].shape[1])
        self.dtype, self.device = self.parts[0].dtype, self.parts[0].device

    def product(self, vectors: Tensor) -> Tensor:
        return torch.cat([part.product(vectors).to(vectors.dtype) for part in self.parts])

    def diag(self) -> Tensor:
        raise ValueError(complaint("the diagonal", "asked of the kernel of one set of examples", "stacked kernels"))

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        return self.diag()


def rows_times(rows: Tensor, kernel: Tensor | KernelOperator) -> Tensor:
    """V K^T for V [P, columns], one vector a row: [P, rows]."""
    return rows @ kernel.mT if isinstance(kernel, Tensor) else (kernel @ rows.mT).mT.contiguous()


def as_operator(kernel: Tensor | KernelOperator) -> KernelOperator:
    """The operator itself, or that of a matrix."""
    return kernel if isinstance(kernel, KernelOperator) else DenseKernel(kernel)
