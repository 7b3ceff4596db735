"""Second moments of residual and momentum buffer over pairs of modes, and elementwise resolvents of their map.

With v = lr u, the buffer in units of a step, z = (e, v) of every mode moves by z' = G z + nu (noise). In coordinates
H^-1/2 E[z z^T] H^-1/2, blocks ee, ev, vv (ve is the transpose of ev), one step is

    T X = G_i X G_j^T + nu nu^T (q n C C^T(X_ee) - q h_i h_j X_ee),

C as in ``pairs``. All but C is elementwise, a system of four unknowns a pair. With A = G_i, B = G_j and A' = tr A - A

    (z - A (x) B)^-1 = (z^2 - z tr A B + det A B^2)^-1 (z - A' (x) B),

where the first factor is a 2 x 2 matrix; the centring -q h_i h_j is an update of rank one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import SQRT2, PairSpace
from sgdsde.sgd import SGD
from sgdsde.step import Step

ROWS_AT_ONCE = 2**15
"""Pairs that are worked on together: a dozen arrays of them fit into a processor's second cache."""

EE, EV, VV = range(3)

Parts = Sequence[Tensor | float]
"""ee, ev, ve, vv of some rows, [rows, r] each or one number for all pairs."""


@dataclass(frozen=True, eq=False)
class MomentumStep:
    """G [r, 2, 2] and nu (two numbers) of (e, v) in every mode, at one learning rate and noise factor q."""

    matrices: Tensor
    gains: tuple[float, float]
    lr: float
    noise: float

    @classmethod
    def of(cls, sgd: SGD, lr: float, noise: float, drift: Tensor) -> MomentumStep:
        modal = Step.of(sgd, lr, first=False).modal(drift)
        matrices = modal.matrices.clone()
        matrices[:, 0, 1] /= lr
        matrices[:, 1, 0] *= lr
        return cls(matrices, (modal.e_gain, lr * modal.u_gain), lr, noise)

    @property
    def transposed(self) -> Tensor:
        """G^T."""
        return self.matrices.mT

    @property
    def kept(self) -> Tensor:
        """Spectral radius of G in every mode, [r]."""
        return torch.linalg.eigvals(self.matrices).abs().amax(1)

    @property
    def responses(self) -> tuple[float, float, float]:
        """nu nu^T: ee, ev, vv."""
        e, v = self.gains
        return e * e, e * v, v * v


class MomentumSpace:
    """Blocks ee, ev, vv [3, r, r] at one setting; packed so that dot products are those of all four blocks."""

    def __init__(self, pairs: PairSpace, step: MomentumStep) -> None:
        self.pairs, self.step = pairs, step
        self.coupling = step.noise * pairs.n_train
        r = pairs.rank
        rows = max(1, ROWS_AT_ONCE // r)
        self._slices = [slice(i, i + rows) for i in range(0, r, rows)]

    def pack(self, triple: Tensor) -> Tensor:
        ev = triple[EV].flatten() * SQRT2
        return torch.cat([self.pairs.pack(triple[EE]), self.pairs.pack(triple[VV]), ev])

    def unpack(self, packed: Tensor) -> Tensor:
        ee, vv, ev = packed.split([self.pairs.size, self.pairs.size, self.pairs.rank**2])
        shape = (self.pairs.rank, self.pairs.rank)
        return torch.stack([self.pairs.unpack(ee), ev.view(shape) / SQRT2, self.pairs.unpack(vv)])

    def ee_of(self, packed: Tensor) -> Tensor:
        """The block ee of packed triples [..., size], packed."""
        return packed[..., : self.pairs.size]

    def noise_response(self, triple: Tensor) -> Tensor:
        """<nu nu^T, X> of the four blocks, [r, r]."""
        ee, ev, vv = self.step.responses
        return ee * triple[EE] + ev * (triple[EV] + triple[EV].mT) + vv * triple[VV]

    def uncoupled(self, triple: Tensor) -> Tensor:
        """T without C: G_i X G_j^T - nu nu^T q h_i h_j X_ee."""
        moved, responses, h = torch.empty_like(triple), self.step.responses, self.pairs.drift
        for rows in self._slices:
            parts = _transformed(self.step.matrices[rows], self.step.matrices, self._rows(triple, rows))
            centred = self.step.noise * h[rows, None] * h * triple[EE, rows]
            for block, part, response in zip(moved, (parts[0], parts[1], parts[3]), responses):
                torch.add(part, centred, alpha=-response, out=block[rows])
        return moved

    def resolvent(self, z: float) -> UncoupledResolvent:
        """(z - T)^-1 without C."""
        h, noise = self.pairs.drift, self.step.noise
        ee, ev, vv = self.step.responses
        right, left = (self.pairs.rows.new_empty(3, self.pairs.rank, self.pairs.rank) for _ in range(2))
        for rows in self._slices:
            response = self._solved(z, rows, self.step.matrices, (ee, ev, ev, vv))
            answer = self._solved(z, rows, self.step.transposed, (1.0, 0.0, 0.0, 0.0))
            centring = 1 + noise * h[rows, None] * h * response[0]
            for k, place in enumerate((0, 1, 3)):
                torch.div(response[place], centring, out=right[k, rows])
                torch.div(answer[place], centring, out=left[k, rows])
        return UncoupledResolvent(self, z, right, left)

    def solve(self, z: float, triple: Tensor) -> Tensor:
        """(z - G (x) G)^-1 X."""
        solved = torch.empty_like(triple)
        for rows in self._slices:
            parts = self._solved(z, rows, self.step.matrices, self._rows(triple, rows))
            solved[EE, rows], solved[EV, rows], solved[VV, rows] = parts[0], parts[1], parts[3]
        return solved

    def solve_diagonal(self, z: float, values: Tensor) -> Tensor:
        """(z - G^T (x) G^T)^-1 of diag(values) in ee, whose blocks are diagonal: [4, r]."""
        identity = z * torch.eye(4).to(values)
        pairs = torch.einsum("iab,icd->iacbd", self.step.transposed, self.step.transposed).reshape(-1, 4, 4)
        source = torch.zeros(len(values), 4).to(values)
        source[:, 0] = values
        return torch.linalg.solve(identity - pairs, source).mT

    def _rows(self, triple: Tensor, rows: slice) -> Parts:
        return triple[EE, rows], triple[EV, rows], triple[EV].mT[rows], triple[VV, rows]

    def _solved(self, z: float, rows: slice, matrices: Tensor, source: Parts) -> tuple[Tensor, ...]:
        own = matrices[rows]
        trace, determinant = _trace(own)[:, None], _determinant(own)[:, None]
        adjugate = _trace(own)[:, None, None] * torch.eye(2).to(own) - own
        pushed = _transformed(adjugate, matrices, source)
        right = [z * part - other for part, other in zip(source, pushed)]
        # z^2 - z tr A B + det A B^2 = one + other B, with B^2 = tr B B - det B
        one, other = z * z - determinant * _determinant(matrices), determinant * _trace(matrices) - z * trace
        a, b, c, d = (matrices[:, i, j] * other for i in (0, 1) for j in (0, 1))
        a, d = a + one, d + one
        scale = 1 / (a * d - b * c)
        a, b, c, d = a * scale, b * scale, c * scale, d * scale
        xx, xy, yx, yy = right
        return d * xx - b * xy, a * xy - c * xx, d * yx - b * yy, a * yy - c * yx


@dataclass(frozen=True, eq=False)
class UncoupledResolvent:
    """(z - T)^-1 without C, from the right and from the left.

    Attributes:
        response: of all blocks to a unit of noise, [3, r, r]. answer: of the transposed to a unit in ee, [3, r, r].
            ``gains`` of both: [r, r], what a unit of noise leaves in ee.
    """

    space: MomentumSpace
    z: float
    response: Tensor
    answer: Tensor

    @property
    def gains(self) -> Tensor:
        return self.response[EE]

    def apply(self, triple: Tensor) -> Tensor:
        """Of a triple, from the right."""
        h, noise = self.space.pairs.drift, self.space.step.noise
        solved = self.space.solve(self.z, triple)
        return solved - self.response * (noise * h[:, None] * h * solved[EE])

    def apply_transposed(self, values: Tensor) -> Tensor:
        """Of diag(values) in ee, from the left: the diagonals of its blocks, [3, r]."""
        solved = self.space.solve_diagonal(self.z, values)[[0, 1, 3]]
        ee, ev, vv = self.space.step.responses
        seen = ee * solved[EE] + 2 * ev * solved[EV] + vv * solved[VV]
        diagonals = torch.stack([block.diagonal() for block in self.answer])
        return solved - diagonals * (self.space.step.noise * self.space.pairs.drift.square() * seen)


def _transformed(left: Tensor, right: Tensor, parts: Parts) -> tuple[Tensor, ...]:
    """A X B^T for A [rows, 2, 2], B [r, 2, 2]."""
    ee, ev, ve, vv = parts
    moved: list[Tensor] = []
    for x in (0, 1):
        first, second = left[:, x, 0, None], left[:, x, 1, None]
        to_e, to_v = first * ee + second * ve, first * ev + second * vv
        moved += [to_e * right[:, 0, 0] + to_v * right[:, 0, 1], to_e * right[:, 1, 0] + to_v * right[:, 1, 1]]
    return tuple(moved)


def _trace(matrices: Tensor) -> Tensor:
    return matrices[:, 0, 0] + matrices[:, 1, 1]


def _determinant(matrices: Tensor) -> Tensor:
    return matrices[:, 0, 0] * matrices[:, 1, 1] - matrices[:, 0, 1] * matrices[:, 1, 0]
