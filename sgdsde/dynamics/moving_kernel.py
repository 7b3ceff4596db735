"""Minibatch SGD of a network that learns features: fluctuations around its mean path, with the kernel of that path."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from sgdsde._checks import positive_number, whole_number
from sgdsde._progress import ticker
from sgdsde._types import Params, Progress
from sgdsde.dynamics.base import Covariance, Dynamics, OutputLaw
from sgdsde.dynamics.update import torch_step, update
from sgdsde.kernel import KernelPlan, gram
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.noise.covariance import residual_covariance
from sgdsde.problem import Problem
from sgdsde.sgd import SGD, StepPlan

logger = logging.getLogger(__name__)


class KernelDriftWarning(UserWarning):
    """The kernel moves by more than the tolerance in a single step of the mean path."""


@dataclass(frozen=True)
class MovingKernel(Dynamics):
    """Full-batch descent of the real network for the mean, moment recursion around it with the kernel K_k of that path:

        m_k = f(theta_k) - y,      S' = G_k S G_k^T + nu nu^T (x) (phi/B) K_k (s^2/n D(M) - s^2/n^2 M) K_k

    with M = S_ee + m m^T.

    The kernel is made at some steps and interpolated linearly in between. An interval is accepted when the kernel moved
    by at most ``tolerance`` over it (relative, in Frobenius norm), and the next one is chosen from that drift.

    Args:
        tolerance: kernel drift allowed between two kernels. first_interval: steps to the second kernel.
    Exactness: that of ``MomentRecursion`` for a model linear in its parameters. For others it leaves out how the noise
        moves the mean (the Ito term) and the curvature of the network in the fluctuations. I.i.d. batches.
    Cost: one full-batch gradient a step; a kernel of train and test rows an interval; four products of
        [(n + m) c, n c] x [n c, (n + m) c] a step.
    Warns:
        KernelDriftWarning: the tolerance is exceeded within one step.
    """

    tolerance: float = 0.1
    first_interval: int = 2

    def __post_init__(self) -> None:
        positive_number("tolerance", self.tolerance)
        whole_number("first_interval", self.first_interval, minimum=1)

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        problem = linearization.problem
        if not isinstance(problem.criterion, SquaredError):
            raise self.refuse(f"{type(problem.loss).__name__}", "nn.MSELoss(), or SDEPaths() at a frozen kernel")
        if sgd.sampling == "shuffled":
            raise self.refuse("shuffled epochs", "MomentRecursion, or an i.i.d. sampling")
        plan, n_steps = sgd.plan(problem.n_train, record[-1]), record[-1]
        path = MeanPath.start(problem, sgd, plan)
        fluctuation = Fluctuation(problem, sgd, plan, linearization.kernel.dtype)
        kernel, times, wanted = _stacked(linearization), plan.times, set(record)
        interval, k = self.first_interval, 0
        ticks = ticker(progress, n_steps, "moving kernel")
        while k < n_steps:
            interval = min(interval, n_steps - k)
            ahead, outputs = path.ahead(k, interval)
            drift, later = self._drift(problem, ahead.params, kernel)
            if drift > self.tolerance and interval > 1:
                interval = max(1, int(interval * max(0.25, 0.8 * self.tolerance / drift)))
                continue
            self._report(drift, k, interval)
            for j in range(interval):
                if k + j in wanted:
                    yield fluctuation.law(k + j, times[k + j], outputs[j])
                midway = torch.lerp(kernel, later, j / interval)
                fluctuation.advance(k + j, outputs[j], midway)
                ticks.update(1)
            path, kernel, k = ahead, later, k + interval
            interval = max(1, int(interval * min(2.0, 0.9 * self.tolerance / max(drift, 1e-12))))
        ticks.close()
        yield fluctuation.law(n_steps, times[n_steps], path.outputs(n_steps))

    def _drift(self, problem: Problem, params: Params, kernel: Tensor) -> tuple[float, Tensor]:
        later = kernel_at(problem, params, kernel.dtype)
        d = kernel.shape[1]
        return float(torch.linalg.norm(later[:d] - kernel[:d]) / torch.linalg.norm(kernel[:d])), later

    def _report(self, drift: float, step: int, interval: int) -> None:
        logger.info("kernel drift %.3f over steps %d ... %d", drift, step, step + interval)
        if drift > self.tolerance:
            warnings.warn(
                f"the kernel moves by {drift:.3g} in the single step {step}, more than tolerance={self.tolerance:g}: "
                "the learning rate is too large for a kernel that is constant within a step",
                KernelDriftWarning,
                stacklevel=5,
            )


@dataclass(frozen=True, eq=False)
class MeanPath:
    """The real network under full-batch gradient descent with torch's momentum and decay."""

    problem: Problem
    sgd: SGD
    plan: StepPlan
    params: Params
    buffers: Params

    @classmethod
    def start(cls, problem: Problem, sgd: SGD, plan: StepPlan) -> MeanPath:
        buffers = {name: torch.zeros_like(value) for name, value in problem.params.items()}
        return cls(problem, sgd, plan, problem.params, buffers)

    def ahead(self, start: int, n_steps: int) -> tuple[MeanPath, list[Tensor]]:
        """The path ``n_steps`` later, and the outputs [n + m, c] at each step before."""
        params, buffers = dict(self.params), dict(self.buffers)
        outputs = []
        for k in range(start, start + n_steps):
            outputs.append(_outputs(self.problem, params, k))
            gradient = grad(self._loss)(params)
            for name, value in params.items():
                slope = gradient[name] + self.sgd.weight_decay * value
                buffers[name], move = torch_step(self.sgd, slope, buffers[name], first=k == 0)
                params[name] = value - float(self.plan.lr[k]) * move
        return MeanPath(self.problem, self.sgd, self.plan, params, buffers), outputs

    def outputs(self, step: int) -> Tensor:
        """f at all train and test examples, [n + m, c]."""
        return _outputs(self.problem, self.params, step)

    def _loss(self, params: Params) -> Tensor:
        problem = self.problem
        return problem.criterion.mean(problem.forward(params, problem.x_train), problem.y_train)


class Fluctuation:
    """Covariance S of z = (e, buffer) at all train and test outputs, around a given mean path."""

    def __init__(self, problem: Problem, sgd: SGD, plan: StepPlan, dtype: torch.dtype) -> None:
        assert isinstance(problem.criterion, SquaredError)
        self._sgd, self._plan, self._s = sgd, plan, problem.criterion.curvature
        self._n, self._c, self._n_test = problem.n_train, problem.n_outputs, problem.n_test
        self._d, self._rows = self._n * self._c, (self._n + self._n_test) * self._c
        size = 2 * self._rows if sgd.momentum else self._rows
        self._covariance = torch.zeros(size, size, dtype=dtype, device=problem.device)
        self._targets = problem.y_train.to(dtype)

    def advance(self, k: int, outputs: Tensor, kernel: Tensor) -> None:
        """One step with the kernel [rows, d] and the mean outputs [n + m, c] of step k."""
        step = update(self._sgd, kernel.new_zeros(1), lr=float(self._plan.lr[k]), first=k == 0)
        gains = kernel.new_tensor([step.e_gain, step.u_gain] if self._sgd.momentum else [step.e_gain])
        transition = kernel.new_tensor([[float(step.ee), step.eu], [float(step.ue), step.uu]])
        transition = transition[: len(gains), : len(gains)]
        response = torch.kron(gains[:, None], kernel)
        noise = self._noise(k, outputs)
        half = self._move(transition, response, self._covariance)
        moved = self._move(transition, response, half.mT) + response @ noise @ response.mT
        self._covariance = (moved + moved.mT) / 2

    def law(self, step: int, time: float, outputs: Tensor) -> OutputLaw:
        """The Gaussian law with this mean [n + m, c]."""
        outputs, d, rows = outputs.to(self._covariance.dtype), self._d, self._rows
        train = _dense(self._covariance[:d, :d])
        if self._n_test == 0:
            return OutputLaw(step, time, outputs, train)
        test = _dense(self._covariance[d:rows, d:rows])
        return OutputLaw(step, time, outputs[: self._n], train, test_mean=outputs[self._n :], test_covariance=test)

    def _move(self, transition: Tensor, response: Tensor, state: Tensor) -> Tensor:
        blocks = state.reshape(len(transition), self._rows, state.shape[1])
        kept = torch.tensordot(transition, blocks, dims=1).view_as(state)
        return kept.addmm_(response, state[: self._d], alpha=self._s / self._n)

    def _noise(self, k: int, outputs: Tensor) -> Tensor:
        d = self._d
        residual = (outputs[: self._n].to(self._targets.dtype) - self._targets).flatten()
        moment = torch.addr(self._covariance[:d, :d], residual, residual)
        noise = residual_covariance(moment, self._n) * (self._plan.noise_factor(k) * self._s**2)
        if self._sgd.label_noise_std:
            variance = (self._s * self._sgd.label_noise_std) ** 2 / (self._n * float(self._plan.batch_size[k]))
            noise.diagonal().add_(variance)
        return noise


def kernel_at(problem: Problem, params: Params, dtype: torch.dtype) -> Tensor:
    """K(train and test, train) at these parameters, [(n + m) c, n c]."""
    functional, x, c = dataclasses.replace(problem.functional, params=params), problem.x_train, problem.n_outputs
    plan = KernelPlan.make(functional, params, x, None, c, dtype=dtype)
    train = gram(functional, x, None, plan=plan)
    if problem.x_test is None:
        return train
    plan = KernelPlan.make(functional, params, problem.x_test, x, c, dtype=dtype)
    return torch.cat([train, gram(functional, problem.x_test, x, plan=plan)])


def _outputs(problem: Problem, params: Params, step: int) -> Tensor:
    with torch.no_grad():
        outputs = problem.forward(params, problem.x_train)
        if problem.x_test is not None:
            outputs = torch.cat([outputs, problem.forward(params, problem.x_test)])
    if not torch.isfinite(outputs).all():
        raise ValueError(
            f"the mean path of the network must stay finite, got NaN or infinity at step {step}; full-batch descent "
            "diverges at this learning rate, use a smaller lr"
        )
    return outputs


def _stacked(linearization: Linearization) -> Tensor:
    kernel, cross = linearization.dense_kernel, linearization.dense_cross_kernel
    return kernel if cross is None else torch.cat([kernel, cross])


def _dense(covariance: Tensor) -> Covariance:
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    return Covariance(identity, covariance, identity)
