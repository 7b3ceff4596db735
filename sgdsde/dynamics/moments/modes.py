"""Coordinates of a linearized problem in the eigenbasis of its kernel."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError


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
