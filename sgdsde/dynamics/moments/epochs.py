"""Mean and covariance of SGD over shuffled epochs, where the noise of the steps of one epoch is anticorrelated.

An example drawn early in an epoch cannot return before the next, so the state is enlarged by the usage deviation
u_j = R/n - rem_j in R^n, rem_j = 1 while example j is still to come and R the number of those. u is 0 at each epoch's
start and its covariance is known, so only P = Cov(z, u) joins mean m and covariance S of z = (e, buffer). With the
batch indicator s (given the past, E s_j = p rem_j and E s_i s_j = p2 rem_i rem_j) one step is

    z' = G z + a + N (e o s),     G, a: momentum and decay;  N = nu (x) (s/B) K, nu the response to a gradient

and its moments need E[z e_y rem_j] and E[e_x e_y rem_i rem_j]. They close when z given rem_j (or given rem_i, rem_j) is
taken with the conditional mean and covariance of the linear regression on these binary variables: exact for the mean of
z at fixed rem, approximate only in how its covariance depends on rem.

That regression is written for an epoch that starts without spread, and errs where tr S is not small beside |m|^2. But
the epoch as a whole maps the second moment at its start linearly, so a start with spread is split,

    m m^T + S = m m^T + (rest) + sum_i v_i v_i^T,      v_i the leading eigenvectors of S times root eigenvalue,

and each v_i runs through the epoch as a start of its own, certain and without the constant shift a.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.update import update
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class Draw:
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


UNSPLIT, UNSPLIT_WITH_MOMENTUM = 0.05, 0.01
"""Share of the second moment of the residual that may enter an epoch as spread. The regression errs by a third of that
share; less gains nothing without momentum, where a certain start is off by 2 % at 0.3 of the mean-square limit."""

MOST_DIRECTIONS = 32
"""Starts of one epoch, at most; each costs as much as the mean's."""


@dataclass(frozen=True)
class Response:
    """N = nu (x) (s/B) K, never formed: one product with K, then copies."""

    gains: Tensor
    kernel: Tensor

    def to(self, drawn: Tensor) -> Tensor:
        """N X for X [d] or [d, .]."""
        moved = self.kernel @ drawn
        return torch.kron(self.gains if drawn.ndim == 1 else self.gains[:, None], moved)

    def transposed(self, rows: Tensor) -> Tensor:
        """X N^T for X [., d]."""
        return torch.kron(self.gains, rows @ self.kernel)

    def both_sides(self, moment: Tensor) -> Tensor:
        """N X N^T for X [d, d]."""
        return torch.kron(torch.outer(self.gains, self.gains), self.kernel @ moment @ self.kernel)


@dataclass
class Start:
    """What has become of one start of the epoch: mean [z], covariance [z, z], usage covariance [z, n]."""

    mean: Tensor
    covariance: Tensor
    usage: Tensor


class EpochMoments:
    """Mean m, covariance S and usage covariance P of z = (e, buffer), in output space.

    S is [z, z] and P [z, n] with z = d, or 2 d with momentum. Everything elementwise is written for one example's block
    of outputs at once: ``own`` picks for output (i, a) the column of its own example i.
    """

    def __init__(self, modes: Modes, sgd: SGD, *, most_starts: int | None = None) -> None:
        linearization = modes.linearization
        self._sgd, self._s = sgd, modes.loss_curvature
        self._most_starts = MOST_DIRECTIONS if most_starts is None else most_starts
        self._n, self._c = modes.n_train, modes.n_outputs
        if linearization.basis is not None:
            raise ValueError(
                "shuffled epochs need the whole kernel, got a truncated eigenbasis; use "
                "run_ensemble(linearization, ...) or sampling='without_replacement'"
            )
        self._kernel = linearization.dense_kernel
        d = len(self._kernel)
        size = 2 * d if sgd.momentum else d
        self._d = d
        mean = self._kernel.new_zeros(size)
        mean[:d] = linearization.residual.flatten()
        self._main = self._certain(mean)
        self._directions: list[Start] = []
        self._example = torch.arange(d, device=self._kernel.device) // self._c
        self._same = self._example[:, None] == self._example
        self._offset = None
        if sgd.weight_decay:
            modes.decay_offset()
            assert linearization.weight_outputs is not None
            self._offset = (linearization.weight_outputs - linearization.residual).flatten() * sgd.weight_decay

    @property
    def mean(self) -> Tensor:
        return self._main.mean

    @property
    def usage(self) -> Tensor:
        """P; directions have no mean sign and add nothing to it."""
        return self._main.usage

    @property
    def covariance(self) -> Tensor:
        total = self._main.covariance.clone()
        for start in self._directions:
            total += start.covariance
            total.addr_(start.mean, start.mean)
        return total

    @property
    def residual_mean(self) -> Tensor:
        return self.mean[: self._d]

    @property
    def residual_covariance(self) -> Tensor:
        return self.covariance[: self._d, : self._d]

    def _certain(self, mean: Tensor) -> Start:
        return Start(mean, mean.new_zeros(len(mean), len(mean)), mean.new_zeros(len(mean), self._n))

    def _split(self, lr: float) -> None:
        """Makes the leading directions of the spread starts of their own; the buffer is weighed by what it moves."""
        spread = self.covariance
        self._main.covariance, self._directions = spread, []
        total = spread[: self._d, : self._d].trace() + self.residual_mean.square().sum()
        allowed = (UNSPLIT_WITH_MOMENTUM if self._sgd.momentum else UNSPLIT) * total
        if not torch.isfinite(total) or spread[: self._d, : self._d].trace() <= allowed:
            return
        weight = torch.ones_like(self.mean)
        weight[self._d :] = lr / (1 - self._sgd.momentum)
        values, vectors = torch.linalg.eigh(weight[:, None] * spread * weight)
        rest = values.clamp_min(0).cumsum(0)
        count = min(int((rest > allowed).sum()), self._most_starts)
        for column in range(len(values) - count, len(values)):
            direction = vectors[:, column] * values[column].clamp_min(0).sqrt() / weight
            self._directions.append(self._certain(direction))
            self._main.covariance = self._main.covariance - torch.outer(direction, direction)

    def advance(self, plan: StepPlan, k: int) -> None:
        """One step of the plan."""
        draw = Draw(self._n, self._n - int(plan.used[k]), int(plan.batch_size[k]))
        lr = float(plan.lr[k])
        if plan.used[k] == 0:
            self._main.usage.zero_()
            if draw.batch_size < draw.n:
                self._split(lr)
        step = update(self._sgd, self._kernel.new_zeros(1), lr=lr, first=k == 0)
        gains = [step.e_gain, step.u_gain] if self._sgd.momentum else [step.e_gain]
        transition = self._kernel.new_tensor([[float(step.ee), step.eu], [float(step.ue), step.uu]])
        transition = transition[: len(gains), : len(gains)]
        response = Response(self._kernel.new_tensor(gains), self._kernel * (self._s / draw.batch_size))
        shift = torch.zeros_like(self.mean)
        if self._offset is not None:
            shift = torch.kron(response.gains, self._offset)
        for start in (self._main, *self._directions):
            change = shift if start is self._main else torch.zeros_like(shift)
            if draw.batch_size == draw.n:
                self._descend(start, transition, response, change)
            else:
                self._advance(start, draw, transition, response, change)
        if (
            self._sgd.label_noise_std
        ):  # fresh at every draw, so independent of who is drawn: E s_i = B/n of its variance
            variance = self._sgd.label_noise_std**2 * draw.batch_size / draw.n
            identity = torch.eye(self._d, dtype=self._kernel.dtype, device=self._kernel.device)
            self._main.covariance = self._main.covariance + variance * response.both_sides(identity)

    def _descend(self, start: Start, transition: Tensor, response: Response, shift: Tensor) -> None:
        """A step on the whole set, without rounding errors that would look like a spread."""

        def step(state: Tensor) -> Tensor:
            return self._apply(transition, state) + response.to(state[: self._d])

        start.mean = step(start.mean) + shift
        start.covariance = step(step(start.covariance).mT)

    def _advance(self, start: Start, draw: Draw, transition: Tensor, response: Response, shift: Tensor) -> None:
        m, S, P, d = start.mean, start.covariance, start.usage, self._d
        own = P[:d].gather(1, self._example[:, None]).squeeze(1)
        drawn_mean = draw.single * (draw.share * m[:d] - own)
        drifted = self._apply(transition, m) + shift
        moved = response.to(drawn_mean)
        m_next = drifted + moved
        with_remaining = self._with_remaining(start, draw, own)
        crossed = response.transposed(draw.single * self._apply(transition, with_remaining))
        crossed += torch.outer(shift, moved)
        S_next = self._apply(transition, self._apply(transition, S).mT)
        S_next += torch.outer(drifted, drifted) + crossed + crossed.mT
        S_next += response.both_sides(self._drawn_moment(start, draw, own, with_remaining[:d]))
        S_next -= torch.outer(m_next, m_next)
        spread = self._apply(transition, P + draw.single * (draw.share * m[:, None] - P))
        spread = spread + (draw.batch_size / self._n) * (shift - m_next)[:, None]
        start.usage = spread + response.to(self._usage_source(start, draw, own, drawn_mean))
        start.mean, start.covariance = m_next, (S_next + S_next.mT) / 2

    def _apply(self, transition: Tensor, state: Tensor) -> Tensor:
        """(G (x) I) state, along the first dimension."""
        blocks = state.view(len(transition), self._d, *state.shape[1:])
        return torch.tensordot(transition, blocks, dims=1).view_as(state)

    def _with_remaining(self, start: Start, draw: Draw, own: Tensor) -> Tensor:
        """E[z e_y rem_j], [z, d]."""
        m, S, P, d, rho = start.mean, start.covariance, start.usage, self._d, draw.share
        columns = P[:, self._example]
        moment = (m[:, None] - columns / rho) * (m[:d] - own / rho) + S[:, :d]
        if rho < 1:
            moment -= columns * own / (rho * (1 - rho))
        return moment.mul_(rho)

    def _drawn_moment(self, start: Start, draw: Draw, own: Tensor, with_remaining: Tensor) -> Tensor:
        """E[(e o s)(e o s)^T], [d, d]."""
        m, P, d, n = start.mean[: self._d], start.usage, self._d, self._n
        other = P[:d][:, self._example]
        q, ia, ib = pair_factors(draw)
        shifted = m[:, None] - q * (own[:, None] + other)
        pairs = shifted * shifted.mT + start.covariance[:d, :d]
        if draw.remaining < n:
            pairs -= ia * (own[:, None] * other.mT + other * own)
            pairs -= ib * (torch.outer(own, own) + other * other.mT)
        return torch.where(self._same, draw.single * with_remaining, draw.pair * draw.both_remain * pairs)

    def _usage_source(self, start: Start, draw: Draw, own: Tensor, drawn_mean: Tensor) -> Tensor:
        """What the drawn batch adds to P before the response, [d, n]."""
        q, _, _ = pair_factors(draw)
        m, P = start.mean[: self._d], start.usage[: self._d]
        both = draw.both_remain * (m[:, None] - q * (own[:, None] + P))
        columns = torch.arange(self._n, device=P.device)
        others = self._example[:, None] != columns
        return draw.share * drawn_mean[:, None] + (draw.pair - draw.single) * both * others


def pair_factors(draw: Draw) -> tuple[float, float, float]:
    """What stands before P in the regression on two examples at once: of the mean, and twice of the covariance."""
    n, rho = draw.n, draw.share
    if n <= 2:
        return 0.0, 0.0, 0.0
    q = (n - 1) / (rho * (n - 2))
    if draw.remaining == n:
        return q, 0.0, 0.0
    base = (n - 1) / (rho * (1 - rho) * n * (n - 2))
    return q, (n - 1) * base, base
