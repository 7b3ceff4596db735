"""Euler's method for the SDE of the outputs: one matrix product a step, any loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde.dynamics.paths.integrators.integrator import Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.kernel import KernelOperator, rows_times
from sgdsde.losses import SquaredError
from sgdsde.step import Step


@dataclass(frozen=True)
class EulerMaruyama(Integrator):
    """Sample paths of df = -(1/n) K r dt + sqrt(phi lr / B) K C(r)^{1/2} dW, with k = ``substeps`` to a step of SGD:

        w' = w - (lr/k) r(f)/n - lr sqrt(phi / (B k)) v,      f = f_0 + K w,      v_i = r_i (xi_i - mean xi) / sqrt(n)

    The state w is the displacement of the weights, J^T w, so test outputs are f_test,0 + K(test, train) w, under the
    same noise.

    Args:
        substeps: k. 1 is minibatch SGD with Gaussian noise in place of that of batches: it has SGD's first two moments
            exactly under squared error, and also carries momentum and weight decay as torch does. As k grows it becomes
            the SDE, which is off from SGD by O(lr).
    Exactness: weak order 1 in lr / k for the SDE; any loss.
    Cost: one product [P, d] x [d, d] a substep, in place under squared error: 3 P d numbers, 4 with momentum or test
        outputs, and up to 1 MiB of normal numbers drawn ahead; one [P, d] x [d, m c] a recorded step.
    """

    substeps: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "substeps", whole_number("substeps", self.substeps, minimum=1))

    def check(self, setup: PathSetup) -> None:
        sgd = setup.sgd
        if sgd.momentum and self.substeps > 1:
            reason = f"momentum={sgd.momentum} with substeps={self.substeps}, a scheme of SGD's own steps"
            raise self.refuse(reason, "EulerMaruyama(substeps=1)", setup)

    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        kind = _ResidualPaths if _ResidualPaths.suffice(setup) else _EulerPaths
        return kind(self.substeps, setup, len(paths), draws)


class _ResidualPaths(PathGroup):
    """Plain SGD under squared error: the residuals e = f - y themselves, [P, d], and w [P, d] for test outputs."""

    def __init__(self, substeps: int, setup: PathSetup, n_paths: int, draws: Draws) -> None:
        self._substeps, self._setup, self._draws = substeps, setup, draws
        linearization = setup.linearization
        criterion, kernel = linearization.problem.criterion, linearization.kernel
        assert isinstance(criterion, SquaredError)
        assert isinstance(kernel, Tensor)
        self._curvature, self._kernel = criterion.curvature, kernel.mT
        self._e = linearization.residual.flatten().repeat(n_paths, 1)
        self._shape = (n_paths, *linearization.outputs.shape)
        self._pushed = torch.empty_like(self._e)
        self._w = None if linearization.test_outputs is None else torch.zeros_like(self._e)

    @staticmethod
    def suffice(setup: PathSetup) -> bool:
        """Whether nothing but the residual moves it."""
        sgd, linearization = setup.sgd, setup.linearization
        plain = not (sgd.momentum or sgd.weight_decay or sgd.label_noise_std or setup.displacement is not None)
        squared = isinstance(linearization.problem.criterion, SquaredError)
        return plain and squared and isinstance(linearization.kernel, Tensor)

    def advance(self, start: int, stop: int) -> None:
        plan = self._setup.plan
        for first, last in plan.segments(start, stop):
            lr, factor = float(plan.lr[first]) / self._substeps, plan.noise_factor(first) * self._substeps
            for _ in range((last - first) * self._substeps):
                self._move(lr, factor)

    def _move(self, lr: float, factor: float) -> None:
        """e' = e - lr s K (weights * e), weights = 1/n + scale (xi - mean xi) = scale (xi - mean xi + 1/(n scale))."""
        pushed, n, scale = self._pushed, self._shape[1], 1.0
        e = self._e.view(self._shape)
        if factor:
            xi, scale = self._draws.normal("sde paths", n), math.sqrt(factor / n)
            xi.sub_(xi.mean(1, keepdim=True).sub_(1 / (n * scale)))
            torch.mul(e, xi.unsqueeze(2), out=pushed.view(self._shape))
        else:
            torch.mul(e, 1 / n, out=pushed.view(self._shape))
        alpha = -lr * self._curvature * scale
        self._e.addmm_(pushed, self._kernel, alpha=alpha)
        if self._w is not None:
            self._w.add_(pushed, alpha=alpha)

    def outputs(self, step: int) -> Outputs:
        linearization = self._setup.linearization
        train = self._e.view(self._shape) + linearization.targets
        if self._w is None:
            return train, None
        test, cross = linearization.test_outputs, linearization.cross_kernel
        assert test is not None
        assert cross is not None
        moved = self._w @ cross.mT if isinstance(cross, Tensor) else rows_times(self._w, cross)
        return train, test + moved.view(len(moved), *test.shape)


class _EulerPaths(PathGroup):
    """theta = g theta_0 + J^T w with a buffer for each; g is the same number for all paths."""

    def __init__(self, substeps: int, setup: PathSetup, n_paths: int, draws: Draws) -> None:
        self._substeps, self._setup, self._draws = substeps, setup, draws
        linearization = setup.linearization
        shape = (n_paths, *linearization.outputs.shape)
        self._w = linearization.outputs.new_zeros(shape)
        self._criterion, self._targets = linearization.problem.criterion, linearization.targets
        if isinstance(self._criterion, SquaredError):
            self._residual = linearization.residual.flatten()
        self._space = torch.empty_like(self._w).flatten(1)
        self._buffer = torch.zeros_like(self._w) if setup.sgd.momentum else self._w
        self._weight_factor, self._weight_buffer = 1.0, 0.0

    def advance(self, start: int, stop: int) -> None:
        sgd, plan = self._setup.sgd, self._setup.plan
        for first, last in plan.segments(start, stop):
            lr, factor = float(plan.lr[first]) / self._substeps, plan.noise_factor(first) * self._substeps
            later = Step.of(sgd, lr, first=False)
            for k in range(first, last):
                step = later if k else Step.of(sgd, lr, first=True)
                for part in range(self._substeps):
                    self._move(step, k, k + part / self._substeps, factor)
                    self._weight_factor, self._weight_buffer = step.move(self._weight_factor, self._weight_buffer, 0.0)

    def _move(self, step: Step, k: int, place: float, factor: float) -> None:
        slope, weights = self._slope(place), self._weights(factor)
        sgd = self._setup.sgd
        if not (sgd.momentum or sgd.weight_decay or sgd.label_noise_std):
            self._w.addcmul_(slope, weights, value=-step.lr)
            return
        gradient = slope.mul_(weights)
        if sgd.label_noise_std:
            self._add_label_noise(gradient, k)
        direction, self._buffer = step.direction(step.decayed(gradient, self._w), self._buffer)
        self._w.sub_(direction, alpha=step.lr)

    def _slope(self, place: float) -> Tensor:
        """r at the present outputs, [P, n, c], which the next call overwrites."""
        kernel = self._setup.linearization.kernel
        if not (isinstance(self._criterion, SquaredError) and isinstance(kernel, Tensor)):
            return self._criterion.gradient(self._train(place), self._targets)
        base, s = self._residual, self._criterion.curvature
        if self._setup.sgd.weight_decay or self._setup.displacement is not None:
            base = (self._train_base(place) - self._targets).flatten()
        torch.addmm(base, self._w.flatten(1), kernel, beta=s, alpha=s, out=self._space)
        return self._space.view_as(self._w)

    def _weights(self, factor: float) -> Tensor:
        """Weights of the examples in a gradient and its noise, 1/n on average: [P, n, 1], or a number without noise.

        r_i times them is r/n + sqrt(factor) v of ``noise_direction``; a substep is shorter, so its noise is larger.
        """
        n = self._w.shape[1]
        if not factor:
            return self._w.new_tensor(1 / n)
        xi, scale = self._draws.normal("sde paths", n), math.sqrt(factor / n)
        return torch.add(1 / n - scale * xi.mean(1, keepdim=True), xi, alpha=scale, out=xi).unsqueeze(2)

    def _add_label_noise(self, gradient: Tensor, k: int) -> None:
        setup = self._setup
        assert isinstance(self._criterion, SquaredError)
        std = self._criterion.curvature * setup.sgd.label_noise_std
        scale = std * math.sqrt(self._substeps / (len(setup.linearization.outputs) * int(setup.plan.batch_size[k])))
        gradient.add_(self._draws.normal("sde labels", *gradient.shape[1:]), alpha=scale)

    def outputs(self, step: int) -> Outputs:
        linearization = self._setup.linearization
        test = linearization.test_outputs
        if test is None:
            return self._train(step), None
        assert linearization.cross_kernel is not None
        base, n = self._base(test, linearization.test_weight_outputs), len(linearization.outputs)
        if self._setup.displacement is not None:
            base = base + self._setup.displacement.at(step)[n:].to(base)
        return self._train(step), self._moved(base, linearization.cross_kernel)

    def _train(self, place: float) -> Tensor:
        """Outputs at a step, or between two."""
        return self._moved(self._train_base(place), self._setup.linearization.kernel)

    def _train_base(self, place: float) -> Tensor:
        linearization = self._setup.linearization
        base, n = self._base(linearization.outputs, linearization.weight_outputs), len(linearization.outputs)
        if self._setup.displacement is not None:
            base = base + self._setup.displacement.at(place)[:n].to(base)
        return base

    def _base(self, outputs: Tensor, weight_outputs: Tensor | None) -> Tensor:
        """Outputs of the weights g theta_0."""
        if not self._setup.sgd.weight_decay or weight_outputs is None:
            return outputs
        return outputs + (self._weight_factor - 1) * weight_outputs

    def _moved(self, base: Tensor, kernel: Tensor | KernelOperator) -> Tensor:
        if not isinstance(kernel, Tensor):
            return base + rows_times(self._w.flatten(1), kernel).view(len(self._w), *base.shape)
        return torch.addmm(base.flatten(), self._w.flatten(1), kernel.mT).view(len(self._w), *base.shape)
