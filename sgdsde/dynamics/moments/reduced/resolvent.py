"""Resolvents (1 + t - T)^-1 of the second-moment map at real t > 0, loosely solved.

Everything of 1 + t - T but its coupling is elementwise: with g = 1 / (t + 1 - k0 + k1 (h_i + h_j) - k2 h_i h_j),

    R = g o (Y + k3 n C d),    d = C^T R,    (1 - k3 n C^T g C) d = C^T(g o Y),

a symmetric system for n c^2 numbers, positive definite while 1 + t exceeds the spectral radius of T. Its solution needs
few digits: an inexact R only changes the space that is projected on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace, StepCoefficients

MOST_ITERATIONS = 40
"""Of conjugate gradients: 1 to 4 are usual, and 40 without convergence mark a setting at its stability limit."""

FINEST_SOLVE = 1e-6
"""Relative residual that single precision reaches."""

EXTRAPOLATED = 4
"""Poles from which the start at the next one is extrapolated."""


class PastLimitError(ValueError):
    """1 + t - T is not positive definite: the setting lies past its mean-square limit."""


@dataclass
class CoupledBlocks:
    """Solver of (1 - k C^T g C) d = f, single precision, to a relative tolerance; counts ``applications``.

    Conjugate gradients, preconditioned by the same system with the modes' variances only.
    """

    space: PairSpace
    coupling: float
    tolerance: float
    applications: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._squares = self.space.single.rows.square() if self.space.n_outputs == 1 else None

    def solve(self, gains: Tensor, right: Tensor, guess: Tensor | None = None) -> Tensor:
        """d [n, c, c] for f [n, c, c] and gains g, packed as ``PairSpace.elementwise`` is.

        Raises:
            PastLimitError: the system is not positive definite.
        """
        single = self.space.single
        own = self.coupling * single.diagonal_of(gains)

        def apply(blocks: Tensor) -> Tensor:
            self.applications += 1
            return blocks - self.coupling * single.couple(gains, blocks)

        target = self.tolerance * float(right.norm())
        found = self._precondition(right, own) if guess is None else guess
        residual = right - apply(found)
        direction, before = torch.zeros_like(right), math.inf
        for _ in range(MOST_ITERATIONS):
            if float(residual.norm()) <= target:
                return found
            improved = self._precondition(residual, own)
            now = float((residual * improved).sum())
            direction = improved + now / before * direction
            image = apply(direction)
            curvature = float((direction * image).sum())
            if not curvature > 0 or not now > 0:
                raise PastLimitError("1 + t - T is not positive definite")
            found, residual, before = found + now / curvature * direction, residual - now / curvature * image, now
        raise PastLimitError("conjugate gradients do not converge")

    def _precondition(self, blocks: Tensor, gains: Tensor) -> Tensor:
        """(1 - B diag(gains) B^T)^-1 with B = W^2, by 12 cheap iterations; several outputs: nothing."""
        if self._squares is None:
            return blocks
        squares, right = self._squares, blocks.flatten()
        found, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
        norm = start = float(residual @ residual)
        for _ in range(12):
            if norm <= 1e-8 * start:
                break
            image = direction - squares @ (gains * (squares.mT @ direction))
            curvature = float(direction @ image)
            if not curvature > 0:
                return blocks
            found, residual = found + norm / curvature * direction, residual - norm / curvature * image
            new = float(residual @ residual)
            direction, norm = residual + new / norm * direction, new
        return found.view_as(blocks)


@dataclass
class Resolvent:
    """Solver for one setting; counts ``applications`` (one of C and one of C^T together)."""

    space: PairSpace
    coefficients: StepCoefficients
    tolerance: float

    def __post_init__(self) -> None:
        self._elementwise = self.space.elementwise(self.coefficients)
        self.coupling = self.coefficients.numbers[-1] * self.space.n_train
        self._blocks = CoupledBlocks(self.space, self.coupling, self.tolerance)

    @property
    def applications(self) -> float:
        return self._blocks.applications

    def solve(
        self, source: Tensor, t: float, *, injected: Tensor | None = None, guess: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """R [size] and d [n, c, c] for a packed source, and C of blocks ``injected`` added to it."""
        space, coupling = self.space, self.coupling
        gains = 1 / (self._elementwise + t)
        if injected is not None:
            source = source + space.from_blocks(injected)
            self._blocks.applications += 0.5
        if coupling == 0:
            return gains * source, torch.zeros(space.blocks_shape).to(source)
        quick = gains.float()
        right = space.single.to_blocks(quick * source.float())
        blocks = self._blocks.solve(quick, right, guess)
        solution = gains * (source + coupling * space.from_blocks(blocks.to(source)))
        self._blocks.applications += 1
        return solution, blocks


def family(
    resolvent: Resolvent,
    ts: Sequence[float],
    source: Callable[[float], tuple[Tensor, Tensor | None]],
    *,
    shift: float,
) -> list[Tensor]:
    """R(t) of the source at falling poles t > -shift; each solve starts from the extrapolation of those before.

    Poles below 0 approach the slowest rate of T from above. Where noise makes it slower than thought, the system is no
    longer positive definite there, and the family ends.
    """
    found: list[Tensor] = []
    history: list[tuple[float, Tensor]] = []
    for t in ts:
        packed, injected = source(t)
        at = math.log(t + shift)
        guess = extrapolated(history[-EXTRAPOLATED:], at) if len(history) >= 2 else None
        try:
            solution, blocks = resolvent.solve(packed, t, injected=injected, guess=guess)
        except PastLimitError:
            if t >= 0:
                raise
            break
        history.append((at, blocks))
        found.append(solution)
    return found


def extrapolated(history: Sequence[tuple[float, Tensor]], at: float) -> Tensor:
    """Lagrange's polynomial through the history."""
    total = torch.zeros_like(history[0][1])
    for i, (x, blocks) in enumerate(history):
        others = [y for j, (y, _) in enumerate(history) if j != i]
        total += math.prod((at - y) / (x - y) for y in others) * blocks
    return total
