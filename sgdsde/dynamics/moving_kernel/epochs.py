"""Covariance of the weights around their mean path over shuffled epochs.

The closure of ``dynamics.shuffled``, conditional on which examples are still to come, for a kernel that moves: the
state is centered at the mean path, the output gradients r = E r + E[G] Phi a stand for s e, and the mean path is told
through ``output_gradient`` how the examples that are still to come differ from all. The spread that an epoch starts
with is split into a rest and a few starts, each a fixed deviation w of the state that runs through the epoch as if it
were certain; the mean path is the first of them, with w = 0 and the output gradient E r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.dynamics.moments.epochs import UNSPLIT, UNSPLIT_WITH_MOMENTUM, Draw, pair_factors
from sgdsde.dynamics.moments.feature_state import Fluctuation
from sgdsde.dynamics.moving_kernel.weight_subspace import Features
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.gaussian import GaussianMoments
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan

FLOOR = 1e-8
"""Of the squared singular values of the features, where the spread is weighed by what it does to the outputs."""


class EpochFluctuation(Fluctuation):
    """S = rest + sum_v w_v w_v^T, with P_v = Cov(z, u) for each start v; u_j = R/n - rem_j, the usage deviation."""

    def __init__(
        self, problem: Problem, sgd: SGD, plan: StepPlan, *, size: int, dtype: torch.dtype, most_starts: int = 0
    ) -> None:
        super().__init__(problem, sgd, plan, size=size, dtype=dtype)
        self._most_starts = most_starts
        self._rest = self.covariance
        self._deviations = self._rest.new_zeros(1, len(self._rest))
        self._usage = self._rest.new_zeros(1, len(self._rest), self._n)
        self._example = torch.arange(self._n * self._c, device=problem.device) // self._c

    def turn(self, overlap: Tensor) -> None:
        wide = torch.block_diag(*[overlap] * self._parts)
        self._rest = wide @ self._rest @ wide.mT
        self._deviations, self._usage = self._deviations @ wide.mT, wide @ self._usage
        self._join()

    def output_gradient(self, step: int, moments: GaussianMoments, features: Features) -> Tensor:
        """E r of the examples that are still to come: E r - Cov(r, u) / rho at each example's own u."""
        draw = self._draw(step)
        if draw.remaining == draw.n:
            return moments.gradient
        usage = self._weighted(moments, features) @ self._usage[0, : features.train.shape[1]]
        return moments.gradient - self._own(usage[None])[0].view_as(moments.gradient) / draw.share

    def advance(self, step: int, features: Features, moments: GaussianMoments) -> None:
        draw = self._draw(step)
        if draw.remaining == draw.n:
            self._begin_epoch(step, features, moments)
        if draw.batch_size == draw.n:
            super().advance(step, features, moments)
            self._rest = self.covariance
            return
        transition, gains = self._linear(step)
        slopes = self._weighted(moments, features)
        r = slopes.shape[1]
        drawn = _Drawn(draw, self._means(moments, slopes), slopes @ self._usage[:, :r], self._example)
        pull = features.train / draw.batch_size
        moved = torch.kron(gains, drawn.mean @ pull)
        crossed = draw.single * self._apply(transition, self._with_remaining(drawn, slopes)) @ pull
        crossed = torch.kron(gains, crossed)
        noise = pull.mT @ drawn.second_moment(slopes @ self._rest[:r, :r] @ slopes.mT, moments) @ pull
        total = self._apply(transition, self._apply(transition, self.covariance).mT) + crossed + crossed.mT
        total += torch.kron(torch.outer(gains, gains), self._add_labels(noise, step, features))
        self._usage = self._usage + draw.single * (draw.share * self._deviations[:, :, None] - self._usage)
        after = self._apply(transition, self._deviations.mT).mT + moved
        self._usage = torch.stack([self._apply(transition, usage) for usage in self._usage])
        self._usage -= (draw.batch_size / self._n) * after[:, :, None]
        self._usage += torch.kron(gains[:, None], pull.mT @ drawn.usage_source())
        self._rest = total - after.mT @ after
        self._rest = (self._rest + self._rest.mT) / 2
        self._deviations = after
        self._deviations[0] = 0
        self._join()

    def _join(self) -> None:
        self.covariance = self._rest + self._deviations.mT @ self._deviations

    def _begin_epoch(self, step: int, features: Features, moments: GaussianMoments) -> None:
        """Makes the directions of the spread that move the outputs most starts of their own."""
        self._rest, size = self.covariance, len(self.covariance)
        values, vectors = torch.linalg.eigh(features.train.mT @ features.train)
        values = values.clamp_min(FLOOR * float(values[-1]))
        root, inverse = (((vectors * values**power) @ vectors.mT) for power in (0.5, -0.5))
        weights = [1.0, float(self._plan.lr[step]) / (1 - self._sgd.momentum)][: self._parts]
        root = torch.block_diag(*[weight * root for weight in weights])
        inverse = torch.block_diag(*[inverse / weight for weight in weights])
        values, vectors = torch.linalg.eigh(root @ self._rest @ root)
        values = values.clamp_min(0)
        unsplit = UNSPLIT_WITH_MOMENTUM if self._sgd.momentum else UNSPLIT
        curvature = float(moments.hessian.square().mean().sqrt()) * self._c**0.5
        level = float(moments.gradient.square().sum()) / max(curvature, FLOOR) ** 2 + float(values.sum())
        count = min(self._most_starts, int((values.cumsum(0) > unsplit * level).sum()))
        starts = (inverse @ (vectors * values.sqrt())[:, size - count :]).mT
        self._deviations = torch.cat([starts.new_zeros(1, size), starts])
        self._usage = starts.new_zeros(1 + count, size, self._n)
        self._rest = self._rest - starts.mT @ starts

    def _draw(self, step: int) -> Draw:
        return Draw(self._n, self._n - int(self._plan.used[step]), int(self._plan.batch_size[step]))

    def _weighted(self, moments: GaussianMoments, features: Features) -> Tensor:
        """E[G] Phi, [n*c, r]: how the output gradients follow the weights."""
        return (moments.hessian @ features.train.view(self._n, self._c, -1)).view_as(features.train)

    def _means(self, moments: GaussianMoments, slopes: Tensor) -> Tensor:
        """Output gradients of each start, [v, n*c]."""
        means = self._deviations[:, : slopes.shape[1]] @ slopes.mT
        means[0] = moments.gradient.flatten()
        return means

    def _own(self, usage: Tensor) -> Tensor:
        return usage.gather(2, self._example.expand(len(usage), -1)[:, :, None]).squeeze(2)

    def _apply(self, transition: Tensor, state: Tensor) -> Tensor:
        """(G_0 (x) I) state, along the first dimension."""
        blocks = state.reshape(self._parts, -1, state.shape[1])
        return torch.tensordot(transition, blocks, dims=1).view_as(state)

    def _with_remaining(self, drawn: _Drawn, slopes: Tensor) -> Tensor:
        """E[z r_y rem_j], j the example of y, summed over the starts, [z, n*c]."""
        rho, own = drawn.draw.share, drawn.own
        shifted = drawn.means - own / rho
        weights = shifted / rho + (own / (rho * (1 - rho)) if rho < 1 else 0)
        by_example = self._usage.permute(2, 1, 0) @ weights.view(-1, self._n, self._c).transpose(0, 1)
        moment = self._rest[:, : slopes.shape[1]] @ slopes.mT + self._deviations.mT @ shifted
        return rho * (moment - by_example.transpose(0, 1).reshape(moment.shape))


class _Drawn:
    """What a batch draws of the output gradients, from the starts' means [v, n*c] and usage covariances [v, n*c, n]."""

    def __init__(self, draw: Draw, means: Tensor, usage: Tensor, example: Tensor) -> None:
        self.draw, self.means, self.usage, self._example = draw, means, usage, example
        self._n, self._c = draw.n, means.shape[1] // draw.n
        self.own = usage.gather(2, example.expand(len(usage), -1)[:, :, None]).squeeze(2)
        self.mean = draw.single * (draw.share * means - self.own)

    def second_moment(self, spread: Tensor, moments: GaussianMoments) -> Tensor:
        """E[(r o s)(r o s)^T], [n*c, n*c]; spread = Cov(r) of the rest."""
        draw, rho, own = self.draw, self.draw.share, self.own
        pairs = draw.pair * draw.both_remain * (self._pairs() + spread)
        shifted = (self.means - own / rho).view(-1, self._n, self._c)
        own = own.view_as(shifted)
        single = torch.einsum("via,vib->iab", shifted, shifted)
        if rho < 1:
            single -= torch.einsum("via,vib->iab", own, own) / (rho * (1 - rho))
        # Beyond the linear response, where E[r r^T] is more or less than that of a Gaussian r.
        means = self.means.view_as(shifted)
        single += moments.gradient_moment - torch.einsum("via,vib->iab", means, means)
        diagonal_blocks(pairs, self._c).copy_(draw.single * rho * single)
        return pairs

    def usage_source(self) -> Tensor:
        """What the drawn batch adds to P before the response, [v, n*c, n]."""
        draw, (q, _, _) = self.draw, pair_factors(self.draw)
        both = draw.both_remain * (self.means[:, :, None] - q * (self.own[:, :, None] + self.usage))
        others = self._example[:, None] != torch.arange(self._n, device=self.usage.device)
        return draw.share * self.mean[:, :, None] + (draw.pair - draw.single) * both * others

    def _pairs(self) -> Tensor:
        """E[r_x r_y | both remain] without the spread of the rest, for outputs x and y of different examples.

        A sum of products of a number that depends on x and the example of y with one of y and the example of x.
        """
        q, ia, ib = pair_factors(self.draw)
        v, n, c = len(self.means), self._n, self._c
        other = self.usage.view(v, n, c, n).permute(1, 3, 2, 0)  # [i, j, a, v]: output (i, a), usage of j
        own = self.own.view(v, n, c).permute(1, 2, 0)[:, None].expand(n, n, c, v)
        mean = self.means.view(v, n, c).permute(1, 2, 0)[:, None]
        shifted = mean - q * (own + other)
        left = torch.cat([shifted, -ia * own - ib * other, -ia * other - ib * own], dim=-1)
        right = torch.cat([shifted, other, own], dim=-1).transpose(0, 1)
        right = torch.cat([right[..., :v], right[..., v : 2 * v], own.transpose(0, 1)], dim=-1)
        return (left @ right.mT).transpose(1, 2).reshape(n * c, n * c)
