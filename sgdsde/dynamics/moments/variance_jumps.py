"""Variances of modes over any number of steps at once, while learning rate and batch size stay what they are.

In y_i = s_i / h_i, and sqrt(counts) v / h of a bulk, one step of the closure of variances is a symmetric matrix,

    y' = T y + sigma_k,    T = diag((1 - lr (h + wd))^2 - lr^2 q h^2) + lr^2 q n f G f,    f = h (of the bulk
                           sqrt(counts) h),    G_ij = sum_a |u_a,i^T u_a,j|^2,

and sigma_k comes from the mean, whose modes decay as (1 - lr (h + wd))^k. So it is a sum of exponentials theta^k with
theta in [0, 1], far too many, which a few dozen on a logarithmic scale replace: fitted to it at some steps, and checked
at others. In the eigenbasis of T

    y_k = tau^k y_0 + sum_j sigma^_j (tau^k - theta_j^k) / (tau - theta_j).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgdsde.dynamics.moments.modal_state import ModalMean
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.reduced.system import divided_powers, powers
from sgdsde.dynamics.moments.variances import BulkState
from sgdsde.sgd import SGD

PER_DECADE, LOWEST = 12, 0.03
"""Exponentials a decade of rates 1 - theta, the lowest in units of one over the horizon."""

SAMPLES = 4
"""Sampled steps for every exponential, a third of them held out."""

FASTEST = 0.7
"""Largest rate that is fitted; faster ones are gone after the first steps."""

SMALLEST = 1e-13
"""Singular value of the fit, relative to the largest, that is kept."""

RELATIVE_DOWN_TO = 1e-5
"""Errors of the fit are relative while the source is above this share of what it was."""

GOOD_ENOUGH = 1e-6
"""Error of the fit at the steps that were held out; 1e-9 where the source has not fallen far."""

EXAMPLES = 16
"""Examples of several outputs whose modes are multiplied at once."""


class NoFitError(Exception):
    """The sources are no sum of decaying exponentials: some mode overshoots in every step."""


class VarianceJumps:
    """The variances of modes and bulk, from some step on.

    Args:
        mean, variances: at that step; variances [r]. bulk: at that step, or None. horizon: number of further steps.
    Raises:
        NoFitError: the variances must be stepped through.
    """

    def __init__(
        self, modes: Modes, sgd: SGD, *, mean: ModalMean, variances: Tensor, bulk: BulkState | None, horizon: int
    ) -> None:
        self._modes, self._bulk, plan = modes, bulk, sgd.plan(modes.n_train, 1)
        self._lr, self._q, self._decay = float(plan.lr[0]), plan.noise_factor(0), sgd.weight_decay
        self._labels = modes.n_train * modes.n_columns * sgd.label_noise_std**2 / int(plan.batch_size[0])
        self._start, self._weight_factor = mean.e, mean.weight_factor
        self._rates = self._lr * (modes.drift + self._decay)[:, None]
        self._resting = torch.zeros_like(mean.e)
        if self._decay:
            self._resting = -self._decay * modes.decay_offset() / (modes.drift + self._decay)[:, None]
        self._drift, self._roots = modes.drift, torch.ones_like(modes.drift)
        first = variances
        if bulk is not None:
            self._drift = torch.cat([self._drift, bulk.drift])
            self._roots = torch.cat([self._roots, bulk.counts.sqrt()])
            first = torch.cat([first, bulk.variances])
        tau, self._vectors = torch.linalg.eigh(self._loss_of_a_step())
        self._tau_rates = tau
        self._first = self._vectors.mT @ (self._roots * first / self._drift)
        self._thetas, weights = self._fit(horizon)
        self._weights = weights @ self._vectors

    def mean(self, k: int) -> Tensor:
        """m [r, k] after k further steps."""
        kept = powers(self._rates.flatten(), torch.tensor([[float(k)]]).to(self._rates)).view(-1, 1)
        return self._resting + kept * (self._start - self._resting)

    def weight_factor(self, k: int) -> float:
        return self._weight_factor * (1 - self._lr * self._decay) ** k

    def variances(self, k: int) -> tuple[Tensor, Tensor | None]:
        """Of the modes [r] and of the bulk [J] after k further steps."""
        at = torch.tensor([[float(k)]]).to(self._first)
        turned = powers(self._tau_rates, at)[0] * self._first
        turned = turned + (divided_powers(self._tau_rates, self._thetas, at[0]) * self._weights.mT).sum(1)
        found = (self._vectors @ turned) * self._drift / self._roots
        r = len(self._modes.drift)
        return found[:r], None if self._bulk is None else found[r:]

    def _loss_of_a_step(self) -> Tensor:
        """1 - T."""
        modes, lr, q, h = self._modes, self._lr, self._q, self._drift
        rows = modes.examples.by_example
        if modes.n_outputs == 1:
            squares = modes.vectors.square()
            coupling = squares.mT @ squares
        else:
            coupling = sum((some.mT @ some).square().sum(0) for some in rows.split(EXAMPLES))
        if self._bulk is not None:
            density, size = self._bulk.density, len(modes.vectors)
            across = (density @ rows.square().sum(1) / size)[:, None].expand(-1, len(self._bulk.counts))
            own = modes.n_outputs * density.square().sum() / size**2
            corner = own * torch.ones(2 * [across.shape[1]]).to(across)
            coupling = torch.cat([torch.cat([coupling, across], 1), torch.cat([across.mT, corner], 1)])
        f = self._roots * h
        pushed = lr**2 * q * modes.n_train * f[:, None] * coupling * f
        rate = lr * (h + self._decay)
        return (rate * (2 - rate) + lr**2 * q * h.square()).diag() - (pushed + pushed.mT) / 2

    def _source(self, k: int) -> Tensor:
        """sigma_k of the modes and the bulk."""
        modes, mean = self._modes, self.mean(k)
        blocks = modes.mean_blocks(mean)
        if modes.n_outputs == 1:
            seen = modes.vectors.square().mT @ blocks.flatten()
        else:
            seen = ((blocks @ modes.examples.by_example) * modes.examples.by_example).sum((0, 1))
        energy = modes.n_train * seen - mean.square().sum(1)
        if self._bulk is not None:
            of_bulk = self._bulk.density @ blocks.diagonal(dim1=1, dim2=2).sum(1) / modes.n_outputs
            energy = torch.cat([energy, of_bulk.expand(len(self._bulk.drift))])
        return self._lr**2 * self._roots * self._drift * (self._q * energy + self._labels)

    def _fit(self, horizon: int) -> tuple[Tensor, Tensor]:
        """Rates 1 - theta_j, [N], and sigma^ [N, r + J].

        Raises:
            NoFitError: the error at the steps held out is too large.
        """
        like, lowest = self._drift, LOWEST / horizon
        count = max(2, round(PER_DECADE * math.log10(FASTEST / lowest)))
        places = torch.linspace(0, 1, count, dtype=like.dtype, device=like.device)
        rates = torch.cat([like.new_zeros(1), lowest * (FASTEST / lowest) ** places])
        dense = SAMPLES * count
        steps = sorted({round((horizon + 1) ** (i / dense)) - 1 for i in range(dense + 1)})
        sampled = torch.stack([self._source(k) for k in steps])
        sizes = sampled.abs().sum(1, keepdim=True)
        sizes = torch.maximum(sizes, RELATIVE_DOWN_TO * sizes[0]).clamp_min(torch.finfo(like.dtype).tiny)
        design = powers(rates, like.new_tensor(steps)[:, None]) / sizes
        wanted, held_out = sampled / sizes, torch.arange(len(steps)) % 3 == 1
        left, singular, right = torch.linalg.svd(design[~held_out], full_matrices=False)
        inverse = torch.where(singular > SMALLEST * singular[0], 1 / singular, 0.0)
        weights = right.mT @ (inverse[:, None] * (left.mT @ wanted[~held_out]))
        if not float((design @ weights - wanted).abs().sum(1).max()) <= GOOD_ENOUGH:
            raise NoFitError
        return rates, weights


def jumps_pay(modes: Modes, sgd: SGD, n_steps: int) -> bool:
    """Whether jumps can represent this SGD, and cost less than its steps."""
    if not sgd.is_constant or sgd.momentum or modes.values.dtype != torch.float64 or bool((modes.values <= 0).any()):
        return False
    size, r, c = len(modes.vectors), len(modes.values), modes.n_outputs
    bulk = 0 if modes.bulk is None else len(modes.bulk.values)
    step = size * r * (4 * c + 2 * modes.n_columns)
    return n_steps > 500 + (2 * size * c * r**2 + 12 * (r + bulk) ** 3) / step
