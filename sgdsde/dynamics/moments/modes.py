"""Coordinates of a linearized problem in the eigenbasis of its kernel."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.dynamics.output_law import Covariance, OutputLaw, SharedCovariance
from sgdsde.kernel import KroneckerKernel
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.noise.example_blocks import ExampleBlocks
from sgdsde.noise.gradient_noise import GradientNoise


class Modes:
    """Coordinates of a linearized problem under squared error in the eigenbasis of its kernel, whole or truncated.

    The displacement f - f_0 lies in the range of K at every step, so the residual e = f - y has one coordinate for each
    positive eigenvalue, a = U^T e, and a part in the null space that never moves. Test outputs follow the training
    outputs path by path, and with them their law:

        f_test = f_test,0 + (g - 1) J_test theta_0 + K(test, train) U diag(1/l) (a - a_0 - (g - 1) U^T J theta_0)

    where theta = g theta_0 + J^T w; g = 1 without weight decay. Exact for a rank-deficient K. On a truncated eigenbasis
    Ritz vectors of the tail are modes like others, and what they leave out is a ``bulk`` of variances; where the tail
    is frozen it stays where it is, like a null space (``truncation_bound``).

    Coordinates are columns [r, k]: k = 1, or one for every output where the outputs share the kernel of one
    (``Modes.shared``); a covariance [r, r] is then the sum over outputs.

    Attributes:
        values, vectors: l [r] and U [n*c, r], or those of the shared kernel, [n, r].
        n_train, n_outputs: n, and how many rows of U belong to an example.
        n_columns: k. loss_curvature: s. start: a_0, [r, k].
        bulk: spectrum of the directions that have no modes, or None.
    """

    def __init__(self, linearization: Linearization, basis: Eigenbasis, *, n_columns: int = 1) -> None:
        problem = linearization.problem
        self.linearization, self.n_train, self.n_columns = linearization, problem.n_train, n_columns
        self.n_outputs = problem.n_outputs // n_columns
        self.loss_curvature = squared_error_of(linearization).curvature
        dtype = linearization.outputs.dtype
        self.values, self.vectors = basis.values.to(dtype), basis.vectors.to(dtype)
        self.bulk = None if basis.tail is None else basis.tail.bulk
        initial = self._columns(linearization.residual)
        self.start = self.vectors.mT @ initial
        self._fixed = initial - self.vectors @ self.start

    @classmethod
    def of(cls, linearization: Linearization) -> Modes:
        """The modes of the kernel of all outputs.

        Raises:
            ValueError: another loss than squared error.
        """
        squared_error_of(linearization)
        return cls(linearization, linearization.eigenbasis)

    @classmethod
    def shared(cls, linearization: Linearization) -> Modes:
        """The modes of K_0, which every output shares: the kernel is K_0 (x) I_c.

        Raises:
            ValueError: another loss than squared error, another kernel than a ``KroneckerKernel``.
        """
        squared_error_of(linearization)
        kernel, cross = linearization.kernel, linearization.cross_kernel
        for name, part in (("kernel", kernel), ("cross_kernel", cross)):
            if part is not None and not isinstance(part, KroneckerKernel):
                remedy = "use MomentRecursion, or linearize(problem, kernel=...)"
                raise ValueError(complaint(name, "a KroneckerKernel for TracedRecursion", repr(part)[:60], remedy))
        assert isinstance(kernel, KroneckerKernel)
        basis = linearization.basis or Eigenbasis.of(kernel.base).scaled(kernel.scale)
        return cls(linearization, basis, n_columns=linearization.problem.n_outputs)

    def _columns(self, outputs: Tensor) -> Tensor:
        """Numbers for every output [n, c] as columns [rows, k]."""
        return outputs.reshape(-1, self.n_columns)

    @property
    def drift(self) -> Tensor:
        """Eigenvalues h = s l / n of the drift matrix H, [r]."""
        return self.loss_curvature * self.values / self.n_train

    @property
    def inverse_values(self) -> Tensor:
        """1 / l, [r]; 0 for the null mode that stands for a kernel of zero."""
        return torch.where(self.values > 0, 1 / self.values, 0.0)

    @cached_property
    def examples(self) -> ExampleBlocks:
        """U by example: [r, r] to the covariance of every example's residual and back."""
        return ExampleBlocks(self.vectors, self.n_outputs)

    @cached_property
    def noise(self) -> GradientNoise:
        """The covariance of a minibatch gradient in these coordinates."""
        return GradientNoise(self.values, self.vectors, n_outputs=self.n_outputs, loss_curvature=self.loss_curvature)

    def residual(self, coordinates: Tensor) -> Tensor:
        """e with these coordinates [r, k], as columns: the part in the null space of K stays what it was."""
        return self.vectors @ coordinates + self._fixed

    def mean_blocks(self, mean: Tensor) -> Tensor:
        """m_i m_i^T of every example's residual, the part that never moves included, [n, c, c]."""
        rows = self.residual(mean).view(self.n_train, self.n_outputs, self.n_columns)
        return rows @ rows.mT

    def decay_offset(self) -> Tensor:
        """b = J theta_0 - e_0 in these coordinates, [r, k]: J theta = e + b.

        Raises:
            ValueError: J theta_0 is unknown.
        """
        return self.weight_outputs - self.start

    @cached_property
    def weight_outputs(self) -> Tensor:
        """J theta_0 in these coordinates, [r, k]."""
        weights = self.linearization.weight_outputs
        if weights is None:
            received = "a linearization without weight_outputs"
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", received, remedy))
        return self.vectors.mT @ self._columns(weights)

    @cached_property
    def _train_gram(self) -> Tensor:
        return torch.eye(len(self.values), dtype=self.values.dtype, device=self.values.device)

    @cached_property
    def _test_factor(self) -> tuple[Tensor, Tensor] | None:
        """K(test, train) U diag(1/l) and its Gram matrix."""
        cross = self.linearization.cross_kernel
        if cross is None:
            return None
        if self.n_columns > 1:
            assert isinstance(cross, KroneckerKernel)
            factor = cross.scale * (cross.base @ self.vectors) * self.inverse_values
        else:
            factor = (cross @ self.vectors) * self.inverse_values
        return factor, factor.mT @ factor

    def law(
        self, step: int, time: float, mean: Tensor, covariance: Tensor | None = None, *, weight_factor: float = 1.0
    ) -> OutputLaw:
        """The law of all outputs from mean [r, k] and covariance [r, r] of the coordinates; weight_factor is g."""
        one, shift, shape = self.linearization, mean - self.start, (-1, self.linearization.problem.n_outputs)
        train_mean = one.outputs + (self.vectors @ shift).view(shape)
        train = None if covariance is None else self._covariance(self.vectors, covariance, self._train_gram)
        if self._test_factor is None:
            return OutputLaw(step, time, train_mean, train)
        assert one.test_outputs is not None
        (factor, gram), test_mean = self._test_factor, one.test_outputs
        if weight_factor != 1.0:
            assert one.test_weight_outputs is not None
            shift = shift - (weight_factor - 1) * self.weight_outputs
            test_mean = test_mean + (weight_factor - 1) * one.test_weight_outputs
        test_mean = test_mean + (factor @ shift).view(shape)
        test = None if covariance is None else self._covariance(factor, covariance, gram)
        return OutputLaw(step, time, train_mean, train, test_mean=test_mean, test_covariance=test)

    def _covariance(self, factor: Tensor, core: Tensor, gram: Tensor) -> Covariance:
        if self.n_columns == 1:
            return Covariance(factor, core, gram)
        return SharedCovariance(factor, core, gram, self.n_columns)


def squared_error_of(linearization: Linearization) -> SquaredError:
    """The loss of a problem whose moments close."""
    criterion = linearization.problem.criterion
    if not isinstance(criterion, SquaredError):
        received = type(linearization.problem.loss).__name__
        remedy = "use dynamics.LinearizedSGD()"
        raise ValueError(complaint("loss", "nn.MSELoss() for moments in closed form", received, remedy))
    return criterion


def is_shared(linearization: Linearization) -> bool:
    """Whether several outputs share the kernel of one."""
    return isinstance(linearization.kernel, KroneckerKernel) and linearization.problem.n_outputs > 1


def modes_of(linearization: Linearization) -> Modes:
    """Of all outputs, or of the kernel that the outputs share."""
    return Modes.shared(linearization) if is_shared(linearization) else Modes.of(linearization)
