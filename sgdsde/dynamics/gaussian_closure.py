"""Mean and covariance of minibatch SGD on the linearized model under any twice-differentiable loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.base import Covariance, Dynamics, OutputLaw
from sgdsde.dynamics.update import Update, update
from sgdsde.linearization import Linearization
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.gaussian import GaussianMoments, gaussian_moments
from sgdsde.sgd import SGD, StepPlan

DOUBTFUL, HOPELESS = 0.03, 0.5
"""Curved share (see ``GaussianClosure``) from which on it warns, and raises. Measured: docs/derivations.md."""


class ClosureWarning(UserWarning):
    """The law of the outputs is too far from Gaussian for the closure; the message says how far."""


@dataclass(frozen=True)
class GaussianClosure(Dynamics):
    """Any loss with a second derivative: the law of the outputs f = f_0 + K w is taken as Gaussian at every step,

        m' = m - (lr/n) K E r
        S' = A S A^T + (phi lr^2 / B) K [D(R)/n - R/n^2] K + (lr/n)^2 K D(Cov(r) - G S G) K,   A = I - (lr/n) K G

    with m the mean, S the covariance, r the loss's gradient, G = E[Hessian] (block-diagonal), all expectations under
    N(m_i, S_ii), and R = E[r r^T]: exact in its diagonal blocks, E r_i E r_j^T + G_i S_ij G_j elsewhere. By Stein's
    lemma E[r_i (f_i - m_i)^T] = G_i S_ii, so A is the best linear map and not a derivative at the mean. Nothing in it
    is larger than the loss's own gradient and Hessian.

    How far it can be trusted is known while it runs: the curved share

        tr D(Cov(r) - G S G) / tr D(R)

    is what no linear map of f explains of the gradient, 0 for squared error. The error of the loss was at most 0.2 % and
    1.5 times it in what was measured: cross-entropy of 3 and 10 classes, logistic, Huber and Poisson losses.

    Exactness: for squared error that of ``MomentRecursion``. For others, against SGD of the model that is linear in its
        parameters, the loss is within 0.1 % while the curved share is below 0.0005 (outputs spread by 0.4), within 3 %
        while it is below 0.03 (by 1.5). The spread of the LOSS comes from draws of the Gaussian law.
    Warns:
        ClosureWarning: the curved share exceeds 0.03. Raises ValueError beyond 0.5, where the closure may explode.
    Cost: two products [d, d] x [d, d] a step (three with momentum), d = n c; 6 to 10 d^2 numbers. ``SDEPaths`` with P
        paths costs less beyond d = P/2.
    """

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.sampling == "shuffled":
            raise self.refuse("shuffled epochs", "run_ensemble(linearization, ...) or an i.i.d. sampling")
        if sgd.label_noise_std:
            raise self.refuse("label noise", "label_noise_std=0, or MomentRecursion under squared error")
        if sgd.weight_decay and linearization.weight_outputs is None:
            raise self.refuse("weight decay without weight_outputs", "linearize(problem), or weight_decay=0")
        linearization.problem.criterion.hessian(linearization.outputs[:1], linearization.targets[:1])
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        return self._evolve(ClosureState(linearization, sgd, plan), plan, record, progress)

    def _evolve(
        self, state: ClosureState, plan: StepPlan, record: Sequence[int], progress: Progress
    ) -> Iterator[OutputLaw]:
        times, wanted = plan.times, set(record)
        ticks = ticker(progress, record[-1], "gaussian closure")
        for k in range(record[-1] + 1):
            if k in wanted:
                yield state.law(k, float(times[k]))
            if k < record[-1]:
                state.advance(k)
                self._check(state, k)
                ticks.update(1)
        ticks.close()
        if state.curved_share > DOUBTFUL:
            warnings.warn(
                f"the loss bends within the spread of the outputs: at step {state.most_curved} a share of "
                f"{state.curved_share:.3g} of its gradient's second moment is beyond a Gaussian closure (below "
                f"{DOUBTFUL:g} the loss is within about 3 %); expect an error of {100 * state.curved_share:.2g} % or "
                "more near that step, and hold it against run_ensemble(linearization, ...)",
                ClosureWarning,
                stacklevel=3,
            )

    def _check(self, state: ClosureState, step: int) -> None:
        if not state.curved_share <= HOPELESS:
            raise self.refuse(
                f"this spread of the outputs: at step {step} a share of {state.curved_share:.3g} of the second moment "
                f"of the loss's gradient is beyond a Gaussian closure, {HOPELESS:g} at most",
                "run_ensemble(linearization, ...), SDEPaths(), a smaller lr or a larger batch_size",
            )


class ClosureState:
    """Mean and covariance of (w, u), displacement of the weights and momentum buffer seen through J^T, [d] each.

    Attributes:
        curved_share, most_curved: the largest so far, and its step.
    """

    def __init__(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        self._linearization, self._sgd, self._plan = linearization, sgd, plan
        problem = linearization.problem
        self._n, self._c = problem.n_train, problem.n_outputs
        self._kernel, self._cross_kernel = linearization.dense_kernel, linearization.dense_cross_kernel
        d = len(self._kernel)
        self._w, self._u = self._kernel.new_zeros(d), self._kernel.new_zeros(d)
        self._factor, self._factor_buffer = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self._blocks: dict[str, Tensor] = {}
        self.curved_share, self.most_curved = 0.0, 0
        self._grams: dict[str, Tensor] = {}

    def advance(self, k: int) -> None:
        """The update k -> k + 1."""
        lr, noise_factor = float(self._plan.lr[k]), self._plan.noise_factor(k)
        step = update(self._sgd, self._kernel.new_zeros(1), lr=lr, first=k == 0)
        moved = self._kernel @ self._blocks["ww"] if self._blocks else None
        moments = self._moments(moved, k)
        slope = moments.gradient.flatten() / self._n + self._sgd.weight_decay * self._w
        if noise_factor and not self._blocks:
            names = ("ww", "wu", "uu") if self._sgd.momentum else ("ww",)
            self._blocks = {name: torch.zeros_like(self._kernel) for name in names}
            moved = torch.zeros_like(self._kernel)
        if moved is not None:
            self._advance_covariance(step, moments, moved, noise_factor)
        self._w, self._u = self._w + step.eu * self._u + step.e_gain * slope, step.uu * self._u + step.u_gain * slope
        if self._sgd.weight_decay:
            slope = self._sgd.weight_decay * self._factor
            change = step.eu * self._factor_buffer + step.e_gain * slope
            self._factor, self._factor_buffer = (
                self._factor + change,
                step.uu * self._factor_buffer + step.u_gain * slope,
            )

    def law(self, step: int, time: float) -> OutputLaw:
        """The Gaussian law of all outputs now."""
        linearization = self._linearization
        train = self._mean(linearization.outputs, linearization.weight_outputs, self._kernel)
        law = OutputLaw(step, time, train, self._covariance("train", self._kernel))
        test, cross = linearization.test_outputs, linearization.dense_cross_kernel
        if test is None or cross is None:
            return law
        mean = self._mean(test, linearization.test_weight_outputs, cross)
        return OutputLaw(
            step, time, train, law.covariance, test_mean=mean, test_covariance=self._covariance("test", cross)
        )

    def _mean(self, outputs: Tensor, weight_outputs: Tensor | None, kernel: Tensor) -> Tensor:
        if self._sgd.weight_decay and weight_outputs is not None:
            outputs = outputs + float(self._factor - 1) * weight_outputs
        return outputs + (kernel @ self._w).view_as(outputs)

    def _covariance(self, side: str, kernel: Tensor) -> Covariance | None:
        if not self._blocks:
            return None
        if side not in self._grams:
            self._grams[side] = kernel.mT @ kernel
        return Covariance(kernel, self._blocks["ww"], self._grams[side])

    def _moments(self, moved: Tensor | None, k: int) -> GaussianMoments:
        """Expectations under the present law; ``moved`` is K Cov(w), None while nothing has spread."""
        linearization, criterion = self._linearization, self._linearization.problem.criterion
        mean = self._mean(linearization.outputs, linearization.weight_outputs, self._kernel)
        if moved is None:
            gradient = criterion.gradient(mean, linearization.targets)
            moment = gradient[:, :, None] * gradient[:, None, :]
            return GaussianMoments(gradient, criterion.hessian(mean, linearization.targets), moment)
        shape = (self._n, self._c, -1)
        blocks = moved.view(shape) @ self._kernel.view(shape).mT
        if not torch.isfinite(blocks).all():
            raise ValueError(f"the covariance of the outputs must stay finite, got NaN or infinity at step {k}")
        blocks = (blocks + blocks.mT) / 2
        moments = gaussian_moments(criterion, mean, blocks, linearization.targets)
        self._watch(moments, blocks, k)
        return moments

    def _watch(self, moments: GaussianMoments, blocks: Tensor, k: int) -> None:
        mean, hessian = moments.gradient, moments.hessian
        total = moments.gradient_moment.diagonal(dim1=1, dim2=2).sum()
        explained = mean.square().sum() + ((hessian @ blocks) * hessian).sum()
        share = float(1 - explained / total) if total > 0 else 0.0
        if not share <= self.curved_share:
            self.curved_share, self.most_curved = share, k

    def _advance_covariance(self, step: Update, moments: GaussianMoments, moved: Tensor, noise_factor: float) -> None:
        """With g the gradient of a step: Cov(g, w), Cov(g, u) and Cov(g) move the blocks of (w, u)."""
        decay, ww = self._sgd.weight_decay, self._blocks["ww"]
        pulled = self._weighted(moments.hessian, moved)
        gw = pulled / self._n + decay * ww
        gg = self._gradient_covariance(moments, moved, noise_factor)
        if decay:
            gg += (decay / self._n) * (pulled + pulled.mT) + decay**2 * ww
        p, q, a, b = step.e_gain, step.u_gain, step.eu, step.uu
        new = ww + p * (gw + gw.mT) + p**2 * gg
        if self._sgd.momentum:
            wu, uu = self._blocks["wu"], self._blocks["uu"]
            gu = self._weighted(moments.hessian, self._kernel @ wu) / self._n + decay * wu
            new += a * (wu + wu.mT) + a * p * (gu + gu.mT) + a**2 * uu
            self._blocks["wu"] = b * wu + q * gw.mT + a * b * uu + a * q * gu.mT + p * b * gu + p * q * gg
            self._blocks["uu"] = b**2 * uu + b * q * (gu + gu.mT) + q**2 * gg
        self._blocks["ww"] = (new + new.mT) / 2

    def _gradient_covariance(self, moments: GaussianMoments, moved: Tensor, noise_factor: float) -> Tensor:
        """(1 - q)/n^2 Cov(r) + q (D(R)/n - E r E r^T / n^2), q = phi/B: what the law's spread and the batch do to g."""
        n, mean = self._n, moments.gradient
        own = moments.gradient_moment - mean[:, :, None] * mean[:, None, :]
        if noise_factor == 1:
            total = torch.zeros_like(moved)
        else:
            spread = self._weighted(moments.hessian, moved @ self._kernel)
            total = self._weighted(moments.hessian, spread.mT) * ((1 - noise_factor) / n**2)
            diagonal_blocks(total, self._c).copy_(own * ((1 - noise_factor) / n**2))
        total.addr_(mean.flatten(), mean.flatten(), alpha=-noise_factor / n**2)
        diagonal_blocks(total, self._c).add_(moments.gradient_moment, alpha=noise_factor / n)
        return total

    def _weighted(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        """A block-diagonal matrix times a matrix [d, .]."""
        return (blocks @ matrix.view(self._n, self._c, -1)).view_as(matrix)
