"""Mean and covariance of minibatch SGD on the linearized model, step by step, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moments.epochs import EpochMoments
from sgdsde.dynamics.moments.modes import Coordinates, Modes
from sgdsde.dynamics.output_law import OutputLaw
from sgdsde.dynamics.update import Mean, Update, update
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class MomentRecursion(Dynamics):
    """Under squared error the second moments of SGD close; with z = (e, u), e = f - y and u the momentum buffer,

        m' = G m + nu wd b
        S' = G S G^T + nu nu^T (x) Q(S_ee + m_e m_e^T)
        Q(M) = (phi/B) K (s^2/n D(M) - s^2/n^2 M) K + (s^2 v / (n B)) K^2

    with m the mean, S the covariance, v the variance of fresh label noise. Plain SGD is z = e, G = I - lr H. S, not
    the second moment M, is evolved: no noise then gives exactly no spread.

    Args:
        epoch_starts: shuffled epochs only: in how many directions, at most, the spread that an epoch starts with is
            followed by itself; default 32. 0 is several times faster, and enough while the loss is mostly mean.
    Exactness: exact for a model linear in its parameters, i.i.d. batches with and without replacement, any schedule.
        Spreads of the LOSS derived from S use a Gaussian closure; the expected loss does not.
        Shuffled epochs rest on a closure (``dynamics.shuffled``): the loss is within about 1 % from the second epoch on
        up to 0.2 of the mean-square limit of fresh batches, 5 % up to 0.3 with momentum, and worse near it.
    Cost: two products [d, r] x [r, r] a step (4 d r^2 operations), d = n c and r = rank K; memory 4 to 9 r^2 numbers.
        It grows linearly with the number of steps. Shuffled epochs: four dense products of d a step (five with
        momentum), and as many for each direction in which an epoch starts with a large spread.
    """

    epoch_starts: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.epoch_starts is not None:
            object.__setattr__(self, "epoch_starts", whole_number("epoch_starts", self.epoch_starts))

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        modes = Modes(linearization)
        plan = sgd.plan(modes.n_train, record[-1])
        if sgd.sampling == "shuffled":
            yield from self._evolve_epochs(modes, sgd, plan, record, progress)
            return
        offset = sgd.weight_decay * modes.decay_offset() if sgd.weight_decay else None
        mean, spread = Mean.at(modes.start), Spread.zero(modes.values, with_buffer=sgd.momentum > 0)
        noise, times, wanted = GradientNoise(modes), plan.times, set(record)
        ticks = ticker(progress, record[-1], "moment recursion")
        for k in range(record[-1] + 1):
            if k in wanted:
                yield modes.law(k, times[k], mean.e, spread.ee, weight_factor=float(mean.weight_factor))
            if k == record[-1]:
                break
            lr = float(plan.lr[k])
            step = update(sgd, modes.drift, lr=lr, first=k == 0)
            batch = noise(spread.ee, mean.e, plan.noise_factor(k))
            if sgd.label_noise_std:
                batch = noise.add_labels(batch, sgd.label_noise_std**2, int(plan.batch_size[k]))
            spread.advance(step, batch)
            mean.advance(sgd, step, offset, lr=lr, first=k == 0)
            ticks.update(1)
        ticks.close()

    def _evolve_epochs(
        self, modes: Modes, sgd: SGD, plan: StepPlan, record: Sequence[int], progress: Progress
    ) -> Iterator[OutputLaw]:
        moments, weights = EpochMoments(modes, sgd, most_starts=self.epoch_starts), Mean.at(modes.start)
        times, wanted = plan.times, set(record)
        ticks = ticker(progress, record[-1], "moment recursion, shuffled")
        for k in range(record[-1] + 1):
            if k in wanted:
                mean = modes.vectors.mT @ moments.residual_mean
                covariance = modes.vectors.mT @ moments.residual_covariance @ modes.vectors
                yield modes.law(k, times[k], mean, covariance, weight_factor=float(weights.weight_factor))
            if k == record[-1]:
                break
            lr = float(plan.lr[k])
            weights.advance_factor(sgd, lr=lr, first=k == 0)
            moments.advance(plan, k)
            ticks.update(1)
        ticks.close()


@dataclass
class Spread:
    """Covariance of residual and buffer in modal coordinates: three [r, r] blocks, one without momentum."""

    ee: Tensor
    eu: Tensor | None
    uu: Tensor | None

    @classmethod
    def zero(cls, values: Tensor, *, with_buffer: bool) -> Spread:
        r = len(values)
        blocks = [values.new_zeros(r, r) if with_buffer or i == 0 else None for i in range(3)]
        ee, eu, uu = blocks
        assert ee is not None
        return cls(ee, eu, uu)

    def advance(self, step: Update, noise: Tensor | None) -> None:
        """S' = G S G^T + nu nu^T (x) noise; G is diagonal, so every product is elementwise."""
        a = step.ee[:, None]
        if self.eu is None or self.uu is None:
            self.ee = self.ee * a * step.ee
            if noise is not None:
                self.ee += step.e_gain**2 * noise
            return
        b, p, q = step.eu, step.ue[:, None], step.uu
        row_ee, row_eu = a * self.ee + b * self.eu.mT, a * self.eu + b * self.uu
        row_ue, row_uu = p * self.ee + q * self.eu.mT, p * self.eu + q * self.uu
        self.ee = row_ee * step.ee + row_eu * b
        self.eu = row_ee * step.ue + row_eu * q
        self.uu = row_ue * step.ue + row_uu * q
        if noise is not None:
            self.ee += step.e_gain**2 * noise
            self.eu += step.e_gain * step.u_gain * noise
            self.uu += step.u_gain**2 * noise


class GradientNoise:
    """Q(M) in modal coordinates, for M given as covariance plus the square of the mean."""

    def __init__(self, modes: Coordinates) -> None:
        self._modes = modes
        self._factor = modes.loss_curvature**2 / modes.n_train
        self._scaled = modes.vectors * modes.values
        self._shape = (modes.n_train, modes.n_outputs, -1)

    def __call__(self, covariance: Tensor | None, mean: Tensor, noise_factor: float) -> Tensor | None:
        """Covariance [r, r] of one step's gradient; None when the batch is the whole set."""
        if noise_factor == 0:
            return None
        moment = torch.outer(mean, mean) if covariance is None else torch.addr(covariance, mean, mean)
        return self.from_blocks(self.moment_blocks(covariance, mean), moment, noise_factor)

    def from_blocks(self, blocks: Tensor, moment: Tensor, noise_factor: float) -> Tensor:
        """(phi/B) K (s^2/n D - s^2/n^2 M) K in modal coordinates, D [n, c, c] and M [r, r]; M is overwritten."""
        if self._modes.n_outputs == 1:
            weighted = blocks.view(-1, 1) * self._scaled
        else:
            weighted = (blocks @ self._scaled.view(self._shape)).view_as(self._scaled)
        noise = self._scaled.mT @ weighted
        values = self._modes.values
        noise.sub_(moment.mul_(values[:, None]).mul_(values), alpha=1 / self._modes.n_train)
        return noise.mul_(noise_factor * self._factor)

    def moment_blocks(self, covariance: Tensor | None, mean: Tensor) -> Tensor:
        """E[e_i e_i^T] of every example, [n, c, c]: the part of the residual that never moves included."""
        residual = self._modes.residual(mean).view(self._modes.n_train, self._modes.n_outputs)
        blocks = residual[:, :, None] * residual[:, None, :]
        return blocks if covariance is None else blocks + self.covariance_blocks(covariance)

    def covariance_blocks(self, covariance: Tensor) -> Tensor:
        """The diagonal blocks of U S U^T, [n, c, c]."""
        rows = self._modes.vectors @ covariance
        if self._modes.n_outputs == 1:
            return (rows * self._modes.vectors).sum(1).view(-1, 1, 1)
        return rows.view(self._shape) @ self._modes.vectors.view(self._shape).mT

    def add_labels(self, noise: Tensor | None, variance: float, batch_size: int) -> Tensor:
        """Adds the noise of freshly drawn targets, (s^2 v / (n B)) Lambda^2; it survives B = n."""
        values = self._modes.values
        noise = torch.zeros_like(values).diag() if noise is None else noise
        noise.diagonal().add_(values.square(), alpha=self._factor * variance / batch_size)
        return noise
