"""Covariance of the weights around their mean path, in a few directions, step by step."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde.dynamics.moving_kernel.weight_subspace import Features
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.dynamics.update import Update, update
from sgdsde.losses import SquaredError
from sgdsde.noise.gaussian import GaussianMoments, gaussian_moments
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan


class Fluctuation:
    """S = Cov(z), z = (a, b): weights V^T a and momentum buffer V^T b around their means. I.i.d. batches.

        S' = G S G^T + nu nu^T (x) Phi^T [(phi/B) (D(R)/n - R'/n^2) + (1 - phi/B) D(R - R')/n^2] Phi
        G = G_0 (x) I + nu (x) (1/n) Phi^T E[G] Phi [I 0],     R' = E r E r^T + E[G] S_ff E[G],   S_ff = Phi S_aa Phi^T

    G_0 and nu are those of ``dynamics.update`` (decay included); R_i = E r_i r_i^T, E r_i and E G_i are expectations of
    the derivatives of the loss over the Gaussian law of the outputs (``dynamics.GaussianClosure``). For squared error
    R and R' have the same diagonal blocks.
    """

    def __init__(self, problem: Problem, sgd: SGD, plan: StepPlan, *, size: int, dtype: torch.dtype) -> None:
        self._problem, self._sgd, self._plan = problem, sgd, plan
        self._n, self._c = problem.n_train, problem.n_outputs
        self._parts = 2 if sgd.momentum else 1
        self.covariance = torch.zeros(self._parts * size, self._parts * size, dtype=dtype, device=problem.device)
        targets = problem.y_train
        self._targets = targets.to(dtype) if targets.is_floating_point() else targets

    @property
    def weights(self) -> Tensor:
        """S_aa, [r, r]."""
        r = len(self.covariance) // self._parts
        return self.covariance[:r, :r]

    @property
    def size(self) -> float:
        """Total variance of the weights, 0 before the first noise."""
        return float(self.weights.trace())

    def check_finite(self, step: int) -> None:
        """Raises ValueError where the covariance has overflowed."""
        if not torch.isfinite(self.covariance).all():
            raise ValueError(
                f"the fluctuation around the mean path must stay finite, got NaN or infinity at step {step}; the "
                "learning rate is beyond the mean-square limit of the kernel there, use a smaller lr"
            )

    def output_variance(self, gram: Tensor) -> float:
        """Total variance of the training outputs, gram = Phi^T Phi."""
        return float((gram * self.weights).sum())

    def turn(self, overlap: Tensor) -> None:
        """Goes over to other directions, [r', r]; what lies outside of them is dropped."""
        wide = torch.block_diag(*[overlap] * self._parts)
        self.covariance = wide @ self.covariance @ wide.mT

    def moments(self, features: Features, outputs: Tensor) -> GaussianMoments:
        """Expected derivatives of the loss at mean outputs [n + m, c]."""
        rows = features.train.view(self._n, self._c, -1)
        blocks = (features.train @ self.weights).view_as(rows) @ rows.mT
        outputs = outputs[: self._n].to(self.covariance.dtype)
        return gaussian_moments(self._problem.criterion, outputs, (blocks + blocks.mT) / 2, self._targets)

    def output_gradient(self, step: int, moments: GaussianMoments, features: Features) -> Tensor:
        """What the mean path follows in place of r(f), [n, c]."""
        return moments.gradient

    def advance(self, step: int, features: Features, moments: GaussianMoments) -> None:
        """One step with the features and the expected derivatives of the step."""
        transition, gains = self._linear(step)
        curvature = self._curvature(features, moments)
        noise = self._noise(step, features, moments, curvature)
        moved = self._move(transition, gains, curvature, self._move(transition, gains, curvature, self.covariance).mT)
        moved += torch.kron(torch.outer(gains, gains), noise)
        self.covariance = (moved + moved.mT) / 2

    def law(self, step: int, time: float, outputs: Tensor, features: Features) -> OutputLaw:
        """The Gaussian law with these mean outputs [n + m, c]."""
        outputs, n = outputs.to(self.covariance.dtype), self._n
        train = _covariance(features.train, self.weights)
        if features.test is None:
            return OutputLaw(step, time, outputs, train)
        test = _covariance(features.test, self.weights)
        return OutputLaw(step, time, outputs[:n], train, test_mean=outputs[n:], test_covariance=test)

    def _linear(self, step: int) -> tuple[Tensor, Tensor]:
        """G_0 and nu of one step, [1 or 2] in each dimension."""
        like = self.covariance
        found: Update = update(self._sgd, like.new_zeros(1), lr=float(self._plan.lr[step]), first=step == 0)
        transition = like.new_tensor([[float(found.ee), found.eu], [float(found.ue), found.uu]])
        gains = like.new_tensor([found.e_gain, found.u_gain])
        return transition[: self._parts, : self._parts], gains[: self._parts]

    def _curvature(self, features: Features, moments: GaussianMoments) -> Tensor:
        """(1/n) Phi^T E[G] Phi, [r, r]."""
        rows = features.train.view(self._n, self._c, -1)
        return features.train.mT @ (moments.hessian @ rows).view_as(features.train) / self._n

    def _noise(self, step: int, features: Features, moments: GaussianMoments, curvature: Tensor) -> Tensor:
        """Covariance of a minibatch gradient, less the part (1/n^2) Phi^T G S_ff G Phi that G S G^T holds, [r, r]."""
        rows, q = features.train.view(self._n, self._c, -1), self._plan.noise_factor(step)
        blocks = moments.gradient_moment * (q / self._n)
        if not isinstance(self._problem.criterion, SquaredError):
            blocks += (1 - q) / self._n**2 * self._curved(rows, moments)
        noise = features.train.mT @ (blocks @ rows).view_as(features.train)
        slope = features.train.mT @ moments.gradient.flatten() / self._n
        noise -= q * (torch.outer(slope, slope) + curvature @ self.weights @ curvature)
        return self._add_labels(noise, step, features)

    def _curved(self, rows: Tensor, moments: GaussianMoments) -> Tensor:
        """Cov(r_i) - G_i S_ii G_i, what the linear response leaves of the output gradients, [n, c, c]."""
        slopes = moments.hessian @ rows
        spread = (slopes.flatten(0, 1) @ self.weights).view_as(slopes) @ slopes.mT
        mean = moments.gradient
        return moments.gradient_moment - mean[:, :, None] * mean[:, None, :] - spread

    def _add_labels(self, noise: Tensor, step: int, features: Features) -> Tensor:
        criterion, std = self._problem.criterion, self._sgd.label_noise_std
        if std:
            assert isinstance(criterion, SquaredError)
            variance = (criterion.curvature * std) ** 2 / (self._n * float(self._plan.batch_size[step]))
            noise = noise + variance * (features.train.mT @ features.train)
        return noise

    def _move(self, transition: Tensor, gains: Tensor, curvature: Tensor, state: Tensor) -> Tensor:
        """G applied along the first dimension of [parts * r, .]."""
        blocks = state.reshape(self._parts, -1, state.shape[1])
        kept = torch.tensordot(transition, blocks, dims=1).view_as(state)
        return kept + torch.kron(gains[:, None], curvature @ blocks[0])


def _covariance(features: Tensor, core: Tensor) -> Covariance:
    return Covariance(features, core, features.mT @ features)
