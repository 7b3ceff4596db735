"""What every dynamics yields, and how train and test outputs hang together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._types import Progress
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD


@dataclass(frozen=True, eq=False)
class Covariance:
    """F C F^T, kept in factors: the outputs of thousands of test examples move in few directions.

    Attributes:
        factor: F, [rows, r]. core: C, [r, r], symmetric. gram: F^T F, [r, r].
    """

    factor: Tensor
    core: Tensor
    gram: Tensor

    @property
    def trace(self) -> Tensor:
        return (self.gram * self.core).sum()

    @property
    def squared_norm(self) -> Tensor:
        """tr of the square: the sum of all squared entries."""
        product = self.gram @ self.core
        return (product * product.mT).sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        """v^T (F C F^T) v for v [rows]."""
        reduced = self.factor.mT @ vector
        return reduced @ self.core @ reduced

    def diagonal(self) -> Tensor:
        """Variances, [rows]."""
        return ((self.factor @ self.core) * self.factor).sum(1)

    def blocks(self, n_outputs: int) -> Tensor:
        """The covariance of each example's outputs, [rows / c, c, c]."""
        shape = (-1, n_outputs, self.factor.shape[1])
        return (self.factor @ self.core).view(shape) @ self.factor.view(shape).mT

    def to_dense(self) -> Tensor:
        """[rows, rows]."""
        return self.factor @ self.core @ self.factor.mT


@dataclass(frozen=True, eq=False)
class OutputLaw:
    """The law of all outputs at one step.

    Attributes:
        mean: [n, c]. covariance: of the n*c outputs, or None when they are certain or sampled. samples: [P, n, c].
        test_mean, test_covariance, test_samples: the same for the test set.
    """

    step: int
    time: float
    mean: Tensor
    covariance: Covariance | None = None
    samples: Tensor | None = None
    test_mean: Tensor | None = None
    test_covariance: Covariance | None = None
    test_samples: Tensor | None = None


NoiseSource: TypeAlias = Literal["none", "start", "mean", "state"]
"""What the noise of a dynamics is evaluated at: not at all, the start, the mean, or mean and spread."""


class Dynamics(ABC):
    """Evolves the law of the outputs from the linearization at initialization; never computes a loss."""

    @property
    def noise_source(self) -> NoiseSource | None:
        """Where the noise is taken, of a dynamics that follows the kernel's eigenpairs; None where it does not."""
        return None

    @abstractmethod
    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        """One law for each step of ``record`` (sorted, from 0 on)."""

    def refuse(self, reason: str, alternative: str) -> ValueError:
        """The error for what this dynamics cannot represent."""
        return ValueError(f"{type(self).__name__} cannot represent {reason}; use {alternative}")


class Coordinates(Protocol):
    """What the noise of a step needs to know of modes."""

    values: Tensor
    vectors: Tensor
    n_train: int
    n_outputs: int
    loss_curvature: float

    def residual(self, coordinates: Tensor) -> Tensor: ...


class Modes:
    """Coordinates of a linearized problem under squared error in the eigenbasis of its kernel, whole or truncated.

    The displacement f - f_0 lies in the range of K at every step, so the residual e = f - y has one coordinate for each
    positive eigenvalue, a = U^T e, and a part in the null space that never moves. Test outputs follow the training
    outputs path by path, and with them their law:

        f_test = f_test,0 + (g - 1) J_test theta_0 + K(test, train) U diag(1/l) (a - a_0 - (g - 1) U^T J theta_0)

    where theta = g theta_0 + J^T w; g = 1 without weight decay. Exact for a rank-deficient K. On a truncated eigenbasis
    what is left out stays where it is, like a null space (``truncation.truncation_error``).
    """

    def __init__(self, linearization: Linearization) -> None:
        criterion = linearization.problem.criterion
        if not isinstance(criterion, SquaredError):
            loss = type(linearization.problem.loss).__name__
            raise ValueError(
                complaint(
                    "loss", "nn.MSELoss() for moments in closed form", loss, "use dynamics.SDEPaths or GaussianClosure"
                )
            )
        basis = linearization.eigenbasis
        self.linearization = linearization
        self.n_train, self.n_outputs = linearization.problem.n_train, linearization.problem.n_outputs
        self.values, self.vectors = basis.values, basis.vectors
        self.n_labels = 1  # outputs that share a mode, each with label noise of its own
        self.loss_curvature = criterion.curvature
        initial = linearization.residual.flatten()
        self.start = self.vectors.mT @ initial
        self._fixed = initial - self.vectors @ self.start
        self._train_gram = torch.eye(len(self.values), dtype=self.values.dtype, device=self.values.device)
        self._test_factor: Tensor | None = None
        if linearization.cross_kernel is not None:
            self._test_factor = (linearization.cross_kernel @ self.vectors) / self.values
            self._test_gram = self._test_factor.mT @ self._test_factor

    def residual(self, coordinates: Tensor) -> Tensor:
        """e [n*c] with these coordinates [r]: the part in the null space of K stays what it was."""
        return self.vectors @ coordinates + self._fixed

    @property
    def drift(self) -> Tensor:
        """Eigenvalues h = s l / n of the drift matrix H, [r]."""
        return self.loss_curvature * self.values / self.n_train

    def decay_offset(self) -> Tensor:
        """b = J theta_0 - e_0 in these coordinates, [r]: J theta = e + b."""
        if self.linearization.weight_outputs is None:
            received = "a linearization without weight_outputs"
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", received, remedy))
        return self.vectors.mT @ self.linearization.weight_outputs.flatten() - self.start

    def law(
        self, step: int, time: float, mean: Tensor, covariance: Tensor | None = None, *, weight_factor: float = 1.0
    ) -> OutputLaw:
        """The law of all outputs from mean [r] and covariance [r, r] of the coordinates; weight_factor is g."""
        shift = mean - self.start
        shape = (-1, self.n_outputs)
        train_mean = self.linearization.outputs + (self.vectors @ shift).view(shape)
        train = None if covariance is None else Covariance(self.vectors, covariance, self._train_gram)
        if self._test_factor is None or self.linearization.test_outputs is None:
            return OutputLaw(step, time, train_mean, train)
        test_mean = self.linearization.test_outputs
        if weight_factor != 1.0:
            weights, test_weights = self.linearization.weight_outputs, self.linearization.test_weight_outputs
            assert weights is not None
            assert test_weights is not None
            shift = shift - (weight_factor - 1) * (self.vectors.mT @ weights.flatten())
            test_mean = test_mean + (weight_factor - 1) * test_weights
        test_mean = test_mean + (self._test_factor @ shift).view(shape)
        test = None if covariance is None else Covariance(self._test_factor, covariance, self._test_gram)
        return OutputLaw(step, time, train_mean, train, test_mean=test_mean, test_covariance=test)
