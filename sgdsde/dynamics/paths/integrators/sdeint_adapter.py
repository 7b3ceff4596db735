"""The integrators of the package sdeint, one path at a time: a second opinion on small problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number, word
from sgdsde._streams import numpy_stream
from sgdsde.dynamics.paths.integrators.integrator import Draws, Integrator, Outputs, PathGroup, PathSetup
from sgdsde.kernel import rows_times
from sgdsde.losses import SquaredError

Method = Literal["itoEuler", "itoSRI2", "stratHeun", "stratSRS2", "stratKP2iS"]

MAX_OUTPUTS = 64
"""n * c beyond which a path takes minutes: every step builds dense matrices [n c, n], SRI2 and SRS2 2 n of them."""
STEPS_A_CALL = 256
"""sdeint stores n^2 repeated integrals for each step of a call."""


@dataclass(frozen=True)
class SDEInt(Integrator):
    """The SDE of the outputs handed to ``sdeint.<method>`` (an extra), with w as in ``EulerMaruyama``:

        dw = -r(f)/n dt - sqrt(phi lr / B) V dW,      V_ik = r_i (delta_ik - 1/n) / sqrt(n),      f = f_0 + K w

    A Stratonovich method gets the drift that has the same law, less half of sum_k (dV_k/dw) V_k phi lr / B.

    Args:
        method: "itoEuler", "itoSRI2", "stratHeun", "stratSRS2" or "stratKP2iS".
        substeps: steps of the method to a step of SGD.
    Raises:
        ValueError: a method that sdeint has not; a problem of more than 64 outputs n * c; momentum, decay, label noise.
        ImportError: sdeint is not installed.
    Exactness: weak order 1 in lr / substeps. The package's own random numbers, from a stream for each path.
    Cost: one path after the other, about 1e-4 s a step; SRI2 and SRS2 2 n times that.
    Source: https://github.com/mattja/sdeint.
    """

    method: Method = "itoEuler"
    substeps: int = 1
    any_precision: ClassVar[bool] = False

    def __post_init__(self) -> None:
        word("method", self.method, get_args(Method))
        object.__setattr__(self, "substeps", whole_number("substeps", self.substeps, minimum=1))

    def check(self, setup: PathSetup) -> None:
        problem, sgd = setup.linearization.problem, setup.sgd
        size = problem.n_train * problem.n_outputs
        alternative = f"EulerMaruyama(substeps={self.substeps})"
        if size > MAX_OUTPUTS:
            received = f"{size} (n_train={problem.n_train}, n_outputs={problem.n_outputs})"
            remedy = f"sdeint steps one path at a time with dense noise; use {alternative}"
            raise ValueError(complaint("n_train * n_outputs", f"at most {MAX_OUTPUTS} for SDEInt", received, remedy))
        if sgd.momentum or sgd.weight_decay or sgd.label_noise_std:
            raise self.refuse("momentum, weight decay or label noise", "EulerMaruyama()", setup)
        if setup.displacement is not None:
            raise self.refuse("an Ito term", alternative, setup)
        _sdeint()

    def group(self, setup: PathSetup, paths: range, draws: Draws) -> PathGroup:
        return _SdeintPaths(self, setup, paths)


class _SdeintPaths(PathGroup):
    def __init__(self, method: SDEInt, setup: PathSetup, paths: range) -> None:
        self._setup, self._substeps = setup, method.substeps
        self._integrate: Callable[..., np.ndarray] = getattr(_sdeint(), method.method)
        self._stratonovich = method.method.startswith("strat")
        purpose = f"sdeint {method.method}"
        self._generators = [numpy_stream(setup.seed, purpose, path) for path in paths]
        size = setup.linearization.outputs.numel()
        self._w = np.zeros((len(paths), size))

    def advance(self, start: int, stop: int) -> None:
        plan, most = self._setup.plan, STEPS_A_CALL
        for first, last in plan.segments(start, stop):
            lr = float(plan.lr[first])
            system = WeightSystem(self._setup, lr * plan.noise_factor(first), self._stratonovich)
            for begin in range(first, last, most):
                n_steps = min(most, last - begin)
                times = np.linspace(0.0, lr * n_steps, n_steps * self._substeps + 1)
                for row, generator in zip(self._w, self._generators):
                    row[:] = self._integrate(system.drift, system.noise, row.copy(), times, generator=generator)[-1]

    def outputs(self, step: int) -> Outputs:
        linearization = self._setup.linearization
        w = torch.from_numpy(self._w).to(linearization.outputs)
        test = linearization.test_outputs
        shape = (len(w), *linearization.outputs.shape)
        train = linearization.outputs + rows_times(w, linearization.kernel).view(shape)
        if test is None:
            return train, None
        assert linearization.cross_kernel is not None
        return train, test + rows_times(w, linearization.cross_kernel).view(len(w), *test.shape)


class WeightSystem:
    """Drift [d] and noise [d, n] as functions of w [d], in NumPy, as sdeint calls them.

    Args:
        diffusion: phi lr / B.
    """

    def __init__(self, setup: PathSetup, diffusion: float, stratonovich: bool) -> None:
        linearization = setup.linearization
        self._criterion, self._targets = linearization.problem.criterion, linearization.targets.cpu()
        self._initial = linearization.outputs.double().cpu()
        self._kernel = linearization.dense_kernel.double().cpu()
        n = len(self._initial)
        self._centering = math.sqrt(diffusion / n) * (np.eye(n) - 1 / n)
        self._stratonovich = stratonovich

    def drift(self, w: np.ndarray, t: float) -> np.ndarray:
        outputs = self._outputs(w)
        drift = -self._gradient(outputs) / len(outputs)
        if self._stratonovich and self._centering.any():
            drift = drift - self._correction(outputs, self.noise(w, t)) / 2
        return drift.numpy().ravel()

    def noise(self, w: np.ndarray, t: float) -> np.ndarray:
        gradient = self._gradient(self._outputs(w)).numpy()
        return -(gradient[:, :, None] * self._centering[:, None, :]).reshape(len(w), -1)

    def _correction(self, outputs: Tensor, noise: np.ndarray) -> Tensor:
        """Sum over k of (d noise_k / dw) noise_k, [n, c]: noise_k is linear in r, and the noise_k add up to zero."""
        n, c = outputs.shape
        own = torch.einsum("iad,di->ia", self._kernel.view(n, c, -1), torch.from_numpy(noise))
        if isinstance(self._criterion, SquaredError):
            change = self._criterion.curvature * own
        else:
            leaf = outputs.detach().requires_grad_()
            with torch.enable_grad():
                # dr/df is a Hessian, so its transpose, which backward gives, is the same.
                change = torch.autograd.grad((self._gradient(leaf) * own).sum(), leaf)[0]
        return -change * float(self._centering[0, 0] - self._centering[0, -1])

    def _outputs(self, w: np.ndarray) -> Tensor:
        return self._initial + (self._kernel @ torch.from_numpy(w)).view_as(self._initial)

    def _gradient(self, outputs: Tensor) -> Tensor:
        return self._criterion.gradient(outputs, self._targets)


def _sdeint() -> ModuleType:
    try:
        import sdeint
    except ImportError as error:
        raise ImportError("SDEInt needs the package sdeint: pip install sdeint, or use EulerMaruyama()") from error
    return sdeint
