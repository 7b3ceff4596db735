"""The projected second moment and the mean, as a small linear system: through any schedule, and by jumps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.pairs import StepCoefficients
from sgdsde.dynamics.moments.reduced.projection import Projection, with_bulk
from sgdsde.dynamics.moments.reduced.sources import Sources


@dataclass(frozen=True)
class Segment:
    """``length`` steps with the same coefficients and batch size."""

    length: int
    coefficients: StepCoefficients
    batch_size: float


@dataclass(frozen=True, eq=False)
class ReducedSystem:
    """y' = T y + F m + f with m' = (1 - lr (h + w)) m - lr c, exactly the projected recursion.

    Attributes:
        projection: T. start: y_0, [N]. loss: V^T L, [N]: <loss, y> = E |U^T e|^2.
        drift: h, [r]. mean: m_0, [r, columns]. offset: c, [r, columns] or None.
        fixed_force, decay_force: [N, r columns], of the mean, per unit of k3 and of -2 lr; or None.
        fixed_constant, decay_constant: [N], per unit of k3 and of lr^2. label_variance: v n.
    """

    projection: Projection
    start: Tensor
    loss: Tensor
    drift: Tensor
    mean: Tensor
    offset: Tensor | None
    fixed_force: Tensor | None
    decay_force: Tensor | None
    fixed_constant: Tensor | None
    decay_constant: Tensor | None
    label_variance: float

    @classmethod
    def of(cls, sources: Sources, projection: Projection) -> ReducedSystem:
        space, (fixed, offset), bulk = sources.space, (sources.fixed, sources.offset), sources.bulk
        if bulk is not None:
            projection = with_bulk(projection, bulk, space.n_outputs)
        parts: dict[str, Tensor | None] = dict.fromkeys(
            ("fixed_force", "decay_force", "fixed_constant", "decay_constant")
        )
        if fixed is not None:
            n, c, _ = space.blocks_shape
            blocks = projection.blocks.view(-1, n, c, c)
            pulled = (blocks @ fixed.view(n, c, -1)).view(len(projection), n * c, -1)
            parts["fixed_force"] = (2 * space.n_train * (space.vectors.mT @ pulled)).flatten(1)
            own = sources.example_blocks(fixed, fixed).flatten()
            parts["fixed_constant"] = space.n_train * (projection.blocks @ own)
        if offset is not None:
            root = space.drift.rsqrt()[:, None]
            forces = torch.stack([space.unpack(vector) @ (offset * root) for vector in projection.basis])
            parts["decay_force"] = (forces * root).flatten(1)
            parts["decay_constant"] = (forces * (offset * root)).sum((1, 2))
        start, loss = projection.coordinates(torch.stack([sources.moment, space.diagonal(space.drift)]))
        if bulk is not None:
            root = bulk.counts.sqrt()
            start[-len(root) :], loss[-len(root) :] = root * bulk.variances / bulk.drift, root * bulk.drift
        label = sources.label_variance * space.n_train
        return cls(projection, start, loss, space.drift, sources.mean, offset, label_variance=label, **parts)

    def restricted(self, z: Tensor) -> ReducedSystem:
        """The same on the span of z [N, N']: nothing of the size of the problem is touched."""

        def turned(part: Tensor | None) -> Tensor | None:
            return None if part is None else z.mT @ part

        whole = self.projection
        small = replace(
            whole, a1=z.mT @ whole.a1 @ z, a2=z.mT @ whole.a2 @ z, a3=z.mT @ whole.a3 @ z, columns=z.mT @ whole.columns
        )
        return replace(
            self,
            projection=small,
            start=z.mT @ self.start,
            loss=z.mT @ self.loss,
            fixed_force=turned(self.fixed_force),
            decay_force=turned(self.decay_force),
            fixed_constant=turned(self.fixed_constant),
            decay_constant=turned(self.decay_constant),
        )

    def run(self, segments: Sequence[Segment], record: Sequence[int]) -> tuple[Tensor, Tensor]:
        """y [T, N] and m [T, r, columns] at the steps ``record``, sorted, counted from the start of the segments."""
        if len(segments) * 20 >= sum(segment.length for segment in segments):
            return self._walk(segments, record)
        y, m, done, states, means = self.start, self.mean, 0, [], []
        for i, segment in enumerate(segments):
            beyond = done + segment.length + int(i == len(segments) - 1)
            ys, ms = self._jump(segment, y, m, [*(k - done for k in record if done <= k < beyond), segment.length])
            states.append(ys[:-1])
            means.append(ms[:-1])
            y, m, done = ys[-1], ms[-1], done + segment.length
        return torch.cat(states), torch.cat(means)

    def _forces(self, segment: Segment) -> tuple[Tensor | None, Tensor | None]:
        """F [N, r columns] and f [N] of one step; None where there is none."""
        lr, k3 = segment.coefficients.lr, segment.coefficients.numbers[-1]
        force: Tensor | None = None
        constant: Tensor | None = None
        if self.fixed_force is not None:
            assert self.fixed_constant is not None
            force, constant = k3 * self.fixed_force, k3 * self.fixed_constant
        if self.decay_force is not None:
            assert self.decay_constant is not None
            kept = (1 - lr * (self.drift + segment.coefficients.decay)).repeat_interleave(self.mean.shape[1])
            pulled, pushed = -2 * lr * self.decay_force * kept, lr**2 * self.decay_constant
            force = pulled if force is None else force + pulled
            constant = pushed if constant is None else constant + pushed
        if self.label_variance:
            labels = lr**2 * self.label_variance / segment.batch_size * self.loss
            constant = labels if constant is None else constant + labels
        return force, constant

    def _rates(self, segment: Segment) -> Tensor:
        return segment.coefficients.lr * (self.drift + segment.coefficients.decay)[:, None]

    def _walk(self, segments: Sequence[Segment], record: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Step by step, in NumPy, whose calls cost less than these products."""
        whole = self.projection
        maps = torch.cat([whole.a1, -whole.a2, -whole.a3]).double().cpu().numpy()
        forces = [None if f is None else f.double().cpu().numpy() for f in (self.fixed_force, self.decay_force)]
        zero = torch.zeros_like(self.start)
        pushed = [(zero if f is None else f).double().cpu().numpy() for f in (self.fixed_constant, self.decay_constant)]
        offset = None if self.offset is None else self.offset.flatten().double().cpu().numpy()
        drift = self.drift.repeat_interleave(self.mean.shape[1]).double().cpu().numpy()
        y, m, loss = (part.flatten().double().cpu().numpy() for part in (self.start, self.mean, self.loss))
        wanted, states, means, done = set(record), [], [], 0
        for segment in segments:
            lr, shrunk = segment.coefficients.lr, segment.coefficients.shrunk
            kept, weights = 1 - lr * (drift + segment.coefficients.decay), np.array(segment.coefficients.numbers)
            labels = lr**2 * self.label_variance / segment.batch_size * loss
            for _ in range(segment.length):
                if done in wanted:
                    states.append(y)
                    means.append(m)
                change = weights @ (maps @ y).reshape(3, -1) + shrunk * y - labels
                if forces[0] is not None:
                    change = change - weights[-1] * (forces[0] @ m + pushed[0])
                moved = kept * m
                if forces[1] is not None:
                    assert offset is not None
                    change = change + 2 * lr * (forces[1] @ moved) - lr**2 * pushed[1]
                    moved = moved - lr * offset
                y, m, done = y - change, moved, done + 1
        if done in wanted:
            states.append(y)
            means.append(m)
        like = self.start
        return torch.from_numpy(np.stack(states)).to(like), torch.from_numpy(np.stack(means)).to(like).view(
            -1, *self.mean.shape
        )

    def _jump(self, segment: Segment, y: Tensor, m: Tensor, at: Sequence[int]) -> tuple[Tensor, Tensor]:
        """In the eigenbasis of T: y_k = theta^k y + (1 - theta^k)/(1 - theta) f + sum_i F_i a_i^<k> m_i."""
        if segment.coefficients.lr == 0:
            return y.expand(len(at), -1), m.expand(len(at), *m.shape)
        rates, vectors = torch.linalg.eigh(self.projection.step_loss(segment.coefficients))
        force, constant = self._forces(segment)
        steps = torch.tensor(list(at), dtype=y.dtype, device=y.device)[:, None]
        states = powers(rates, steps) * (vectors.mT @ y)
        mean_rates = self._rates(segment)
        resting = torch.zeros_like(m)
        if self.offset is not None:
            resting = -segment.coefficients.lr * self.offset / mean_rates
        columns = mean_rates.expand_as(m).flatten()
        kept = powers(columns, steps)
        if force is not None:
            turned = vectors.mT @ force
            pushed = turned @ resting.flatten()
            constant = pushed if constant is None else vectors.mT @ constant + pushed
            weights = turned * (m - resting).flatten()
            states = states + torch.stack(
                [(weights * divided_powers(rates, columns, k)).sum(1) for k in steps.flatten()]
            )
        elif constant is not None:
            constant = vectors.mT @ constant
        if constant is not None:
            states = states + geometric_sums(rates, steps) * constant
        means = resting + kept.view(-1, *m.shape) * (m - resting)
        return states @ vectors.mT, means


def mean_at(
    segments: Sequence[Segment], record: Sequence[int], *, drift: Tensor, mean: Tensor, offset: Tensor | None
) -> Tensor:
    """m [T, r, columns] alone, at sorted steps counted from the start of the segments."""
    found, m, done = [], mean, 0
    for i, segment in enumerate(segments):
        lr, last = segment.coefficients.lr, i == len(segments) - 1
        rates = lr * (drift + segment.coefficients.decay)[:, None]
        resting = torch.zeros_like(m) if offset is None or lr == 0 else -lr * offset / rates
        inside = [
            k - done for k in record if done <= k < done + segment.length or (last and k == done + segment.length)
        ]
        steps = torch.tensor([*inside, segment.length], dtype=m.dtype, device=m.device)
        path = resting + powers(rates, steps.view(1, -1)).mT[:, :, None] * (m - resting)
        found.append(path[:-1])
        m, done = path[-1], done + segment.length
    return torch.cat(found)


def powers(rates: Tensor, steps: Tensor) -> Tensor:
    """(1 - mu)^k for mu [N] and whole k [T, 1], accurate for small mu; 1 - mu may be negative."""
    base = 1 - rates
    size = torch.exp(steps * torch.where(base > 0, torch.log1p(-rates.clamp_max(0.5)), 0.0))
    direct = torch.pow(base, steps)
    return torch.where(rates < 0.5, size, direct)


def geometric_sums(rates: Tensor, steps: Tensor) -> Tensor:
    """sum_{j<k} (1 - mu)^j."""
    safe = torch.where(rates.abs() * steps < 1e-14, 1.0, rates)
    gone = -torch.expm1(steps * torch.log1p(-rates.clamp_max(0.5)))
    gone = torch.where(rates < 0.5, gone, 1 - powers(rates, steps))
    return torch.where(rates.abs() * steps < 1e-14, steps, gone / safe)


def divided_powers(rates: Tensor, others: Tensor, step: Tensor) -> Tensor:
    """sum_{j<k} (1 - mu)^(k-1-j) (1 - nu)^j, [N, r], for mu [N] and nu [r]."""
    at = step.view(1, 1)
    first, second = powers(rates, at).view(-1, 1), powers(others, at).view(1, -1)
    difference = others - rates[:, None]
    near = difference.abs() * step < 1e-6
    average = powers((rates[:, None] + others) / 2, (at - 1).clamp_min(0))
    return torch.where(near, step * average, (first - second) / torch.where(near, 1.0, difference))
