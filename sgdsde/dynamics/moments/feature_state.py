"""Covariance of weights and momentum buffer around their mean, seen through features of the outputs, step by step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sgdsde.dynamics.output_law import Covariance
from sgdsde.losses import SquaredError, in_dtype
from sgdsde.losses.expectations import GaussianMoments, gaussian_moments
from sgdsde.noise.covariance import diagonal_blocks
from sgdsde.noise.example_blocks import ExampleBlocks, times_blocks
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan
from sgdsde.step import Step


@dataclass(frozen=True, eq=False)
class Features:
    """How outputs follow coordinates a of the weights, f = Phi a, and these an output gradient r, a += Psi^T r.

    Along orthonormal directions V of the weights Phi = J V^T and Psi = Phi. Along the gradients of the outputs, the
    weights being J^T a, Phi = J J^T = K and Psi = I (``along_gradients``): pulling a gradient back costs nothing.

    Attributes:
        train: Phi, [n*c, r]. test: of the test outputs, [m*c, r], or None.
    """

    train: Tensor
    test: Tensor | None
    along_gradients: bool = False

    def pull(self, output_gradients: Tensor) -> Tensor:
        """Psi^T r for r [..., n*c, k]."""
        return output_gradients if self.along_gradients else self.train.mT @ output_gradients

    @cached_property
    def gram(self) -> Tensor:
        """Phi^T Phi, [r, r]."""
        return self.train.mT @ self.train

    @cached_property
    def root(self) -> Tensor:
        """A symmetric R [r, r] with R^T R = Phi^T Phi."""
        if self.along_gradients:
            return self.train
        values, vectors = torch.linalg.eigh(self.gram)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT

    @cached_property
    def test_gram(self) -> Tensor | None:
        return None if self.test is None else self.test.mT @ self.test

    def plus(self, change: Features, share: float) -> Features:
        """Phi + share * change."""
        test = None if self.test is None or change.test is None else self.test + share * change.test
        return Features(self.train + share * change.train, test)


@dataclass(frozen=True, eq=False)
class Expectations:
    """Expected derivatives of the loss at one step, and what of the fluctuation they were made from.

    Attributes:
        features: at the step. moments: E r, E G and E r r^T of every example.
        blocks: covariance of every example's outputs, [n, c, c]; None before the first noise.
        moved: Phi S_a, [n*c, q r], with S_a the rows of the covariance that belong to a; None likewise.
        moved_rest: of the part of S that does not come from starts of an epoch (``moments.epochs``).
    """

    features: Features
    moments: GaussianMoments
    blocks: Tensor | None = None
    moved: Tensor | None = None
    moved_rest: Tensor | None = None

    def weighted(self, rows: Tensor) -> Tensor:
        """E[G] X for rows X [n*c, m]."""
        return times_blocks(self.moments.hessian, rows)


class Fluctuation(ABC):
    """S = Cov(z), z = (a, b): coordinates of the weights and of the momentum buffer around their means.

    Attributes:
        covariance: S, [q r, q r], q = 2 with momentum and 1 without.
        is_certain: whether nothing has fluctuated yet; S is exactly zero then.
    """

    def __init__(self, problem: Problem, sgd: SGD, plan: StepPlan, *, size: int, dtype: torch.dtype) -> None:
        self._problem, self._sgd, self._plan = problem, sgd, plan
        self._n, self._c, self._size = problem.n_train, problem.n_outputs, size
        self._parts = 2 if sgd.momentum else 1
        self.covariance = torch.zeros(self._parts * size, self._parts * size, dtype=dtype, device=problem.device)
        self.is_certain = True
        targets = problem.y_train
        self._targets = in_dtype(targets, dtype)

    @abstractmethod
    def expectations(self, features: Features, outputs: Tensor, extra: Tensor | None = None) -> Expectations:
        """Expected derivatives of the loss at mean outputs [n + m, c].

        Args:
            extra: covariance of every example's outputs that the features do not show, [n, c, c].
        """

    @abstractmethod
    def output_gradient(self, k: int, seen: Expectations) -> Tensor:
        """The output gradient that the mean follows in the step k -> k + 1, in place of r(f), [n, c]."""

    @abstractmethod
    def advance(self, k: int, seen: Expectations) -> None:
        """The step k -> k + 1."""

    @abstractmethod
    def turn(self, overlap: Tensor) -> None:
        """Goes over to other directions, [r', r]; what lies outside of them is dropped."""

    @property
    def weights(self) -> Tensor:
        """S_aa, [r, r]."""
        return self.covariance[: self._size, : self._size]

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.covariance).all())

    def output_variance(self, features: Features) -> float:
        """Total variance of the training outputs."""
        return 0.0 if self.is_certain else float((features.gram * self.weights).sum())

    def covariances(self, features: Features) -> tuple[Covariance | None, Covariance | None]:
        """Covariances of train and test outputs; None before the first noise, or without a test set."""
        if self.is_certain:
            return None, None
        train = Covariance(features.train, self.weights, features.gram)
        if features.test is None:
            return train, None
        assert features.test_gram is not None
        return train, Covariance(features.test, self.weights, features.test_gram)

    def _expectations(
        self, features: Features, outputs: Tensor, moved: Tensor | None = None, extra: Tensor | None = None
    ) -> Expectations:
        criterion, outputs = self._problem.criterion, outputs[: self._n].to(self.covariance.dtype)
        if moved is None:
            gradient = criterion.gradient(outputs, self._targets)
            moment = gradient[:, :, None] * gradient[:, None, :]
            return Expectations(features, GaussianMoments(gradient, criterion.hessian(outputs, self._targets), moment))
        blocks = ExampleBlocks(features.train, self._c).of_product(moved[:, : self._size])
        blocks = (blocks + blocks.mT) / 2
        if extra is not None:
            blocks = blocks + extra
        return Expectations(features, gaussian_moments(criterion, outputs, blocks, self._targets), blocks, moved)

    def _step(self, k: int) -> Step:
        return Step.of(self._sgd, float(self._plan.lr[k]), first=k == 0)

    def _kept(self, step: Step, state: Tensor) -> Tensor:
        """(G_0 (x) I) state, along the rows of [..., q r, m]."""
        if self._parts == 1:
            return step.transition[0][0] * state
        blocks = state.view(*state.shape[:-2], 2, -1, state.shape[-1])
        first, second = blocks.unbind(-3)
        rows = [a * first + b * second for a, b in step.transition]
        return torch.stack(rows, -3).view(*state.shape[:-2], -1, state.shape[-1])

    def _gained(self, step: Step, rows: Tensor) -> Tensor:
        """nu (x) rows: [..., r, m] to [..., q r, m]."""
        return torch.cat([gain * rows for gain in step.gain], -2)

    def _gained_both(self, step: Step, noise: Tensor) -> Tensor:
        """nu nu^T (x) noise."""
        return self._gained(step, self._gained(step, noise).mT)

    def label_variance(self, k: int) -> float:
        """v, if v K is the covariance of the outputs' gradients that freshly drawn targets give to a step."""
        criterion, std = self._problem.criterion, self._sgd.label_noise_std
        if not std:
            return 0.0
        assert isinstance(criterion, SquaredError)
        return float((criterion.curvature * std) ** 2 / (self._n * float(self._plan.batch_size[k])))

    def _label_noise(self, k: int, features: Features) -> Tensor | None:
        """Covariance [r, r] that freshly drawn targets give to the gradient of a step."""
        variance = self.label_variance(k)
        if not variance:
            return None
        identity = torch.eye(self._size, dtype=self.covariance.dtype, device=self.covariance.device)
        return variance * (identity if features.along_gradients else features.gram)

    def _advance_independently(self, k: int, seen: Expectations) -> None:
        """A step whose batch depends on no other,

            S' = G S G^T + nu nu^T (x) Q,      G = G_0 (x) I + nu (x) C [I 0],      C = (1/n) Psi^T E[G] Phi
            Q = Psi^T [(phi/B) (D(R)/n - R'/n^2) + (1 - phi/B) D(R - R')/n^2] Psi,   R' = E r E r^T + E[G] S_ff E[G]

        with R_i = E r_i r_i^T and S_ff = Phi S_aa Phi^T; for squared error R and R' have the same diagonal blocks. The
        part (1/n^2) E[G] S_ff E[G] of Q is that of G S G^T, so that only its share 1 - phi/B is formed.
        """
        factor, labels = self._plan.noise_factor(k), self._label_noise(k, seen.features)
        if self.is_certain and not factor and labels is None:
            return
        self.is_certain = False
        step, features = self._step(k), seen.features
        noise = self._batch_noise(factor, seen)
        moved = self._kept(step, self._kept(step, self.covariance).mT)
        if seen.moved is not None:
            slope = None if features.along_gradients else features.pull(seen.weighted(features.train)) / self._n
            pulled = seen.weighted(seen.moved) / self._n if slope is None else slope @ self.covariance[: self._size]
            crossed = self._gained(step, self._kept(step, pulled.mT).mT)
            moved += 2 * crossed  # of which the symmetric part counts
            if factor != 1:
                noise += (1 - factor) * self._slope_both_sides(seen, slope, pulled[:, : self._size])
        if labels is not None:
            noise += labels
        moved += self._gained_both(step, noise)
        self.covariance = (moved + moved.mT) / 2

    def _slope_both_sides(self, seen: Expectations, slope: Tensor | None, pulled: Tensor) -> Tensor:
        """C S_aa C^T from C S_aa [r, r]."""
        if slope is not None:
            return pulled @ slope.mT
        return seen.weighted((pulled @ seen.features.train.mT).mT) / self._n

    def _batch_noise(self, factor: float, seen: Expectations) -> Tensor:
        """Q without the part that follows the fluctuation linearly, [r, r]."""
        moments, features = seen.moments, seen.features
        blocks = moments.gradient_moment * (factor / self._n)
        if seen.blocks is not None and not isinstance(self._problem.criterion, SquaredError):
            mean = moments.gradient
            own = moments.gradient_moment - mean[:, :, None] * mean[:, None, :]
            blocks = blocks + (own - moments.hessian @ seen.blocks @ moments.hessian) * ((1 - factor) / self._n**2)
        if features.along_gradients:
            noise = torch.zeros_like(self.weights)
            diagonal_blocks(noise, self._c).copy_(blocks)
        else:
            noise = ExampleBlocks(features.train, self._c).spread(blocks)
        slope = features.pull(moments.gradient.reshape(-1, 1))[:, 0] / self._n
        return noise.addr_(slope, slope, alpha=-factor)


class IndependentFluctuation(Fluctuation):
    """The fluctuation under i.i.d. batches."""

    def expectations(self, features: Features, outputs: Tensor, extra: Tensor | None = None) -> Expectations:
        moved = None if self.is_certain else features.train @ self.covariance[: self._size]
        return self._expectations(features, outputs, moved, extra)

    def output_gradient(self, k: int, seen: Expectations) -> Tensor:
        return seen.moments.gradient

    def advance(self, k: int, seen: Expectations) -> None:
        self._advance_independently(k, seen)

    def turn(self, overlap: Tensor) -> None:
        wide = torch.block_diag(*[overlap] * self._parts)
        self.covariance, self._size = wide @ self.covariance @ wide.mT, len(overlap)
