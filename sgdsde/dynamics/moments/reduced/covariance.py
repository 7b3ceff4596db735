"""Covariances from reduced coordinates: what a loss needs by small products, the whole matrix where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import PairSpace
from sgdsde.dynamics.moments.reduced.projection import Projection
from sgdsde.dynamics.output_law import Covariance

RECORDS = 16
"""Recorded steps whose means are projected together."""

SAME = 1e-7
"""Relative distance up to which a vector is the mean residual."""


@dataclass(frozen=True, eq=False)
class ReducedState:
    """Mean m [r, columns] and second moment sum_j y_j V_j of the moving modes at one step.

    Attributes:
        moving: [modes], which modes move within the horizon; the others keep ``still``, [modes - r, columns].
        trace, squared_norm, quadratic: tr S, tr S^2 and sum over columns of m^T S m of S = M - m m^T.
    """

    space: PairSpace
    projection: Projection
    coordinates: Tensor
    mean: Tensor
    moving: Tensor
    still: Tensor
    trace: Tensor
    squared_norm: Tensor
    quadratic: Tensor

    def whole_mean(self) -> Tensor:
        """Of all modes, [modes, columns]."""
        return scattered(self.moving, self.mean, self.still)

    def core(self) -> Tensor:
        """S over all modes, [modes, modes]. Cost: 2 N r^2 operations."""
        root = self.space.drift.sqrt()
        moment = self.space.unpack(self.coordinates @ self.projection.basis) * root[:, None] * root
        moment -= self.mean @ self.mean.mT
        whole = moment.new_zeros(len(self.moving), len(self.moving))
        places = self.moving.nonzero().flatten()
        whole[places[:, None], places] = moment
        return whole


def scattered(moving: Tensor, mean: Tensor, still: Tensor) -> Tensor:
    """Coordinates of all modes, [modes, columns], from those of modes that move and of those that do not."""
    whole = mean.new_empty(len(moving), mean.shape[1])
    whole[moving], whole[~moving] = mean, still
    return whole


def reduced_states(
    space: PairSpace, projection: Projection, states: Tensor, means: Tensor, *, moving: Tensor, still: Tensor
) -> list[ReducedState]:
    """One for each row of y [T, N] and m [T, r, columns]. Cost: 2 T N r^2 operations."""
    root, loss = space.drift.sqrt()[:, None], projection.coordinates(space.diagonal(space.drift))
    found: list[ReducedState] = []
    for ys, ms in zip(states.split(RECORDS), means.split(RECORDS)):
        squares = projection.coordinates(torch.stack([space.products(root * m, root * m) for m in ms]))
        grams = (ms.mT @ ms).square().sum((1, 2))
        inner = (squares * ys).sum(1)
        traces = ys @ loss - ms.square().sum((1, 2))
        norms = ((ys @ projection.a2) * ys).sum(1) - 2 * inner + grams
        numbers = zip(traces.clamp_min(0), norms.clamp_min(0), (inner - grams).clamp_min(0))
        found += [ReducedState(space, projection, y, m, moving, still, *three) for y, m, three in zip(ys, ms, numbers)]
    return found


class ReducedCovariance(Covariance):
    """F S F^T of a ``ReducedState``; ``core`` is made when it is asked for.

    ``of_training`` marks an orthonormal F in the coordinates of the state itself, where traces and norms are known.
    """

    def __init__(self, like: Covariance, state: ReducedState, *, of_training: bool) -> None:
        fields = {"factor": like.factor, "gram": like.gram, "_state": state, "_of_training": of_training}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    _state: ReducedState
    _of_training: bool

    @property
    def core(self) -> Tensor:
        """C, [r, r]."""
        return self._state.core()

    @property
    def trace(self) -> Tensor:
        return self._state.trace if self._of_training else (self.gram * self.core).sum()

    @property
    def squared_norm(self) -> Tensor:
        if self._of_training:
            return self._state.squared_norm
        if len(self.factor) < len(self.gram):
            return (self.factor @ self.core @ self.factor.mT).square().sum()
        return super().squared_norm

    def quadratic(self, vector: Tensor) -> Tensor:
        reduced, mean = self.factor.mT @ vector, self._state.whole_mean().flatten()
        if self._of_training and len(reduced) == len(mean) and (reduced - mean).norm() <= SAME * mean.norm():
            return self._state.quadratic
        return reduced @ self.core @ reduced


def replaced(kept: Sequence[Covariance | None], state: ReducedState) -> list[Covariance | None]:
    """Covariances of training and test outputs in the factors of earlier ones."""
    return [None if like is None else ReducedCovariance(like, state, of_training=i == 0) for i, like in enumerate(kept)]
