"""What the Gaussian closure steps: mean and covariance of weights and momentum buffer, seen through the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sgdsde.dynamics.moving_kernel.epochs import EpochFluctuation
from sgdsde.dynamics.moving_kernel.weight_subspace import Features
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.dynamics.update import Update, update
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.gaussian import GaussianMoments, gaussian_moments
from sgdsde.sgd import SGD, StepPlan


class ClosureState(ABC):
    """Mean and law of the outputs f = f_0 + (g - 1) J theta_0 + K w, w [d] the displacement of the weights.

    Attributes:
        curved_share, most_curved: the largest share so far (``GaussianClosure``), and its step.
    """

    def __init__(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        self._linearization, self._sgd, self._plan = linearization, sgd, plan
        problem = linearization.problem
        self._n, self._c = problem.n_train, problem.n_outputs
        self._kernel, self._cross_kernel = linearization.dense_kernel, linearization.dense_cross_kernel
        self._w = self._kernel.new_zeros(len(self._kernel))
        self._u = torch.zeros_like(self._w)
        self._factor, self._factor_buffer = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.curved_share, self.most_curved = 0.0, 0

    @abstractmethod
    def advance(self, k: int) -> None:
        """The update k -> k + 1."""

    @abstractmethod
    def covariances(self) -> tuple[Covariance | None, Covariance | None]:
        """Of train and test outputs; None while nothing has spread, or without a test set."""

    def law(self, step: int, time: float) -> OutputLaw:
        """The Gaussian law of all outputs now."""
        linearization = self._linearization
        mean, (train, test) = self.train_mean(), self.covariances()
        if linearization.test_outputs is None or self._cross_kernel is None:
            return OutputLaw(step, time, mean, train)
        test_mean = self._mean(linearization.test_outputs, linearization.test_weight_outputs, self._cross_kernel)
        return OutputLaw(step, time, mean, train, test_mean=test_mean, test_covariance=test)

    def train_mean(self) -> Tensor:
        """m, [n, c]."""
        return self._mean(self._linearization.outputs, self._linearization.weight_outputs, self._kernel)

    def update_at(self, k: int) -> Update:
        """torch's step without its drift, which is not diagonal here."""
        return update(self._sgd, self._kernel.new_zeros(1), lr=float(self._plan.lr[k]), first=k == 0)

    def advance_mean(self, step: Update, output_gradient: Tensor) -> None:
        """One step of the mean under the expected gradient at the outputs [n, c]."""
        decay = self._sgd.weight_decay
        slope = output_gradient.flatten() / self._n + decay * self._w
        self._w, self._u = self._w + step.eu * self._u + step.e_gain * slope, step.uu * self._u + step.u_gain * slope
        if decay:
            slope = decay * self._factor
            self._factor = self._factor + step.eu * self._factor_buffer + step.e_gain * slope
            self._factor_buffer = step.uu * self._factor_buffer + step.u_gain * slope

    def expectations(self, blocks: Tensor | None, k: int) -> GaussianMoments:
        """Of the loss's derivatives under the present law with covariances S_ii [n, c, c], None before any noise."""
        criterion, mean, targets = self._linearization.problem.criterion, self.train_mean(), self._linearization.targets
        if blocks is None:
            gradient = criterion.gradient(mean, targets)
            moment = gradient[:, :, None] * gradient[:, None, :]
            return GaussianMoments(gradient, criterion.hessian(mean, targets), moment)
        if not torch.isfinite(blocks).all():
            raise ValueError(f"the covariance of the outputs must stay finite, got NaN or infinity at step {k}")
        blocks = (blocks + blocks.mT) / 2
        moments = gaussian_moments(criterion, mean, blocks, targets)
        total = moments.gradient_moment.diagonal(dim1=1, dim2=2).sum()
        explained = moments.gradient.square().sum() + ((moments.hessian @ blocks) * moments.hessian).sum()
        share = float(1 - explained / total) if total > 0 else 0.0
        if not share <= self.curved_share:
            self.curved_share, self.most_curved = share, k
        return moments

    def _mean(self, outputs: Tensor, weight_outputs: Tensor | None, kernel: Tensor) -> Tensor:
        if self._sgd.weight_decay and weight_outputs is not None:
            outputs = outputs + float(self._factor - 1) * weight_outputs
        return outputs + (kernel @ self._w).view_as(outputs)


class IndependentBatches(ClosureState):
    """Covariance of (w, u), momentum buffer included, in blocks [d, d]; f - m = K (w - mean w)."""

    def __init__(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        super().__init__(linearization, sgd, plan)
        self._blocks: dict[str, Tensor] = {}
        self._grams: list[Tensor] = []

    def advance(self, k: int) -> None:
        step, noise_factor = self.update_at(k), self._plan.noise_factor(k)
        moved = self._kernel @ self._blocks["ww"] if self._blocks else None
        shape, blocks = (self._n, self._c, -1), None
        if moved is not None:
            blocks = moved.view(shape) @ self._kernel.view(shape).mT
        moments = self.expectations(blocks, k)
        if moved is None and (noise_factor or self._sgd.label_noise_std):
            names = ("ww", "wu", "uu") if self._sgd.momentum else ("ww",)
            self._blocks = {name: torch.zeros_like(self._kernel) for name in names}
            moved = torch.zeros_like(self._kernel)
        if moved is not None:
            gradient = self._gradient_covariance(moments, moved, noise_factor)
            if self._sgd.label_noise_std:
                gradient.diagonal().add_(self._label_variance(k))
            self._advance_covariance(step, moments, moved, gradient)
        self.advance_mean(step, moments.gradient)

    def covariances(self) -> tuple[Covariance | None, Covariance | None]:
        if not self._blocks:
            return None, None
        factors = [self._kernel] if self._cross_kernel is None else [self._kernel, self._cross_kernel]
        if not self._grams:
            self._grams = [factor.mT @ factor for factor in factors]
        train, *test = [Covariance(factor, self._blocks["ww"], gram) for factor, gram in zip(factors, self._grams)]
        return train, test[0] if test else None

    def _advance_covariance(self, step: Update, moments: GaussianMoments, moved: Tensor, gg: Tensor) -> None:
        """With g the gradient of a step: Cov(g, w), Cov(g, u) and Cov(g) move the blocks of (w, u)."""
        decay, ww = self._sgd.weight_decay, self._blocks["ww"]
        pulled = self._weighted(moments.hessian, moved)
        gw = pulled / self._n + decay * ww
        if decay:
            gg = gg + (decay / self._n) * (pulled + pulled.mT) + decay**2 * ww
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
        total = torch.zeros_like(moved)
        if noise_factor != 1:
            spread = self._weighted(moments.hessian, moved @ self._kernel)
            total = self._weighted(moments.hessian, spread.mT)
            own = moments.gradient_moment - mean[:, :, None] * mean[:, None, :]
            diagonal_blocks(total, self._c).copy_(own)
            total *= (1 - noise_factor) / n**2
        total.addr_(mean.flatten(), mean.flatten(), alpha=-noise_factor / n**2)
        diagonal_blocks(total, self._c).add_(moments.gradient_moment, alpha=noise_factor / n)
        return total

    def _label_variance(self, k: int) -> float:
        criterion = self._linearization.problem.criterion
        assert isinstance(criterion, SquaredError)
        return (criterion.curvature * self._sgd.label_noise_std) ** 2 / (self._n * float(self._plan.batch_size[k]))

    def _weighted(self, blocks: Tensor, matrix: Tensor) -> Tensor:
        """A block-diagonal matrix times a matrix [d, .]."""
        return (blocks @ matrix.view(self._n, self._c, -1)).view_as(matrix)


class ShuffledEpochs(ClosureState):
    """Covariance of weights and buffer in the eigenbasis of K, conditional on which examples are still to come."""

    def __init__(self, linearization: Linearization, sgd: SGD, plan: StepPlan) -> None:
        super().__init__(linearization, sgd, plan)
        basis = linearization.eigenbasis
        roots = basis.values.sqrt()
        test = None if self._cross_kernel is None else (self._cross_kernel @ basis.vectors) / roots
        self._features = Features(basis.vectors * roots, test)
        self._fluctuation = EpochFluctuation(
            linearization.problem, sgd, plan, size=len(roots), dtype=self._kernel.dtype
        )

    def advance(self, k: int) -> None:
        blocks = None
        if self._fluctuation.size > 0:
            rows = self._features.train.view(self._n, self._c, -1)
            blocks = (self._features.train @ self._fluctuation.weights).view_as(rows) @ rows.mT
        moments = self.expectations(blocks, k)
        gradient = self._fluctuation.output_gradient(k, moments, self._features)
        self._fluctuation.advance(k, self._features, moments)
        self.advance_mean(self.update_at(k), gradient)

    def covariances(self) -> tuple[Covariance | None, Covariance | None]:
        if self._fluctuation.size == 0:
            return None, None
        train, test = (
            None if factor is None else Covariance(factor, self._fluctuation.weights, factor.mT @ factor)
            for factor in (self._features.train, self._features.test)
        )
        return train, test
