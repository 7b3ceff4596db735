"""The first shuffled epochs by sampled runs, and the laws of steps within later ones: vectors and few matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.epoch_map import EpochSampler, EpochShape, Passage
from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.dynamics.moments.reduced.start import ReducedStart
from sgdsde.dynamics.output_law import OutputLaw

FIRST_EPOCHS = 2
"""Epochs that are followed by sampled runs, vectors instead of matrices, before the map of an epoch is applied."""

RUNS = 4096
"""Of the first epochs: a sampling error of 0.03 to 0.2 % of the loss at 0.3 of the mean-square limit."""

BATCH = 8
"""Orders that are drawn together."""

HELD = 2**24
"""Numbers in the rows of batches, or in the matrices of orders, that are worked on together."""


@dataclass(frozen=True, eq=False)
class EpochRuns:
    """Sampled orders of one setting; a stream of random numbers for the runs, and one for each batch of orders.

    Attributes:
        start: before the first step.
    """

    modes: Modes
    start: ReducedStart
    shape: EpochShape
    seed: int

    @property
    def root(self) -> Tensor:
        """H^1/2, [r, 1]: a = H^1/2 z."""
        return self.start.sources.space.drift.sqrt()[:, None]

    def runs(self) -> Iterator[tuple[int, Tensor]]:
        """z [RUNS, r, columns] at the steps 0 ... the end of the first epochs; overwritten by the next."""
        sources, sampler = self.start.sources, self._sampler(0)
        z = (sources.mean / self.root).repeat(RUNS, 1, 1)
        at_once = max(1, HELD // (max(self.shape.sizes) * sources.space.n_outputs * sources.space.rank))
        yield 0, z
        step = 0
        for _ in range(FIRST_EPOCHS):
            orders = sampler.orders(RUNS).split(at_once)
            blocks = [sampler.move(part, order) for part, order in zip(z.split(at_once), orders)]
            for _ in self.shape.sizes:
                for block in blocks:
                    next(block)
                step += 1
                yield step, z

    def passages(self, batch: int, positions: Sequence[int]) -> Iterator[tuple[int, Passage]]:
        """What the orders of a batch have done after these steps of an epoch, as many together as are held."""
        sampler = self._sampler(1 + batch)
        at_once = max(1, HELD // self.start.sources.space.rank**2)
        for orders in sampler.orders(BATCH).split(at_once):
            yield from sampler.passages(orders, positions)

    def _sampler(self, stream: int) -> EpochSampler:
        return EpochSampler(self.start.sources, self.shape, seed=self.seed * 2**16 + stream)

    def first_epochs(self, record: Sequence[int], groups: int) -> tuple[Sources, list[Tensor], Tensor]:
        """The state after the first epochs, the second moments of groups of runs then, packed, and its errors.

        Relative standard errors of the expected loss at the steps of ``record`` and at the end.
        """
        sources, wanted, errors = self.start.sources, {*record, FIRST_EPOCHS * len(self.shape)}, {}
        floor = 0.0 if sources.fixed is None else float(sources.fixed.square().sum())
        z = sources.mean
        for step, z in self.runs():
            if step in wanted:
                loss = (z.square() * sources.space.drift[:, None]).sum((1, 2)) + floor
                errors[step] = float(loss.std() / (RUNS**0.5 * loss.mean())) if step else 0.0
        parts = z.view(groups, -1, *z.shape[1:])
        moments = [sources.space.pack(torch.einsum("kic,kjc->ij", part, part) / len(part)) for part in parts]
        after = replace(sources, moment=torch.stack(moments).mean(0), mean=self.root * z.mean(0))
        return after, moments, torch.tensor([errors[k] for k in sorted(wanted)], dtype=torch.float64)

    def first_laws(self, record: Sequence[int]) -> Iterator[OutputLaw]:
        """The laws at steps of the first epochs, from the runs."""
        wanted = set(record)
        for step, z in self.runs() if wanted else ():
            if step in wanted:
                mean = z.mean(0)
                deviation = (z - mean if step else torch.zeros_like(z)).permute(1, 0, 2).flatten(1)
                yield self.law(step, mean, deviation @ deviation.mT / (RUNS - 1))

    def law(self, step: int, mean: Tensor, covariance: Tensor) -> OutputLaw:
        """From mean [r, columns] and covariance [r, r] of z."""
        root = self.root
        whole = self.start.all_pairs(covariance * root * root.mT)
        time, factor = self.time_and_factor(step)
        return self.modes.law(step, time, self.start.all_modes(root * mean), whole, weight_factor=factor)

    def time_and_factor(self, step: int) -> tuple[float, float]:
        """t_k, and g_k of theta = g theta_0 + J^T w."""
        return step * self.shape.lr, math.exp(step * math.log1p(-self.shape.lr * self.shape.decay))

    def followed(self, sources: Sources, epochs: Sequence[int]) -> list[Tensor]:
        """Second moments from a start after these epochs, and those of the mean alone, packed; roughly."""
        space, found = sources.space, []
        moment, mean = space.unpack(sources.moment), sources.mean / self.root
        for epoch in range(1, max(epochs) + 1):
            mean, moment = self.moved([(len(self.shape), mean, moment)], 1)[0].averages()
            if epoch in epochs:
                found += [space.pack(moment), space.products(mean, mean)]
        return found

    def moved(self, places: Sequence[tuple[int, Tensor, Tensor]], n_batches: int) -> list[MovedMoments]:
        """The moments ``steps`` into an epoch that starts with mean m and second moment Y of z.

        One for each (steps, m, Y) of ``places``; averages over the orders of some batches. Cost: 4 r^3 operations an
        order and place.
        """
        totals = [MovedMoments(torch.zeros_like(m), torch.zeros_like(y), []) for _, m, y in places]
        positions = sorted({steps for steps, _, _ in places})
        drift = self.start.sources.space.drift
        for batch in range(n_batches):
            for position, passage in self.passages(batch, positions):
                for (steps, m, y), total in zip(places, totals):
                    if steps == position:
                        total.add(passage, m, y, drift)
        return totals


@dataclass(eq=False)
class MovedMoments:
    """Sums over orders of the mean [r, columns] and second moment [r, r]; and the squared residual of every order."""

    mean: Tensor
    moment: Tensor
    losses: list[Tensor]

    def add(self, passage: Passage, m: Tensor, y: Tensor, drift: Tensor) -> None:
        """What (m, Y) has become in every order of a passage."""
        d, k = passage.loss, len(passage.loss)
        pulled = m - d @ m
        moved = pulled + passage.shift
        lost = d @ y
        once = lost.sum(0)
        self.mean += moved.sum(0)
        self.moment += k * y - once - once.mT
        self.moment += lost.permute(1, 0, 2).flatten(1) @ d.permute(1, 0, 2).flatten(1).mT
        squares = y.diagonal() - 2 * lost.diagonal(dim1=1, dim2=2) + (lost * d).sum(2)
        if bool(passage.shift.any()):
            for columns, sign in ((moved, 1), (pulled, -1)):
                flat = columns.permute(1, 0, 2).flatten(1)
                self.moment += sign * (flat @ flat.mT)
                squares = squares + sign * columns.square().sum(2)
        if passage.labels is not None:
            self.moment += passage.labels.sum(0)
            squares = squares + passage.labels.diagonal(dim1=1, dim2=2)
        self.losses.append(squares @ drift)

    def averages(self) -> tuple[Tensor, Tensor]:
        """Mean and second moment."""
        count = sum(len(part) for part in self.losses)
        return self.mean / count, self.moment / count

    def standard_error(self, floor: float) -> float:
        """Of the expected loss, relative; ``floor`` is the squared residual that never moves."""
        losses = torch.cat(self.losses) + floor
        return float(losses.std() / (len(losses) ** 0.5 * losses.mean()))
