"""Covariances from reduced coordinates: what a loss needs by small products, the whole matrix where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.momentum_system import MomentumSystem
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem
from sgdsde.dynamics.output_law import Covariance, SharedCovariance

RECORDS = 16
"""Recorded steps whose means are projected together."""

SAME = 1e-7
"""Relative distance up to which a vector is the mean residual."""


@dataclass(frozen=True, eq=False)
class ReducedState:
    """Mean m [r, k] and covariance of the moving modes at one step.

    Attributes:
        coordinates: y [N], M = sum_j y_j V_j; or of the covariance itself, S = sum_j y_j V_j, where ``of_spread``.
        trace, squared_norm, quadratic: tr S, tr S^2 and the sum over columns of m^T S m of S = M - m m^T.
    """

    start: ReducedStart
    system: ReducedSystem | MomentumSystem
    coordinates: Tensor
    mean: Tensor
    trace: Tensor
    squared_norm: Tensor
    quadratic: Tensor
    of_spread: bool = False

    def whole_mean(self) -> Tensor:
        """Of all modes, [modes, k]."""
        return self.start.all_modes(self.mean)

    @cached_property
    def core(self) -> Tensor:
        """S over all modes, [modes, modes]. Cost: N r^2 operations."""
        space = self.start.sources.space
        root = space.drift.sqrt()
        moment = space.unpack(self.coordinates @ self.system.projection.basis) * root[:, None] * root
        return self.start.all_pairs(moment if self.of_spread else moment - self.mean @ self.mean.mT)


def reduced_states(
    start: ReducedStart, system: ReducedSystem | MomentumSystem, states: Tensor, means: Tensor
) -> list[ReducedState]:
    """One for each row of y [T, N] and m [T, r, k]. Cost: T N r^2 operations."""
    space, projection = start.sources.space, system.projection
    root = space.drift.sqrt()[:, None]
    squares = projection.coordinates(torch.stack([space.products(root * m, root * m) for m in means]))
    grams = (means.mT @ means).square().sum((1, 2))
    inner = (squares * states).sum(1)
    traces = states @ system.loss - means.square().sum((1, 2))
    norms = ((states @ projection.a2) * states).sum(1) - 2 * inner + grams
    numbers = zip(traces.clamp_min(0), norms.clamp_min(0), (inner - grams).clamp_min(0))
    return [ReducedState(start, system, y, m, *three) for y, m, three in zip(states, means, numbers)]


def spread_states(
    start: ReducedStart, system: ReducedSystem, states: Tensor, spreads: Tensor, means: Tensor
) -> list[ReducedState]:
    """The same where the covariance has coordinates of its own, [T, N]: the trace is what ``states`` leave to it."""
    space, projection = start.sources.space, system.projection
    root = space.drift.sqrt()[:, None]
    squares = projection.coordinates(torch.stack([space.products(root * m, root * m) for m in means]))
    traces = (states @ system.loss - means.square().sum((1, 2))).clamp_min(0)
    norms = ((spreads @ projection.a2) * spreads).sum(1).clamp_min(0)
    numbers = zip(traces, norms, (squares * spreads).sum(1).clamp_min(0))
    return [ReducedState(start, system, y, m, *three, of_spread=True) for y, m, three in zip(spreads, means, numbers)]


class ReducedCovariance(Covariance):
    """F S F^T of a ``ReducedState``; ``core`` is made when it is asked for.

    ``of_training`` marks an orthonormal F in the coordinates of the state itself, where traces and norms are known.
    """

    _like: Covariance
    _state: ReducedState
    _of_training: bool

    def __init__(self, like: Covariance, state: ReducedState, *, of_training: bool) -> None:
        fields = {"factor": like.factor, "gram": like.gram, "_like": like, "_state": state, "_of_training": of_training}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def core(self) -> Tensor:
        """C, [r, r]."""
        return self._state.core

    @property
    def _columns(self) -> int:
        return self._like.n_outputs if isinstance(self._like, SharedCovariance) else 1

    @property
    def _written_out(self) -> Covariance:
        return replace(self._like, core=self._state.core)

    @property
    def trace(self) -> Tensor:
        return self._state.trace if self._of_training else self._written_out.trace

    @property
    def squared_norm(self) -> Tensor:
        if self._of_training:
            return self._columns * self._state.squared_norm
        if self._columns == 1 and len(self.factor) < len(self.gram):
            return (self.factor @ self.core @ self.factor.mT).square().sum()
        return self._written_out.squared_norm

    def quadratic(self, vector: Tensor) -> Tensor:
        if self._of_training:
            mean = self._state.whole_mean()
            reduced = self.factor.mT @ vector.view(-1, mean.shape[1])
            if (reduced - mean).norm() <= SAME * mean.norm():
                return self._columns * self._state.quadratic
        return self._written_out.quadratic(vector)

    def diagonal(self) -> Tensor:
        return self._written_out.diagonal()

    def blocks(self, n_outputs: int) -> Tensor:
        return self._written_out.blocks(n_outputs)

    def to_dense(self) -> Tensor:
        return self._written_out.to_dense()


def reduced_covariance(like: Covariance | None, state: ReducedState, *, of_training: bool) -> Covariance | None:
    """The covariance of a state in the factors of another."""
    return None if like is None else ReducedCovariance(like, state, of_training=of_training)
