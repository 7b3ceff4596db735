"""The kernel as J (J^T V): never formed, for many vectors at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sgdsde import _memory
from sgdsde._checks import complaint
from sgdsde._functional import FunctionalModel, as_functional
from sgdsde._probe import probe
from sgdsde._types import Params
from sgdsde.jacobian import ExampleBytes, activation_bytes, jacobian
from sgdsde.kernel.inputs import check_inputs
from sgdsde.kernel.jacobian_products import Directional, directional
from sgdsde.kernel.operator import KernelOperator

ROWS = 256
"""Examples of one pass."""

VECTORS = 64
"""Vectors of one pass, at most: more gain nothing, and products do not depend on the memory that happens to be free."""


class ImplicitKernel(KernelOperator):
    """K V = J(x1) (J(x2)^T V): a backward pass over x2 and a forward-mode pass over x1, vectorized over the vectors.

    Args:
        model: an ``nn.Module`` (not mutated) or a pair ``(f, params)``.
        x1: [n1, ...]. x2: [n2, ...]; None means x1: a symmetric kernel.
        memory: bytes for temporaries; default a quarter of what is free. Products of the same vectors are the same to
            the last bit for the same budget, and under any two budgets that allow 64 vectors at once.
    Raises:
        ValueError, TypeError: a model that is not a deterministic function of one example. MemoryError: not even one
            vector fits.
    Exactness: J in the model's dtype, products and result too; call ``model.double()`` first for more digits. Layers
        without forward-mode derivatives are derived twice backward, others through rows of the Jacobian: slower, and to
        the same result. Which way is taken is decided by a test on two examples, J^T u against plain backward and
        u . J w against J^T u . w.
    Cost: about 4 p operations an example and vector for dense layers; p numbers a vector and the activations of 256
        examples for 64 vectors.
    """

    def __init__(self, model: Any, x1: Tensor, x2: Tensor | None = None, *, memory: int | None = None) -> None:
        functional = model if isinstance(model, FunctionalModel) else as_functional(model)
        check_inputs(functional, x1, x2)
        if not functional.n_outputs:
            functional, _ = probe(functional, x1, "x1")
        self._functional, self._x1, self._x2 = functional, x1, x1 if x2 is None else x2
        self.n_outputs = functional.n_outputs
        self.shape = (len(x1) * self.n_outputs, len(self._x2) * self.n_outputs)
        self.dtype, self.device, self.is_symmetric = functional.dtype, functional.device, x2 is None
        self._memory = memory
        self._derivatives: Directional = directional(functional, x1, self.n_outputs)
        self._vectors, self._rows = self._chunks()

    def check_made_of(self, functional: FunctionalModel, x: Tensor) -> None:
        mine = self._functional.params
        same = mine.keys() == functional.params.keys() and all(torch.equal(mine[k], functional.params[k]) for k in mine)
        if not (same and self._x1.shape == x.shape and torch.equal(self._x1, x)):
            received = "other weights" if not same else "other inputs"
            raise ValueError(complaint("kernel", "of the problem's model and training set", received))

    def product(self, vectors: Tensor) -> Tensor:
        vectors = vectors.to(self.dtype)
        pieces = [self._product(vectors[:, i : i + self._vectors]) for i in range(0, vectors.shape[1], self._vectors)]
        return torch.cat(pieces, dim=1)

    def _product(self, vectors: Tensor) -> Tensor:
        cotangents = vectors.view(len(self._x2), self.n_outputs, -1)
        total: Params = {}
        for start in range(0, len(self._x2), self._rows):
            rows = slice(start, start + self._rows)
            part = self._derivatives.pull(self._x2[rows], cotangents[rows].movedim(-1, 0))
            total = {name: total[name].add_(value) if total else value for name, value in part.items()}
        moved = [
            self._derivatives.push(self._x1[start : start + self._rows], total)
            for start in range(0, len(self._x1), self._rows)
        ]
        return torch.cat(moved, dim=1).movedim(0, -1).reshape(self.shape[0], -1)

    def along(self, direction: Params) -> Tensor:
        """J(x1) w, [n1, c], for w as tensors by parameter name."""
        one = {name: direction[name][None] for name in self._functional.params}
        starts = range(0, len(self._x1), self._rows)
        return torch.cat([self._derivatives.push(self._x1[i : i + self._rows], one)[0] for i in starts])

    def diag(self) -> Tensor:
        return self.diagonal_blocks(self.n_outputs).diagonal(dim1=1, dim2=2).flatten()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        """Products of the rows of each example's Jacobian, [n, c, c]. Cost: the Jacobian, block by block."""
        self._check_symmetric("the diagonal")
        if n_outputs != self.n_outputs:
            raise ValueError(complaint("n_outputs", f"that of the model, {self.n_outputs}", n_outputs))
        functional = self._functional
        example = ExampleBytes.of(functional, functional.params, self._x1[:1], self.n_outputs)
        allowed = _memory.budget(self._memory, self.device)
        most = min(len(self._x1), ROWS)
        rows = _memory.rows_within(allowed, 2 * example.held + example.making, most, "the Jacobian of an example")
        pieces = []
        for start in range(0, len(self._x1), rows):
            total = torch.zeros((), dtype=torch.float64, device=self.device)
            for block in jacobian(functional, self._x1[start : start + rows]).values():
                own = block.view(-1, n_outputs, block.shape[1])
                total = total + (own @ own.mT).double()
            pieces.append(total)
        return torch.cat(pieces).to(self.dtype)

    def _chunks(self) -> tuple[int, int]:
        """Vectors and examples of one pass."""
        allowed = _memory.budget(self._memory, self.device)
        largest, total = activation_bytes(self._functional, self._x1[:1])
        weights = 3 * self._functional.n_params * self.dtype.itemsize
        rows = min(ROWS, max(len(self._x1), len(self._x2)))
        while True:
            per_vector = weights + rows * (total + 4 * largest)
            if 2 * per_vector <= allowed or rows == 1:
                what = f"one vector beside a Jacobian product over {rows} examples"
                return _memory.rows_within(allowed, per_vector, VECTORS, what, fixed=per_vector), rows
            rows = max(1, rows // 2)
