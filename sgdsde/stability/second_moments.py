"""The map of second moments of one SGD step, reduced to the n diagonal blocks through which its noise acts.

The second moment M of z = (e, u), residual and momentum buffer, evolves by a positive linear map,

    T(M) = G M G^T + nu nu^T (x) (phi/B) K N(M_ee) K,     N(M) = (s^2/n) D(M) - (s^2/n^2) M,

with G and nu of ``dynamics.update`` (plain SGD: G = I - lr H, nu = -lr). In the eigenbasis of K everything but D is
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

from sgdsde.dynamics.update import Update, update
from sgdsde.sgd import SGD
from sgdsde.stability.local import LocalModes

_PAIRS_AT_ONCE = 2**18


class SecondMomentMap:
    """T for one linearized problem, any learning rate and batch size."""

    def __init__(self, modes: LocalModes) -> None:
        self.drift = modes.drift
        self.blocks_shape = (modes.n_train, modes.n_outputs, modes.n_outputs)
        self._scaled = modes.vectors * (modes.values.sqrt() * (modes.loss_curvature / modes.n_train**0.5) ** 0.5)
        self._rows = self._scaled.view(modes.n_train, modes.n_outputs, -1)

    def to_blocks(self, matrix: Tensor) -> Tensor:
        """[r, r] to [n, c, c]."""
        rows = self._scaled @ matrix
        if self.blocks_shape[1] == 1:
            return (rows * self._scaled).sum(1).view(self.blocks_shape)
        return rows.view_as(self._rows) @ self._rows.mT

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """The adjoint, [n, c, c] to [r, r]."""
        return self._scaled.mT @ (blocks @ self._rows).view_as(self._scaled)

    def amplification(self, sgd: SGD, lr: float, noise: float, x: float = 1.0) -> float:
        """Largest eigenvalue of Psi_x at one learning rate; 1 marks an eigenvalue x of T. ``noise`` is phi/B."""
        response = squared_response(update(sgd, self.drift, lr=lr, first=False), x)
        gains = noise * response / (1 + noise * self.drift[:, None] * self.drift * response)
        return largest_eigenvalue(
            lambda blocks: self.to_blocks(gains * self.from_blocks(blocks)), self.blocks_shape, self.drift
        )

    def mean_radius(self, sgd: SGD, lr: float) -> float:
        """Spectral radius of G: by how much the slowest mode of the mean changes in one step."""
        step = update(sgd, self.drift, lr=lr, first=False)
        trace, determinant = step.ee + step.uu, step.ee * step.uu - step.eu * step.ue
        root = (trace.square() / 4 - determinant).to(torch.complex128).sqrt()
        return float(torch.maximum((trace / 2 + root).abs(), (trace / 2 - root).abs()).max())


def squared_response(step: Update, x: float = 1.0) -> Tensor:
    """g_ij = sum_k x^-(k+1) (G_i^k nu)_e (G_j^k nu)_e: the stationary second moment of modes i and j driven by noise.

    [r, r]. Cost: a linear system of four unknowns a pair; one division a pair without momentum.
    """
    if step.u_gain == 0:
        return step.e_gain**2 / (x - step.ee[:, None] * step.ee)
    r = len(step.ee)
    eu, uu = torch.full_like(step.ee, step.eu), torch.full_like(step.ee, step.uu)
    transition = torch.stack([torch.stack([step.ee, eu], -1), torch.stack([step.ue, uu], -1)], -2)
    source = torch.tensor([step.e_gain, step.u_gain], dtype=step.ee.dtype, device=step.ee.device)
    source = torch.kron(source, source)
    identity = x * torch.eye(4, dtype=step.ee.dtype, device=step.ee.device)
    result = torch.empty(r, r, dtype=step.ee.dtype, device=step.ee.device)
    rows = max(1, _PAIRS_AT_ONCE // r)
    for i in range(0, r, rows):
        pairs = torch.einsum("iab,jcd->ijacbd", transition[i : i + rows], transition).reshape(-1, r, 4, 4)
        result[i : i + rows] = torch.linalg.solve(identity - pairs, source.expand(*pairs.shape[:2], 4))[..., 0]
    return result


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], like: Tensor) -> float:
    """Of a self-adjoint map of arrays of this shape, by Lanczos from the identity (inside the positive cone)."""
    size = math.prod(shape)

    def matvec(vector: np.ndarray) -> np.ndarray:
        matrix = torch.from_numpy(np.ascontiguousarray(vector).reshape(shape)).to(like)
        return apply(matrix).double().cpu().numpy().ravel()

    if size <= 8:
        columns = [matvec(column) for column in np.eye(size)]
        return float(np.linalg.eigvalsh(np.stack(columns)).max())
    start = np.broadcast_to(np.eye(shape[-1]), shape).ravel()
    operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
    tolerance = 1e-10 if like.dtype == torch.float64 else 1e-6
    return float(eigsh(operator, k=1, which="LA", v0=start, ncv=min(12, size), tol=tolerance)[0][0])
