"""Mean and covariance of SGD over shuffled epochs, where the noise of the steps of one epoch is anticorrelated.

An example drawn early in an epoch cannot return before the next, so the state is enlarged by the usage deviation
u_j = R/n - rem_j in R^n, rem_j = 1 while example j is still to come and R the number of those. u is 0 at each epoch's
start and its covariance is known, so only P = Cov(z, u) joins mean and covariance S of z = (a, b), weights and buffer.
With the batch indicator s (given the past, E s_j = p rem_j and E s_i s_j = p2 rem_i rem_j) and the output gradients
r = E r + E[G] Phi a, one step of the deviation from the mean is

    z' = (G_0 (x) I) z + N (r o s) - its mean,     N = nu (x) Psi^T / B,     G_0, nu: momentum and decay

and its moments need E[z r_y rem_j] and E[r_x r_y rem_i rem_j]. They close when z given rem_j (or given rem_i, rem_j) is
taken with the conditional mean and covariance of the linear regression on these binary variables: exact for the mean of
z at fixed rem, approximate only in how its covariance depends on rem.

That regression is written for an epoch that starts without spread, and errs where the spread of the outputs is not
small beside the squared mean residual. But the epoch as a whole maps the second moment at its start linearly, so a
start with spread is split,

    S = (rest) + sum_v w_v w_v^T,      w_v the leading directions of S by what they do to the outputs,

and each w_v runs through the epoch as a fixed deviation of the state, as if it were certain; the mean is the first of
them, with w = 0 and the output gradient E r.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde.dynamics.moments.feature_state import Expectations, Features, Fluctuation
from sgdsde.losses.expectations import GaussianMoments
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan

UNSPLIT, UNSPLIT_WITH_MOMENTUM = 0.05, 0.01
"""Share of the second moment of the residual that may enter an epoch as spread. The regression errs by a third of that
share; less gains nothing without momentum, where a certain start is off by 2 % at 0.3 of the mean-square limit."""

PAIRS_AT_ONCE = 2**23
"""Numbers held for all pairs of examples; more starts than fit are taken one group after the other."""


@dataclass(frozen=True)
class EpochDraw:
    """The counts of one step of an epoch: B of the R remaining among n examples are drawn."""

    n: int
    remaining: int
    batch_size: int

    @property
    def share(self) -> float:
        """rho = R / n."""
        return self.remaining / self.n

    @property
    def single(self) -> float:
        """p = B / R: chance that a remaining example is drawn."""
        return self.batch_size / self.remaining

    @property
    def pair(self) -> float:
        """p2: chance that two remaining examples are both drawn."""
        b, r = self.batch_size, self.remaining
        return b * (b - 1) / (r * (r - 1)) if r > 1 else 0.0

    @property
    def both_remain(self) -> float:
        """Chance that two examples both remain."""
        return self.remaining * (self.remaining - 1) / (self.n * (self.n - 1)) if self.n > 1 else 0.0


class EpochFluctuation(Fluctuation):
    """S = rest + sum_v w_v w_v^T, with P_v = Cov(z, u) for each start v.

    Args:
        most_starts: directions w_v besides the mean, at most.
    Cost: three products [d, r] x [r, d] a step (four with momentum), one more for each start; n^2 c numbers a start.
    """

    def __init__(
        self, problem: Problem, sgd: SGD, plan: StepPlan, *, size: int, dtype: torch.dtype, most_starts: int = 0
    ) -> None:
        super().__init__(problem, sgd, plan, size=size, dtype=dtype)
        self._most_starts = most_starts
        self._rest, self._deviations, self._usage = self._split(self.covariance.new_zeros(0, len(self.covariance)))
        self._example = torch.arange(self._n * self._c, device=problem.device) // self._c

    def turn(self, overlap: Tensor) -> None:
        wide = torch.block_diag(*[overlap] * self._parts)
        self._rest, self._size = wide @ self._rest @ wide.mT, len(overlap)
        self._deviations, self._usage = self._deviations @ wide.mT, wide @ self._usage
        self.covariance = self._rest + self._deviations.mT @ self._deviations

    def expectations(self, features: Features, outputs: Tensor, extra: Tensor | None = None) -> Expectations:
        if self.is_certain:
            return self._expectations(features, outputs)
        seen = self._deviations[:, : self._size] @ features.train.mT
        moved_rest = features.train @ self._rest[: self._size]
        moved = torch.addmm(moved_rest, seen.mT, self._deviations)
        return replace(self._expectations(features, outputs, moved, extra), moved_rest=moved_rest)

    def output_gradient(self, k: int, seen: Expectations) -> Tensor:
        """E r of the examples that are still to come: E r - Cov(r, u) / rho at each example's own u."""
        draw, gradient = self._draw(k), seen.moments.gradient
        if draw.remaining == draw.n:
            return gradient
        slopes = seen.weighted(seen.features.train)
        own = (slopes * self._usage[0, : self._size].mT[self._example]).sum(1)
        return gradient - own.view_as(gradient) / draw.share

    def advance(self, k: int, seen: Expectations) -> None:
        draw = self._draw(k)
        if draw.batch_size == draw.n:
            self._advance_independently(k, seen)
            self._rest, self._deviations, self._usage = self._split(self._deviations[:0])
            return
        if draw.remaining == draw.n:
            self._rest, self._deviations, self._usage = self._split(self._starts(k, seen))
            seen = replace(seen, moved_rest=seen.moved)
            if len(self._deviations) > 1:
                seen = replace(seen, moved_rest=seen.features.train @ self._rest[: self._size])
        self.is_certain = False
        self._advance_within_epoch(k, draw, seen)
        self.covariance = self._rest + self._deviations.mT @ self._deviations

    def _advance_within_epoch(self, k: int, draw: EpochDraw, seen: Expectations) -> None:
        step, features, b = self._step(k), seen.features, draw.batch_size
        slopes = seen.weighted(features.train)
        drawn = self._drawn(draw, seen, slopes)
        followed = slopes.new_zeros(len(slopes), len(self._rest))  # how the output gradients covary with the rest
        if seen.moved_rest is not None:
            followed = seen.weighted(seen.moved_rest)
        remaining = self._with_remaining(drawn, followed)
        crossed = self._gained(step, features.pull(self._kept(step, remaining).mT) * (draw.single / b))
        spread = followed[:, : self._size] @ slopes.mT
        noise = features.pull(features.pull(drawn.second_moment(spread, seen.moments)).mT) / b**2
        labels = self._label_noise(k, features)
        total = self._kept(step, self._kept(step, self.covariance).mT) + 2 * crossed  # its symmetric part counts
        total += self._gained_both(step, noise if labels is None else noise + labels)
        after = self._kept(step, self._deviations.mT)
        after = (after + self._gained(step, features.pull(drawn.mean.mT) / b)).mT
        usage = self._usage + draw.single * (draw.share * self._deviations[:, :, None] - self._usage)
        usage = self._kept(step, usage) - (b / self._n) * after[:, :, None]
        self._usage = usage + self._gained(step, features.pull(drawn.usage_source()) / b)
        total -= after.mT @ after
        after[0] = 0
        self._rest, self._deviations = (total + total.mT) / 2, after

    def _split(self, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rest, deviations and usage covariances of an epoch that begins with these starts [v, q r]."""
        v, size = starts.shape
        deviations = torch.cat([starts.new_zeros(1, size), starts])
        return self.covariance - starts.mT @ starts, deviations, starts.new_zeros(1 + v, size, self._n)

    def _starts(self, k: int, seen: Expectations) -> Tensor:
        """The directions of the spread that move the outputs most, [v, q r]; the buffer is weighed by what it moves."""
        none, moments = self.covariance.new_zeros(0, len(self.covariance)), seen.moments
        if seen.blocks is None or not self._most_starts:
            return none
        curvature = moments.hessian.square().mean() * self._c
        spread = seen.blocks.diagonal(dim1=1, dim2=2).sum()
        unsplit = UNSPLIT_WITH_MOMENTUM if self._sgd.momentum else UNSPLIT
        allowed = unsplit * (moments.gradient.square().sum() / curvature + spread)
        if not torch.isfinite(allowed) or spread <= allowed:
            return none
        weights = [1.0, float(self._plan.lr[k]) / (1 - self._sgd.momentum)][: self._parts]
        root = torch.block_diag(*[weight * seen.features.root for weight in weights])
        pushed = self.covariance @ root
        values, vectors = torch.linalg.eigh(root @ pushed)
        values = values.clamp_min(0)
        count = min(self._most_starts, int((values.cumsum(0) > allowed).sum()))
        leading = slice(len(values) - count, None)
        return (pushed @ vectors[:, leading] / values[leading].sqrt()).mT

    def _draw(self, k: int) -> EpochDraw:
        return EpochDraw(self._n, self._n - int(self._plan.used[k]), int(self._plan.batch_size[k]))

    def _drawn(self, draw: EpochDraw, seen: Expectations, slopes: Tensor) -> DrawnGradients:
        means = self._deviations[:, : self._size] @ slopes.mT
        means[0] = seen.moments.gradient.flatten()
        return DrawnGradients(draw, means, slopes @ self._usage[:, : self._size], self._example)

    def _with_remaining(self, drawn: DrawnGradients, followed: Tensor) -> Tensor:
        """E[z r_y rem_j], j the example of y, summed over the starts, [q r, n*c]."""
        rho, own = drawn.draw.share, drawn.own
        shifted = drawn.means - own / rho
        weights = shifted / rho + (own / (rho * (1 - rho)) if rho < 1 else 0)
        by_example = self._usage.permute(2, 1, 0) @ weights.view(-1, self._n, self._c).transpose(0, 1)
        moment = followed.mT + self._deviations.mT @ shifted
        return rho * (moment - by_example.transpose(0, 1).reshape(moment.shape))


class DrawnGradients:
    """The drawn part of the output gradients, from the starts' means [v, n*c] and usage covariances [v, n*c, n]."""

    def __init__(self, draw: EpochDraw, means: Tensor, usage: Tensor, example: Tensor) -> None:
        self.draw, self.means, self._usage, self._example = draw, means, usage, example
        self._n, self._c = draw.n, means.shape[1] // draw.n
        self.own = usage.gather(2, example.expand(len(usage), -1)[:, :, None]).squeeze(2)
        self.mean = draw.single * (draw.share * means - self.own)

    def second_moment(self, spread: Tensor, moments: GaussianMoments) -> Tensor:
        """E[(r o s)(r o s)^T], [n*c, n*c]; spread = Cov(r) of the rest."""
        draw, rho, shape = self.draw, self.draw.share, (-1, self._n, self._c)
        pairs = draw.pair * draw.both_remain * (self._pairs() + spread)
        shifted, own, means = ((part).view(shape) for part in (self.means - self.own / rho, self.own, self.means))
        single = torch.einsum("via,vib->iab", shifted, shifted)
        if rho < 1:
            single -= torch.einsum("via,vib->iab", own, own) / (rho * (1 - rho))
        # Beyond the linear response, where E[r r^T] is more or less than that of a Gaussian r.
        single += moments.gradient_moment - torch.einsum("via,vib->iab", means, means)
        diagonal_blocks(pairs, self._c).copy_(draw.single * rho * single)
        return pairs

    def usage_source(self) -> Tensor:
        """The source of P from the drawn batch, before the response, [v, n*c, n]."""
        draw, (q, _, _) = self.draw, pair_factors(self.draw)
        both = draw.both_remain * (self.means[:, :, None] - q * (self.own[:, :, None] + self._usage))
        others = self._example[:, None] != torch.arange(self._n, device=self._usage.device)
        return draw.share * self.mean[:, :, None] + (draw.pair - draw.single) * both * others

    def _pairs(self) -> Tensor:
        """E[r_x r_y | both remain] without the spread of the rest, for outputs x and y of different examples.

        A sum of products of a number that depends on x and the example of y with one of y and the example of x.
        """
        n, c = self._n, self._c
        total = self.means.new_zeros(n, n, c, c)
        group = max(1, PAIRS_AT_ONCE // (6 * n * n * c))
        for start in range(0, len(self.means), group):
            total += self._pairs_of(slice(start, start + group))
        return total.transpose(1, 2).reshape(n * c, n * c)

    def _pairs_of(self, starts: slice) -> Tensor:
        """``_pairs`` of some starts, [n, n, c, c]: examples i and j, outputs of i and of j."""
        (q, ia, ib), n, c = pair_factors(self.draw), self._n, self._c
        other = self._usage[starts].view(-1, n, c, n).permute(1, 3, 2, 0)  # [i, j, a, v]: output (i, a), usage of j
        own, mean = (part[starts].view(-1, n, c).permute(1, 2, 0)[:, None] for part in (self.own, self.means))
        shifted = mean - q * (own + other)
        own = own.expand_as(other)
        left = torch.cat([shifted, -ia * own - ib * other, -ia * other - ib * own], dim=-1)
        right = torch.cat([shifted, other, own], dim=-1).transpose(0, 1)
        return left @ right.mT


def pair_factors(draw: EpochDraw) -> tuple[float, float, float]:
    """The factors of P in the regression on two examples at once: of the mean, and twice of the covariance."""
    n, rho = draw.n, draw.share
    if n <= 2:
        return 0.0, 0.0, 0.0
    q = (n - 1) / (rho * (n - 2))
    if draw.remaining == n:
        return q, 0.0, 0.0
    base = (n - 1) / (rho * (1 - rho) * n * (n - 2))
    return q, (n - 1) * base, base
