"""How far a prediction on a truncated eigenbasis can be from the one on all of it.

K = K_r + K_t, leading pairs and tail. The truncated dynamics leaves the tail e_t of the residual where it is. Run both
on the same batches; let the true residual be the truncated one plus d + z, d in the leading directions, z in the tail:

    d' = d - lr s K_r ((d + z) o w),      z' = z - lr s K_t ((e_trunc + d + z) o w),     w the batch's weights

with E w = 1/n. The mean of d is 0 and that of z is known up to the eigenvalues of K_t, which lie in [0, l_t]. What
remains is bounded: D = E d d^T by a recursion like that of the covariance, driven by what is known of z; z by traces
and by k_i, the largest eigenvalue of the tail's diagonal block of example i. See docs/derivations.md, section 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sgdsde.dynamics.dynamics import NoiseSource
from sgdsde.dynamics.moments.modal_state import ModalMean, Spread
from sgdsde.dynamics.moments.modes import Modes
from sgdsde.dynamics.moments.state import march
from sgdsde.kernel import KernelOperator, KroneckerKernel, leading_eigenpairs
from sgdsde.kernel.eigenbasis import Tail
from sgdsde.linearization import Linearization
from sgdsde.noise.example_blocks import times_blocks
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step

GRID = 64
"""Eigenvalues between 0 and the largest of the tail at which the response of its modes is evaluated."""


def truncation_error(
    linearization: Linearization, sgd: SGD, record: Sequence[int], *, noise: NoiseSource = "state"
) -> Tensor | None:
    """A bound on how much truncation changes the expected training loss at the steps of ``record``, [T], or None.

    Exactness: a bound for SGD's own second moments (``MomentRecursion``), up to the residuals of the eigenpairs; with
        momentum or decay the response of the tail is evaluated on a grid of eigenvalues. Of differential equations,
        whose moments differ by O(lr), it is a bound to that order. It says nothing where it exceeds the loss.
    Cost: twice ``MomentRecursion`` where the noise follows the state, as much as it at the mean, else next to nothing.
    """
    kernel, basis = linearization.kernel, linearization.basis
    if basis is None or basis.tail is None:
        return None
    # Of K_0 (x) I_c everything is summed over outputs and bounded as for one output: the loss is the same.
    modes = Modes.shared(linearization) if isinstance(kernel, KroneckerKernel) else Modes.of(linearization)
    bound = _Bound(modes, basis.tail, sgd, sgd.plan(modes.n_train, record[-1]), noise)
    errors = [bound.error() for _ in march(bound, record, "bound on the truncation")]
    return torch.tensor(errors, dtype=torch.float64)


class _Bound:
    """The truncated mean and covariance, D, and what is known of the tail."""

    def __init__(self, modes: Modes, tail: Tail, sgd: SGD, plan: StepPlan, source: NoiseSource) -> None:
        self._modes, self._sgd, self._plan, self._source = modes, sgd, plan, source
        self._mean = ModalMean(modes, sgd)
        self._spread = Spread.zero(modes.values, with_buffer=sgd.momentum > 0)
        self._difference = Spread.zero(modes.values, with_buffer=sgd.momentum > 0)
        self._tail = _TailMoments(modes, tail, sgd, plan)

    def error(self) -> float:
        """In units of the loss: |E |e|^2 - E |e_trunc|^2| is at most 2 sum_i sqrt(S_ii D_ii) + tr D, and the tail's."""
        spread, difference = (part.ee.diagonal().clamp_min(0) for part in (self._spread, self._difference))
        values, weights = self._modes.values, self._tail.weights
        cross, own = float((spread * difference).sqrt().sum()), float(difference.sum())
        if math.isfinite(weights):  # E |theta - theta_trunc - mean|^2 bounds every mode of d, and all of them together
            difference = difference.minimum(values * weights)
            cross = min(float((spread * difference).sqrt().sum()), float((spread * values).sum() * weights) ** 0.5)
            own = min(float(difference.sum()), float(values.max()) * weights)
        leading = 2 * cross + own
        total = self._modes.loss_curvature / (2 * self._modes.n_train) * (leading + self._tail.change())
        return total if math.isfinite(total) else math.inf

    def advance(self, k: int) -> None:
        """One step of the plan."""
        lr, sgd = float(self._plan.lr[k]), self._sgd
        step = Step.of(sgd, lr, first=k == 0)
        modal = step.modal(self._modes.drift)
        noise, difference = self._noises(self._plan.noise_factor(k), lr)
        if sgd.label_noise_std:
            variance = self._modes.n_columns * sgd.label_noise_std**2 / int(self._plan.batch_size[k])
            noise = self._modes.noise.add_labels(noise, variance)
            self._tail.add_labels(variance)
        self._spread.advance(modal, noise)
        self._difference.advance(modal, difference)
        self._mean.advance(step, modal)
        self._tail.advance(k)

    def _noises(self, factor: float, lr: float) -> tuple[Tensor | None, Tensor | None]:
        """Covariances [r, r] of one step's gradient, of the truncated dynamics and of d."""
        if factor == 0 or self._source == "none":
            return None, None
        mean = self._modes.mean_blocks(self._modes.start if self._source == "start" else self._mean.e)
        if self._source == "start":  # the same noise in both; the tail takes what passes through K_t
            nothing = torch.zeros_like(_energy(mean))
            self._tail.add_noise(_energy(mean), nothing, nothing, factor, lr)
            return None, None
        moved = self._tail.mean_squares()
        if self._source == "mean":
            self._tail.add_noise(_energy(mean), moved.sqrt(), torch.zeros_like(moved), factor, lr)
            forced = moved[:, None, None] * torch.eye(self._modes.n_outputs).to(mean)
            return None, self._modes.noise.of(forced, torch.zeros_like(self._difference.ee), factor)
        blocks = mean + self._modes.examples.of(self._spread.ee)
        difference = self._modes.examples.of(self._difference.ee)
        variances = self._tail.variances()
        others = _energy(difference).sqrt() + (self._modes.n_outputs * variances).sqrt()
        self._tail.add_noise(_energy(blocks), moved.sqrt(), others, factor, lr)
        moment = torch.addmm(self._spread.ee, self._mean.e, self._mean.e.mT)
        forced = difference + _mixed(difference, moved + variances)
        own = self._modes.noise.of(blocks, moment, factor)
        return own, self._modes.noise.of(forced, self._difference.ee.clone(), factor)


def _energy(blocks: Tensor) -> Tensor:
    """The trace of every example's block, [n]."""
    return blocks.diagonal(dim1=1, dim2=2).sum(1).clamp_min(0)


def _mixed(blocks: Tensor, squares: Tensor) -> Tensor:
    """eps D + (1 + 1/eps) v I of every example, at the eps that makes its trace smallest: D [n, c, c], v [n]."""
    c = blocks.shape[1]
    size = _energy(blocks) / c
    share = torch.where(size > 0, (squares / size.clamp_min(torch.finfo(size.dtype).tiny)).sqrt(), 0.0)
    identity = torch.eye(c, dtype=blocks.dtype, device=blocks.device)
    return share[:, None, None] * blocks + (squares + (squares * size).sqrt())[:, None, None] * identity


class _Sharpness(KernelOperator):
    """K_r/n + (phi/B) D(K_r): what a step of minibatch SGD sees of the curvature."""

    def __init__(self, modes: Modes, blocks: Tensor, factor: float) -> None:
        self._modes, self._blocks, self._factor = modes, blocks, factor
        self.shape = (len(modes.vectors), len(modes.vectors))
        self.dtype, self.device = modes.vectors.dtype, modes.vectors.device

    def product(self, vectors: Tensor) -> Tensor:
        low_rank = self._modes.vectors @ (self._modes.values[:, None] * (self._modes.vectors.mT @ vectors))
        return low_rank / self._modes.n_train + self._factor * times_blocks(self._blocks, vectors)

    def diag(self) -> Tensor:
        return self.diagonal_blocks(self._modes.n_outputs).diagonal(dim1=1, dim2=2).flatten()

    def diagonal_blocks(self, n_outputs: int) -> Tensor:
        assert n_outputs == self._modes.n_outputs
        return (1 / self._modes.n_train + self._factor) * self._blocks


class _TailMoments:
    """Bounds on the mean and the covariance of z.

    The mean responds to its start as a mode with eigenvalue h in [0, h_t] does, for the worst h. Its covariance comes
    from the noise of every step, whatever share of it decays again. Two bounds on it, both in units in which l_t times
    it is a trace and k_i times it the block of example i: ``_direct`` counts what passes through K_t, feeding back what
    it has made; ``weights`` is E |theta - theta_trunc - mean|^2, in which SGD contracts up to a learning rate, so that
    nothing feeds back.
    """

    def __init__(self, modes: Modes, tail: Tail, sgd: SGD, plan: StepPlan) -> None:
        self._tail, self._sgd, self._plan = tail, sgd, plan
        n, c, self._s = modes.n_train, modes.n_outputs, modes.loss_curvature
        self._n, self._c = n, c
        self._starts = [modes.residual(torch.zeros_like(modes.start)).view(n, -1)]
        grid = modes.values.new_tensor([0, 1e-6, *(i / GRID for i in range(1, GRID + 1))])
        self._grid = self._s / n * tail.largest * grid
        self._response, self._offset = torch.ones_like(self._grid)[:, None], None
        if sgd.weight_decay:
            weights = modes.linearization.weight_outputs
            assert weights is not None  # Modes.decay_offset has looked
            columns = weights.reshape(len(modes.vectors), -1)
            self._starts.append((columns - modes.vectors @ modes.weight_outputs).view(n, -1))
            self._response = torch.stack([torch.ones_like(self._grid), torch.zeros_like(self._grid)], 1)
            self._offset = self._grid.new_tensor([[-sgd.weight_decay, sgd.weight_decay]])
        self._buffer = torch.zeros_like(self._response)
        self._gain = (float(plan.lr.max()) if len(plan) else 0.0) / (1 - sgd.momentum)
        self._modes, self._blocks = modes, modes.examples.of_product(modes.vectors * modes.values)
        self._own = torch.linalg.eigvalsh(self._blocks)[:, -1].clamp_min(0) + tail.example
        self._sharpest: dict[float, float] = {}
        self._direct, self.weights, self._labels = 0.0, 0.0, 0.0

    def advance(self, k: int) -> None:
        step = Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0).modal(self._grid)
        self._response, self._buffer = step.move(self._response, self._buffer, self._offset)

    def add_noise(self, energy: Tensor, moved: Tensor, others: Tensor, factor: float, lr: float) -> None:
        """One step's noise, from E |e_trunc|^2, |E z|, and what else of the true residual it sees, [n] each."""
        unit, tail = self._s**2 * factor / self._n, self._tail.example
        self._direct += self._gain**2 * unit * float(tail @ (energy.sqrt() + moved + others).square())
        kept = 1 - lr * self._sgd.weight_decay
        share = lr * self._s / 2 * self._sharpness(factor)
        if share < kept and self._sgd.momentum == 0:
            mean = min(float((self._own * moved.square()).sum()), float(self._own.max()) * self._length() ** 2)
            pushed = (float(tail @ energy) ** 0.5 + mean**0.5) ** 2
            self.weights += lr**2 * unit * pushed / (1 - share / kept)
        else:
            self.weights = math.inf

    def _sharpness(self, factor: float) -> float:
        """No eigenvalue of K/n + (phi/B) D(K) is larger."""
        if factor not in self._sharpest:
            seen = _Sharpness(self._modes, self._blocks, factor)
            found = leading_eigenpairs(seen, 1, tolerance=1e-5)
            largest = float(found.values[0] + found.residuals[0])
            rest = self._tail.largest / self._n + factor * float(self._tail.example.max())
            self._sharpest[factor] = largest + rest
        return self._sharpest[factor]

    def add_labels(self, variance: float) -> None:
        """One step's label noise, of this variance over the batch size."""
        added = self._gain**2 * variance * self._s**2 / self._n
        self._labels += added
        self.weights += added * self._tail.trace

    def variances(self) -> Tensor:
        """No eigenvalue of the covariance's block of an example is larger, [n]."""
        noise = min(self._direct, self.weights) + self._tail.largest * self._labels
        return (self._tail.example * noise).clamp_max(self._trace())

    def mean_squares(self) -> Tensor:
        """The squared length of the mean of z at an example is no larger, [n]."""
        lengths, most = torch.zeros_like(self._tail.example), self._length()
        for start, deviation in zip(self._starts, self._deviations()):
            slope = float(((deviation[1:] - deviation[0]).abs() / self._grid[1:]).max())
            spread = (self._tail.example * self._tail.largest).sqrt() * (
                self._s / self._n * slope * float(start.norm())
            )
            lengths = lengths + deviation[0].abs() * start.norm(dim=1) + spread
        return lengths.clamp_max(most).square()

    def change(self) -> float:
        """Bound on |E |e_t + z|^2 - |e_t|^2|."""
        still, moved = float(self._starts[0].norm()), self._length()
        kept = self._response[:, 0]
        if float(kept.abs().max()) > 1 + 1e-9:
            return math.inf
        if self._sgd.weight_decay:
            return 2 * still * moved + moved**2 + self._trace()
        return max(still**2 * float((1 - kept.square()).max()), self._trace())

    def _trace(self) -> float:
        """Bound on the trace of the covariance of z."""
        return self._tail.largest * (min(self._direct, self.weights) + self._tail.trace * self._labels)

    def _length(self) -> float:
        """Bound on the length of the mean of z."""
        sizes = [float(deviation.abs().max()) for deviation in self._deviations()]
        return sum(size * float(start.norm()) for size, start in zip(sizes, self._starts))

    def _deviations(self) -> list[Tensor]:
        """The change of every start, by eigenvalue."""
        first, *others = self._response.unbind(1)
        return [first - 1, *others]
