"""The map of second moments of one SGD step, reduced to the n diagonal blocks through which its noise acts.

The second moment M of z = (e, u), residual and momentum buffer, evolves by a positive linear map,

    T(M) = G M G^T + nu nu^T (x) (phi/B) K N(M_ee) K,     N(M) = (s^2/n) D(M) - (s^2/n^2) M,

with G and nu of ``step`` (plain SGD: G = I - lr H, nu = -lr). In the eigenbasis of K everything but D is
elementwise, so x is an eigenvalue of T beyond those of G (x) G exactly if 1 is one of

    Psi_x(b) = (phi/B) to_blocks( gain_ij(x) from_blocks(b) ),
    gain_ij = g_ij / (1 + (phi/B) h_i h_j g_ij),      g_ij = [ (x - G_i (x) G_j)^{-1} nu nu^T ]_ee,

with to_blocks(Y) = blocks of W Y W^T, from_blocks its adjoint and W = U diag(s l)^{1/2} / n^{1/4}. Psi is self-adjoint
on n blocks of c x c numbers, with a well separated largest eigenvalue however many slow modes crowd below 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from sgdsde.noise.example_blocks import ExampleBlocks
from sgdsde.sgd import SGD
from sgdsde.step import ModalStep, Step

_PAIRS_AT_ONCE = 2**18


class SecondMomentMap:
    """T for one linearized problem, any learning rate and batch size.

    Args:
        values, vectors: eigenbasis of the kernel on its range, [r] and [n*c, r]. n_outputs: c. curvature: s.
    Attributes:
        drift: eigenvalues h = s l / n of the drift matrix H, [r]. examples: W by example.
    """

    def __init__(self, values: Tensor, vectors: Tensor, *, n_outputs: int, curvature: float) -> None:
        n = len(vectors) // n_outputs
        self.drift = curvature * values / n
        self.blocks_shape = (n, n_outputs, n_outputs)
        self.examples = ExampleBlocks(vectors * (values.sqrt() * (curvature / n**0.5) ** 0.5), n_outputs)

    def amplification(self, sgd: SGD, lr: float, noise: float, x: float = 1.0) -> float:
        """Largest eigenvalue of Psi_x at one learning rate; 1 marks an eigenvalue x of T. ``noise`` is phi/B."""
        response = squared_response(Step.of(sgd, lr, first=False).modal(self.drift), x)
        gains = noise * response / (1 + noise * self.drift[:, None] * self.drift * response)
        return largest_eigenvalue(
            lambda blocks: self.examples.of(gains * self.examples.spread(blocks)), self.blocks_shape, self.drift
        )

    def mean_radius(self, sgd: SGD, lr: float) -> float:
        """Spectral radius of G: by how much the slowest mode of the mean changes in one step."""
        step = Step.of(sgd, lr, first=False).modal(self.drift)
        trace, determinant = step.ee + step.uu, step.ee * step.uu - step.eu * step.ue
        root = (trace.square() / 4 - determinant).to(torch.complex128).sqrt()
        return float(torch.maximum((trace / 2 + root).abs(), (trace / 2 - root).abs()).max())


def squared_response(step: ModalStep, x: float = 1.0) -> Tensor:
    """g_ij = sum_k x^-(k+1) (G_i^k nu)_e (G_j^k nu)_e: the stationary second moment of modes i and j driven by noise.

    [r, r]. Cost: a linear system of four unknowns a pair; one division a pair without momentum.
    """
    if step.u_gain == 0:
        return step.e_gain**2 / (x - step.ee[:, None] * step.ee)
    r = len(step.ee)
    transition, source = step.matrices, torch.kron(step.gains, step.gains)
    identity = x * torch.eye(4, dtype=step.ee.dtype, device=step.ee.device)
    result = torch.empty(r, r, dtype=step.ee.dtype, device=step.ee.device)
    rows = max(1, _PAIRS_AT_ONCE // r)
    for i in range(0, r, rows):
        pairs = torch.einsum("iab,jcd->ijacbd", transition[i : i + rows], transition).reshape(-1, r, 4, 4)
        result[i : i + rows] = torch.linalg.solve(identity - pairs, source.expand(*pairs.shape[:2], 4))[..., 0]
    return result


def largest_eigenvalue(
    apply: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    like: Tensor,
    *,
    start: np.ndarray | None = None,
    precision: float = 1e-9,
) -> float:
    """The largest eigenvalue of a self-adjoint map of arrays of this shape, by Lanczos.

    From the identity, which lies inside the cone that a positive map keeps, or from ``start``; at least to the relative
    ``precision`` that the dtype allows.
    """
    size = math.prod(shape)

    def matvec(vector: np.ndarray) -> np.ndarray:
        matrix = torch.from_numpy(np.ascontiguousarray(vector).reshape(shape)).to(like)
        return apply(matrix).double().cpu().numpy().ravel()

    if size <= 8:
        columns = [matvec(column) for column in np.eye(size)]
        return float(np.linalg.eigvalsh(np.stack(columns)).max())
    if start is None:
        start = np.broadcast_to(np.eye(shape[-1]), shape).ravel()
    if not matvec(start.copy()).any():
        return 0.0  # the start lies in the range of any map but zero
    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    tolerance = max(precision / 10, 1e-10 if like.dtype == torch.float64 else 1e-6)
    return float(eigsh(operator, k=1, which="LA", v0=start, ncv=min(12, size), tol=tolerance)[0][0])
