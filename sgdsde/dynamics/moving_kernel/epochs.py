"""Covariance of the weights around their mean path over shuffled epochs.

The closure of ``dynamics.shuffled``, conditional on which examples are still to come, for a kernel that moves: the
state is centered at the mean path, the output gradients r = E r + G Phi a stand for s e, and the mean path itself is
told through ``output_gradient`` how the examples that are still to come differ from all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.dynamics.moving_kernel.directions import Features
from sgdsde.dynamics.moving_kernel.fluctuation import Fluctuation
from sgdsde.dynamics.shuffled import Draw, pair_factors
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.gaussian import GaussianMoments
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan


class EpochFluctuation(Fluctuation):
    """S as in ``Fluctuation`` with P = Cov(z, u), u_j = R/n - rem_j the usage deviation of each example; [., n]."""

    def __init__(self, problem: Problem, sgd: SGD, plan: StepPlan, *, size: int, dtype: torch.dtype) -> None:
        super().__init__(problem, sgd, plan, size=size, dtype=dtype)
        self._usage = torch.zeros(len(self.covariance), self._n, dtype=dtype, device=problem.device)
        self._example = torch.arange(self._n * self._c, device=problem.device) // self._c

    def turn(self, overlap: Tensor) -> None:
        super().turn(overlap)
        self._usage = torch.block_diag(*[overlap] * self._parts) @ self._usage

    def output_gradient(self, step: int, moments: GaussianMoments, features: Features) -> Tensor:
        """E r of the examples that are still to come: E r - Cov(r, u) / rho at each example's own u."""
        draw = self._draw(step)
        if draw.remaining == draw.n:
            return moments.gradient
        _, own = self._gradient_usage(moments, features)
        return moments.gradient - own.view_as(moments.gradient) / draw.share

    def advance(self, step: int, features: Features, moments: GaussianMoments) -> None:
        draw = self._draw(step)
        if draw.remaining == draw.n:
            self._usage.zero_()
        if draw.batch_size == draw.n:
            super().advance(step, features, moments)
            return
        transition, gains = self._linear(step)
        m, slopes = moments.gradient.flatten(), self._weighted(moments, features)
        usage, own = self._gradient_usage(moments, features)
        crossed_rr = slopes @ self.weights @ slopes.mT
        pull = features.train / draw.batch_size
        moved = torch.kron(gains, pull.mT @ (draw.single * (draw.share * m - own)))
        with_remaining = self._with_remaining(draw, m, own, slopes)
        crossed = draw.single * self._apply(transition, with_remaining) @ pull
        crossed = torch.kron(gains, crossed)
        drawn = self._drawn_moment(draw, m, usage, own, crossed_rr, moments)
        noise = pull.mT @ drawn @ pull
        covariance = self._apply(transition, self._apply(transition, self.covariance).mT) + crossed + crossed.mT
        covariance += torch.kron(torch.outer(gains, gains), self._add_labels(noise, step, features))
        covariance -= torch.outer(moved, moved)
        spread = self._apply(transition, (1 - draw.single) * self._usage)
        spread = spread - (draw.batch_size / self._n) * moved[:, None]
        source = pull.mT @ self._usage_source(draw, m, usage, own)
        self._usage = spread + torch.kron(gains[:, None], source)
        self.covariance = (covariance + covariance.mT) / 2

    def _draw(self, step: int) -> Draw:
        return Draw(self._n, self._n - int(self._plan.used[step]), int(self._plan.batch_size[step]))

    def _weighted(self, moments: GaussianMoments, features: Features) -> Tensor:
        """E[G] Phi, [n*c, r]: how the output gradients follow the weights."""
        return (moments.hessian @ features.train.view(self._n, self._c, -1)).view_as(features.train)

    def _gradient_usage(self, moments: GaussianMoments, features: Features) -> tuple[Tensor, Tensor]:
        """Cov(r, u), [n*c, n], and its entries at each output's own example, [n*c]."""
        slopes = self._weighted(moments, features)
        usage = slopes @ self._usage[: slopes.shape[1]]
        return usage, usage.gather(1, self._example[:, None]).squeeze(1)

    def _apply(self, transition: Tensor, state: Tensor) -> Tensor:
        """(G_0 (x) I) state, along the first dimension."""
        blocks = state.reshape(self._parts, -1, state.shape[1])
        return torch.tensordot(transition, blocks, dims=1).view_as(state)

    def _with_remaining(self, draw: Draw, m: Tensor, own: Tensor, slopes: Tensor) -> Tensor:
        """E[z r_y rem_j], j the example of y, [z, n*c]; the mean of z is 0."""
        columns, rho = self._usage[:, self._example], draw.share
        moment = self.covariance[:, : slopes.shape[1]] @ slopes.mT - columns / rho * (m - own / rho)
        if rho < 1:
            moment -= columns * own / (rho * (1 - rho))
        return rho * moment

    def _drawn_moment(
        self, draw: Draw, m: Tensor, usage: Tensor, own: Tensor, spread: Tensor, moments: GaussianMoments
    ) -> Tensor:
        """E[(r o s)(r o s)^T], [n*c, n*c], spread = Cov(r)."""
        other, rho = usage[:, self._example], draw.share
        q, ia, ib = pair_factors(draw)
        shifted = m[:, None] - q * (own[:, None] + other)
        pairs = shifted * shifted.mT + spread
        if draw.remaining < draw.n:
            pairs -= ia * (own[:, None] * other.mT + other * own)
            pairs -= ib * (torch.outer(own, own) + other * other.mT)
        result = draw.pair * draw.both_remain * pairs
        shifted_own = m - own / rho
        single = torch.outer(shifted_own, shifted_own) + spread
        if rho < 1:
            single -= torch.outer(own, own) / (rho * (1 - rho))
        blocks = diagonal_blocks(single.contiguous(), self._c)
        beyond = moments.gradient_moment - moments.gradient[:, :, None] * moments.gradient[:, None, :]
        beyond = beyond - diagonal_blocks(spread.contiguous(), self._c)
        diagonal_blocks(result, self._c).copy_(draw.single * rho * (blocks + beyond))
        return result

    def _usage_source(self, draw: Draw, m: Tensor, usage: Tensor, own: Tensor) -> Tensor:
        """What the drawn batch adds to P before the response, [n*c, n]."""
        q, _, _ = pair_factors(draw)
        both = draw.both_remain * (m[:, None] - q * (own[:, None] + usage))
        drawn_mean = draw.single * (draw.share * m - own)
        others = self._example[:, None] != torch.arange(self._n, device=usage.device)
        return draw.share * drawn_mean[:, None] + (draw.pair - draw.single) * both * others
