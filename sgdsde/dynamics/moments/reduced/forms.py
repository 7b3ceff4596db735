"""Losses and their spreads for many settings at once, from small matrices alone.

With F the factor of a set of outputs (U for the training set), G = F^T F, S = M - m m^T and u = F^T e for the mean
residual e, a loss needs tr G S, tr G S G S and u^T S u (``reduction.loss_of_law``). In the reduced coordinates y,

    tr G M = <g, y>,    tr G M G M = y^T B y,    x^T M x = sum_j y_j x^T H^1/2 V_j H^1/2 x

for x = G m and x = u, which for all settings and steps lie in a space of a few dozen dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.moments.reduced.system import ReducedSystem

DIRECTIONS = 1e-9
"""Singular value, relative to the largest, of mean residuals that are told apart."""


@dataclass(frozen=True, eq=False)
class OutputMap:
    """Mean residuals of a set of outputs: e = F m + rest + (g - 1) decayed.

    Attributes:
        factor: F over the moving modes, [rows, r]; orthonormal where ``of_training``. rest, decayed: [rows, k].
    """

    factor: Tensor
    rest: Tensor
    decayed: Tensor
    of_training: bool

    @classmethod
    def of(cls, modes: Modes, start: ReducedStart, *, of_training: bool) -> OutputMap | None:
        """Of the training or the test set; None without a test set."""
        rest_mean, columns = torch.zeros_like(start.sources.mean), (-1, modes.n_columns)
        law = modes.law(0, 0.0, start.all_modes(rest_mean), torch.zeros_like(modes.drift).diag())
        if of_training:
            rest = modes.residual(start.all_modes(rest_mean))
            return cls(start.sources.space.vectors, rest, torch.zeros_like(rest), of_training=True)
        if law.test_covariance is None:
            return None
        factor, targets = law.test_covariance.factor, modes.linearization.problem.y_test
        assert law.test_mean is not None
        assert targets is not None
        rest = (law.test_mean - targets.to(law.test_mean.dtype)).reshape(columns)
        decayed = torch.zeros_like(rest)
        weights = modes.linearization.test_weight_outputs
        if weights is not None and modes.linearization.weight_outputs is not None:
            decayed = weights.reshape(columns) - factor @ modes.weight_outputs
        return cls(factor[:, start.moving], rest, decayed, of_training=False)

    def residuals(self, means: Tensor, weight_factors: Tensor) -> Tensor:
        """e [T, rows, k] for m [T, r, k] and g [T]."""
        return self.factor @ means + self.rest + (weight_factors - 1)[:, None, None] * self.decayed

    def pulled(self, columns: Tensor) -> Tensor:
        """F^T of residuals [..., rows, k]."""
        return self.factor.mT @ columns


@dataclass(frozen=True, eq=False)
class LossForms:
    """One loss as forms in the reduced coordinates.

    Attributes:
        outputs: F. trace: g, [N]. square: B, [N, N]. directions: X, [r, q], orthonormal, holding every x.
        second_moments: X^T H^1/2 V_j H^1/2 X, [N, q, q]. scale: s / (2 examples).
    """

    outputs: OutputMap
    trace: Tensor
    square: Tensor
    directions: Tensor
    second_moments: Tensor
    scale: float

    @classmethod
    def of(
        cls, outputs: OutputMap, system: ReducedSystem, start: ReducedStart, means: Tensor, scale: float
    ) -> LossForms:
        """From mean residuals [T, r, k] that span those of all settings. Cost: 4 N r^2 (q + rows) operations."""
        space, basis = start.sources.space, system.projection.basis
        root = space.drift.sqrt()[:, None]
        ones = torch.ones(len(means)).to(means)
        x = [means]
        if not outputs.of_training:
            x += [outputs.pulled(outputs.factor @ means), outputs.pulled(outputs.residuals(means, ones))]
            x += [outputs.pulled(outputs.decayed)[None]]
        directions = _orthonormal(torch.cat([part.permute(1, 0, 2).flatten(1) for part in x], 1))
        narrow = outputs.factor * root.mT
        if outputs.of_training:
            trace, square = system.loss, system.projection.a2
        elif len(narrow) > space.rank:
            narrow = torch.linalg.qr(narrow, mode="r").R
        around, moments = root * directions, []
        traces, whole = [], []
        for vector in basis:
            matrix = space.unpack(vector)
            moments.append(around.mT @ matrix @ around)
            if not outputs.of_training:
                seen = narrow @ matrix @ narrow.mT
                traces.append(seen.trace())
                whole.append(seen.flatten())
        if not outputs.of_training:
            trace, stacked = torch.stack(traces), torch.stack(whole)
            square = stacked @ stacked.mT
        return cls(outputs, trace, square, directions, torch.stack(moments), scale)

    def mean_and_std(self, states: Tensor, means: Tensor, weight_factors: Tensor) -> tuple[Tensor, Tensor]:
        """Expected loss and its standard deviation (Gaussian closure), [T] each, for y [T, N], m [T, r, k], g [T]."""
        outputs, k = self.outputs, means.shape[2]
        if outputs.of_training:
            squares = means.square().sum((1, 2)) + outputs.rest.square().sum()
            pulled = turned = means
        else:
            residuals = outputs.residuals(means, weight_factors)
            squares, pulled = residuals.square().sum((1, 2)), outputs.pulled(residuals)
            turned = outputs.pulled(outputs.factor @ means)
        moments = torch.tensordot(states, self.second_moments, 1)
        trace = (states @ self.trace - (means * turned).sum((1, 2))).clamp_min(0)
        square = ((states @ self.square) * states).sum(1) - 2 * self._form(moments, turned)
        square = square + (means.mT @ turned).square().sum((1, 2))
        quadratic = self._form(moments, pulled) - (pulled.mT @ means).square().sum((1, 2))
        variance = k * (2 * square.clamp_min(0) + 4 * quadratic.clamp_min(0))
        return self.scale * (squares + trace), self.scale * variance.sqrt()

    def _form(self, moments: Tensor, columns: Tensor) -> Tensor:
        """Sum over columns of x^T M x, [T]."""
        x = self.directions.mT @ columns
        return (x * (moments @ x)).sum((1, 2))


def _orthonormal(columns: Tensor) -> Tensor:
    """A basis of the span of columns [r, any], each counted as if of length one."""
    lengths = columns.norm(dim=0)
    kept = columns[:, lengths > 0] / lengths[lengths > 0]
    vectors, values, _ = torch.linalg.svd(kept, full_matrices=False)
    return vectors[:, values > DIRECTIONS * values[0]]
