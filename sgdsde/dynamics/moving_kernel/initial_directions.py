"""Weight directions at initialization, from products with the kernel: the leading ones, and what is beyond them.

A vector u of training outputs gives the weight direction J^T u. For Ritz vectors u_k of the kernel, u_j^T K u_k = l_k
delta_jk, the directions w_k = J^T u_k / sqrt(l_k) are orthonormal whether the u_k are eigenvectors or not, and outputs
move along them by J w_k = K u_k / sqrt(l_k). What they leave out of the kernel, K' = K - sum_k J w_k (J w_k)^T, is
therefore a kernel too, that of J without these directions.

Five blocks' worth of a Krylov space hold the leading directions to a thousandth and the next hundred or two roughly;
the rest is held by a sketch. A full decomposition, 9 d^3 operations, costs hundreds of runs where d = n c is thousands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._streams import torch_stream
from sgdsde.kernel import KernelOperator
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.kernel.krylov import times
from sgdsde.linearization import Linearization

ALL_UP_TO = 1024
"""Rows up to which the whole kernel is decomposed."""

BLOCKS = 10
"""Products of a Krylov block, half as wide as the directions that are followed."""

SKETCH = 32
"""Random directions that stand for what is left out."""


@dataclass(frozen=True, eq=False)
class Rest:
    """A sketch of K': random directions of the weights, distributed as the noise of single examples moves them.

    Attributes:
        dual: cotangents z, [d, s]; J^T z is the direction. features: J J^T z, [d, s], scaled to the trace of K'.
        size: (tr K')^2 / tr K'^2, how many equal directions would take up as much noise.
    """

    dual: Tensor
    features: Tensor
    size: float


@dataclass(frozen=True, eq=False)
class InitialDirections:
    """Orthonormal directions of the weights, the leading ones first.

    Attributes:
        values: |J w_k|^2 or nearly, l, [r]. dual: u_k / sqrt(l_k), [d, r]. features: J w_k, [d, r].
        rest: what is left out, or None where nothing is.
    """

    values: Tensor
    dual: Tensor
    features: Tensor
    rest: Rest | None = None

    @classmethod
    def of(cls, linearization: Linearization, rank: int) -> InitialDirections:
        """At least ``rank`` of them, or as many as there are.

        A truncated linearization is as good as a whole one: products with its kernel are all that is used.

        Exactness: exact up to 1024 rows; beyond, the ``rank`` leading ones span the leading eigenspace up to about
            1e-3, and everything is exact about the directions found. Cost: 5 rank + 32 products with the kernel.
        Raises:
            ValueError: a kernel of zero.
        """
        kernel, dtype = linearization.operator, linearization.outputs.dtype
        d, width = len(kernel), max(8, -(-rank // 2))
        if d > ALL_UP_TO and 2 * BLOCKS * width <= d:
            found = _ritz(kernel, width, linearization.problem.n_outputs, dtype)
        else:
            basis = linearization.eigenbasis if linearization.basis is None else Eigenbasis.of(linearization.kernel)
            values, vectors = basis.values.flip(0), basis.vectors.flip(1)
            found = cls(values, vectors * values.rsqrt(), vectors * values.sqrt())
        if not found.values.any():
            received = "zero: the outputs do not depend on the weights at initialization (dead units?)"
            remedy = "initialize the network anew; under the frozen kernel the loss is constant"
            raise ValueError(complaint("the kernel that moves", "different from zero", received, remedy))
        return found


def _ritz(kernel: KernelOperator, width: int, n_outputs: int, dtype: torch.dtype) -> InitialDirections:
    """Ritz vectors of the Krylov space of a random block, and a sketch of the rest."""
    stream = torch_stream(0, "directions", 0, torch.device("cpu"))
    start = torch.randn(len(kernel), width, generator=stream, dtype=torch.float64)
    block = torch.linalg.qr(start.to(kernel.device, dtype)).Q
    space = image = block[:, :0]
    for _ in range(BLOCKS):
        moved = times(kernel, block)
        space, image = torch.cat([space, block], 1), torch.cat([image, moved], 1)
        for _ in range(2):
            moved = torch.linalg.qr(moved - space @ (space.mT @ moved)).Q
        block = moved
    projected = space.mT @ image
    values, inner = torch.linalg.eigh((projected + projected.mT) / 2)
    eps = max(torch.finfo(kernel.dtype).eps, torch.finfo(dtype).eps)
    kept = values > len(kernel) * eps * values[-1].abs()
    values = values[kept].flip(0)
    inner = inner[:, kept].flip(1) * values.rsqrt()
    dual, features = space @ inner, image @ inner
    if not len(values):
        return InitialDirections(projected.new_zeros(1), space[:, :1], image[:, :1])
    total = float(kernel.diagonal_blocks(n_outputs).diagonal(dim1=1, dim2=2).sum())
    left = total - float(features.square().sum())
    return InitialDirections(values, dual, features, _rest(kernel, dual, features, left, total * len(kernel) * eps))


def _rest(kernel: KernelOperator, dual: Tensor, features: Tensor, trace: float, rounding: float) -> Rest | None:
    """Of K' with this trace, for z normal: J'^T z is moved as by one example after the other, K' z its effect."""
    stream = torch_stream(0, "sketch", 0, torch.device("cpu"))
    normal = torch.randn(len(dual), SKETCH, generator=stream, dtype=torch.float64).to(dual)
    outside = normal - dual @ (features.mT @ normal)
    moved = times(kernel, outside)
    squared = float(moved.square().sum()) / SKETCH  # of K'^2 the trace
    if trace <= rounding or squared <= 0:
        return None
    scale = (trace / (squared * SKETCH)) ** 0.5
    return Rest(scale * outside, scale * moved, trace**2 / squared)
