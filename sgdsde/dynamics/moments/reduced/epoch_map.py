"""One shuffled epoch as a map of moments, estimated from sampled orders and projected on a few dozen matrices.

In z = H^-1/2 a, a the coordinates of the residual in the modes, one step on a batch b of B examples is

    z' = (1 - lr w) z - (lr n/B) W_b^T (W_b z + f_b - xi_b) - lr H^-1/2 c,    W = U H^1/2,

a symmetric matrix and a shift (f: the part of the residual that never moves, xi: label noise, c: the pull of decay), so
an epoch in a given order is z' = G z + g and, as epochs are independent of each other, exactly

    Y' = E[G Y G^T] + E[G m g^T + g m^T G^T + g g^T] + noise of labels,      m' = E[G] m + E[g].

The reverse of an order is as likely as the order and has G^T in place of G, where all batches of an epoch are of one
size: then both maps are self-adjoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sgdsde.dynamics.moments.reduced.sources import Sources
from sgdsde.sgd import SGD

HELD = 2**22
"""Numbers in the products that are worked on together."""


@dataclass(frozen=True)
class EpochShape:
    """The batches of every epoch: their sizes, in order, at a constant learning rate."""

    sizes: tuple[int, ...]
    lr: float
    decay: float

    @classmethod
    def of(cls, sgd: SGD, n_train: int) -> EpochShape:
        """Of a constant setting with shuffled epochs."""
        size = sgd.batch_size_at(0)
        full, rest = divmod(n_train, size)
        sizes = (size,) * full + ((rest,) if rest and not sgd.drop_last else ())
        return cls(sizes, sgd.lr_at(0), sgd.weight_decay)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_reversible(self) -> bool:
        """Whether the reverse of an order is as likely as the order."""
        return len(set(self.sizes)) == 1


@dataclass(eq=False)
class Passage:
    """What an order of batches has done since its start: z = G z_0 + g, and the second moment of label noise.

    Attributes:
        loss: 1 - G, [k, r, r] for k orders; kept in this form because slow modes move little.
        shift: g, [k, r, columns]. labels: [k, r, r], None without label noise.
    """

    loss: Tensor
    shift: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class EpochMap:
    """y' = (1 - L) y + F m + c and m' = (1 - D) m + d over some epochs.

    Attributes:
        loss: L, [N, N]. force: F, [N, r, columns]; None without forces. constant: c, [N].
        mean_loss: D, [r, r]. shift: d, [r, columns].
    """

    loss: Tensor
    force: Tensor | None
    constant: Tensor
    mean_loss: Tensor
    shift: Tensor

    def __call__(self, y: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """y [N] and m [r, columns] after these epochs."""
        moved = y - self.loss @ y + self.constant
        if self.force is not None:
            moved = moved + torch.tensordot(self.force, m, 2)
        return moved, m - self.mean_loss @ m + self.shift

    def twice(self) -> EpochMap:
        """This map after itself."""
        constant = 2 * self.constant - self.loss @ self.constant
        force = self.force
        if force is not None:
            constant = constant + torch.tensordot(force, self.shift, 2)
            passed = 2 * force - (self.mean_loss.mT @ force)
            force = passed - torch.tensordot(self.loss, force, 1)
        return EpochMap(
            2 * self.loss - self.loss @ self.loss,
            force,
            constant,
            2 * self.mean_loss - self.mean_loss @ self.mean_loss,
            2 * self.shift - self.mean_loss @ self.shift,
        )

    def restricted(self, z: Tensor) -> EpochMap:
        """The same on the span of z [N, N']."""
        force = None if self.force is None else torch.tensordot(z.mT, self.force, 1)
        return EpochMap(z.mT @ self.loss @ z, force, z.mT @ self.constant, self.mean_loss, self.shift)

    @property
    def of_mean(self) -> Passage:
        """What the mean does, as an order of its own."""
        return Passage(self.mean_loss[None], self.shift[None], None)

    def without_mean(self) -> EpochMap:
        """The same where nothing of the mean is asked for and it drives nothing."""
        none = self.mean_loss.new_zeros(0, 0)
        return EpochMap(self.loss, None, self.constant, none, none)

    @staticmethod
    def mixed(maps: Sequence[EpochMap], shares: Sequence[float]) -> EpochMap:
        """The linear combination with these shares."""

        def combined(name: str) -> Tensor | None:
            parts = [getattr(one, name) for one in maps]
            return None if parts[0] is None else sum(share * part for share, part in zip(shares, parts))

        return EpochMap(**{each.name: combined(each.name) for each in fields(EpochMap)})  # type: ignore[arg-type]


class EpochSampler:
    """Random orders of the examples of one epoch, and what they do."""

    def __init__(self, sources: Sources, shape: EpochShape, seed: int) -> None:
        self.sources, self.shape = sources, shape
        self._space = sources.space
        self._generator = torch.Generator().manual_seed(seed)
        root = self._space.drift.rsqrt()[:, None]
        self._pull = None if sources.offset is None else shape.lr * sources.offset * root

    def orders(self, count: int) -> Tensor:
        """[count, n] random orders of the examples."""
        n = self._space.n_train
        keys = torch.rand(count, n, generator=self._generator, dtype=torch.float64)
        return keys.argsort(1).to(self._space.rows.device)

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers of the same stream."""
        return torch.randn(*size, generator=self._generator, dtype=torch.float64).to(self._space.rows)

    def batches(self, orders: Tensor) -> Iterator[Tensor]:
        """Rows of outputs [k, B c] of every batch in turn."""
        c, start = self._space.n_outputs, 0
        for size in self.shape.sizes:
            examples = orders[:, start : start + size]
            yield (examples[:, :, None] * c + torch.arange(c, device=orders.device)).flatten(1)
            start += size

    def passages(self, orders: Tensor, positions: Sequence[int]) -> Iterator[tuple[int, Passage]]:
        """What k orders have done after each of ``positions`` steps (sorted, 1 ... m). Cost: 4 k n c r^2."""
        space, shape, sources = self._space, self.shape, self.sources
        r, columns = sources.mean.shape
        decayed = shape.lr * shape.decay
        now = Passage(
            space.rows.new_zeros(len(orders), r, r),
            space.rows.new_zeros(len(orders), r, columns),
            space.rows.new_zeros(len(orders), r, r) if sources.label_variance else None,
        )
        identity = torch.eye(r, dtype=space.rows.dtype, device=space.rows.device)
        for k, rows in enumerate(self.batches(orders), 1):
            seen = space.rows[rows]
            weight = shape.lr * space.n_train * space.n_outputs / rows.shape[1]
            kept = seen - seen @ now.loss
            if decayed:
                now.loss.mul_(1 - decayed).add_(decayed * identity)
            now.loss.baddbmm_(seen.mT, kept, alpha=weight)
            self._move_shift(now.shift, seen, rows, weight)
            if now.labels is not None:
                self._move_labels(now.labels, seen, weight, kept=1 - decayed)
            if k in positions:
                yield k, now

    def move(self, z: Tensor, orders: Tensor) -> Iterator[Tensor]:
        """States z [k, r, columns] of k runs after every step, each run with fresh label noise; in place."""
        space, std = self._space, 0.0
        if self.sources.label_variance:
            std = (self.sources.label_variance / z.shape[2]) ** 0.5
        for rows in self.batches(orders):
            seen = space.rows[rows]
            weight = self.shape.lr * space.n_train * space.n_outputs / rows.shape[1]
            noise = std * self.normal(*rows.shape, z.shape[2]) if std else None
            self._move_shift(z, seen, rows, weight, noise)
            yield z

    def _move_shift(
        self, shift: Tensor, seen: Tensor, rows: Tensor, weight: float, noise: Tensor | None = None
    ) -> None:
        residual = seen @ shift
        if self.sources.fixed is not None:
            residual += self.sources.fixed[rows]
        if noise is not None:
            residual -= noise
        shift *= 1 - self.shape.lr * self.shape.decay
        shift.baddbmm_(seen.mT, residual, alpha=-weight)
        if self._pull is not None:
            shift -= self._pull

    def _move_labels(self, labels: Tensor, seen: Tensor, weight: float, *, kept: float) -> None:
        """N -> P N P^T + v (lr n/B)^2 W_b^T W_b with P = kept - weight W_b^T W_b."""
        for matrix in (labels, labels.mT):
            moved = seen.mT @ (seen @ matrix)
            matrix.mul_(kept).sub_(moved, alpha=weight)
        labels.baddbmm_(seen.mT, seen, alpha=weight**2 * self.sources.label_variance)


def projected(basis: Tensor, passage: Passage, *, reversible: bool, driven: bool) -> EpochMap:
    """The mean over k orders on the span of an orthonormal basis V [N, r, r] of symmetric matrices.

    With D = 1 - G, 1 - V^T (G x G) V has the entries <2 V_i - V_i D, D V_j>, whose errors of rounding are relative to
    what moves. Cost: 4 N r^3 operations an order.
    """
    n, r, k = len(basis), basis.shape[1], len(passage.loss)
    loss, force, constant = basis.new_zeros(n, n), None, basis.new_zeros(n)
    if driven:
        force = basis.new_zeros(n, *passage.shift.shape[1:])
    height = max(1, min(r, HELD // (n * r)))
    for order in range(k):
        d, shift = passage.loss[order], passage.shift[order]
        for top in range(0, r, height):
            rows = basis[:, top : top + height]
            after = torch.add(rows, rows @ d, alpha=-0.5)  # V_i - V_i D / 2
            before = d[top : top + height] @ basis  # D V_j
            loss.addmm_(after.flatten(1), before.flatten(1).mT, alpha=2)
        if force is not None:
            pulled = basis @ shift
            force += 2 * (pulled - d.mT @ pulled)
            constant += (pulled * shift).sum((1, 2))
        if passage.labels is not None:
            constant += basis.flatten(1) @ passage.labels[order].flatten()
    mean_loss = passage.loss.mean(0)
    if reversible:
        loss, mean_loss = (loss + loss.mT) / 2, (mean_loss + mean_loss.mT) / 2
    force = None if force is None else force / k
    return EpochMap(loss / k, force, constant / k, mean_loss, passage.shift.mean(0))
