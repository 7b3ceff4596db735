"""Many outputs at the cost of one, where every output has the same kernel of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde._progress import ticker
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.moment_recursion import Spread
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.dynamics.update import Mean, update
from sgdsde.kernel import KroneckerKernel
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.linearization import Linearization
from sgdsde.losses import SquaredError
from sgdsde.sgd import SGD


@dataclass(frozen=True, eq=False)
class TracedCovariance(Covariance):
    """F C F^T, the sum over outputs of the covariances of one output each, [n, n].

    Of the whole covariance S, [n*c, n*c], it knows the trace; ``squared_norm`` and ``quadratic`` are bounds from above,
    as if the outputs were perfectly correlated.
    """

    n_outputs: int = 1

    @property
    def squared_norm(self) -> Tensor:
        product = self.gram @ self.core
        return self.n_outputs * (product * product.mT).sum()

    def quadratic(self, vector: Tensor) -> Tensor:
        reduced = self.factor.mT @ vector.view(-1, self.n_outputs)
        return self.n_outputs * (reduced * (self.core @ reduced)).sum()

    def diagonal(self) -> Tensor:
        raise _unknown()

    def blocks(self, n_outputs: int) -> Tensor:
        raise _unknown()

    def to_dense(self) -> Tensor:
        raise _unknown()


def _unknown() -> ValueError:
    return ValueError(
        'TracedRecursion cannot represent the law of single outputs; use MomentRecursion or observe "loss"'
    )


@dataclass(frozen=True)
class TracedRecursion(Dynamics):
    """``MomentRecursion`` summed over outputs, for a kernel K_0 (x) I_c: m [n, c], and T [n, n] the trace over outputs,

        m' = A m,    T' = A T A + (phi lr^2 / B) K_0 [ (s^2/n) diag(P) - (s^2/n^2) P ] K_0,    P = T + m m^T

    with A = I - lr s K_0 / n (momentum and decay as there). No approximation is made beyond the kernel: the expected
    loss is that of ``MomentRecursion`` on K_0 (x) I_c, whose cost grows with c^3.

    Exactness: the expected loss as ``MomentRecursion``; its standard deviation is an UPPER BOUND, 2 to 3 times too
        large with three outputs, 4 to 6 with ten. What replacing a network's kernel by K_0 (x) I_c changes is not in
        it: compare with runs (docs/large_kernels.md).
    Cost: two products [n, r] x [r, r] a step, r the rank of K_0 or that of ``linearize(problem, kernel=..., rank=r)``,
        and c numbers a mode.
    """

    @property
    def noise_source(self) -> NoiseSource | None:
        return "state"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        if sgd.sampling == "shuffled":
            raise self.refuse("shuffled epochs", "sampling='without_replacement'")
        if not isinstance(linearization.kernel, KroneckerKernel):
            received, remedy = repr(linearization.kernel)[:60], "use MomentRecursion, or linearize(problem, kernel=...)"
            raise ValueError(complaint("kernel", "a KroneckerKernel for TracedRecursion", received, remedy))
        return _evolve(TracedModes(linearization, linearization.kernel), sgd, record, progress)


def _evolve(modes: TracedModes, sgd: SGD, record: Sequence[int], progress: Progress) -> Iterator[OutputLaw]:
    plan = sgd.plan(modes.n_train, record[-1])
    times, wanted = plan.times, set(record)
    offset = sgd.weight_decay * modes.decay_offset() if sgd.weight_decay else None
    mean, spread = Mean.at(modes.start), Spread.zero(modes.values, with_buffer=sgd.momentum > 0)
    ticks = ticker(progress, record[-1], "moment recursion, traced")
    for k in range(record[-1] + 1):
        if k in wanted:
            yield modes.law(k, times[k], mean.e, spread.ee, float(mean.weight_factor))
        if k == record[-1]:
            break
        lr = float(plan.lr[k])
        noise = modes.noise(spread.ee, mean.e, plan.noise_factor(k))
        if sgd.label_noise_std:
            noise = modes.add_labels(noise, sgd.label_noise_std**2 / int(plan.batch_size[k]))
        spread.advance(update(sgd, modes.drift, lr=lr, first=k == 0), noise)
        mean.advance(sgd, update(sgd, modes.drift[:, None], lr=lr, first=k == 0), offset, lr=lr, first=k == 0)
        ticks.update(1)
    ticks.close()


class TracedModes:
    """Coordinates of every output in the eigenbasis of K_0: means [r, c], a covariance [r, r] summed over outputs.

    To what only looks at second moments it is a problem of one output, with the curvature s of c outputs.
    """

    n_outputs = 1

    def __init__(self, linearization: Linearization, kernel: KroneckerKernel) -> None:
        criterion, problem = linearization.problem.criterion, linearization.problem
        if not isinstance(criterion, SquaredError):
            loss = type(problem.loss).__name__
            raise ValueError(complaint("loss", "nn.MSELoss()", loss, "use dynamics.SDEPaths"))
        basis, dtype = linearization.basis, linearization.outputs.dtype
        if basis is None:
            basis = Eigenbasis.of(kernel.base).scaled(kernel.scale)
        self.values, self.vectors = basis.values.to(dtype), basis.vectors.to(dtype)
        self.n_train, self.loss_curvature, self._c = problem.n_train, criterion.curvature, problem.n_outputs
        self.linearization, initial = linearization, linearization.residual
        self.start = self.vectors.mT @ initial
        self._fixed = initial - self.vectors @ self.start
        self.n_labels = self._c
        self.drift = self.loss_curvature * self.values / self.n_train
        self._scaled = self.vectors * self.values
        self._gram = torch.eye(len(self.values)).to(self.values)
        self._test: tuple[Tensor, Tensor] | None = None
        cross = linearization.cross_kernel
        if cross is not None:
            if not isinstance(cross, KroneckerKernel):
                remedy = "make it with linearize(problem, kernel=...)"
                raise ValueError(
                    complaint("cross_kernel", "a KroneckerKernel like the kernel", repr(cross)[:60], remedy)
                )
            factor = cross.scale * (cross.base @ self.vectors) / self.values
            self._test = (factor, factor.mT @ factor)

    def residual(self, coordinates: Tensor) -> Tensor:
        """e [n, c] with these coordinates [r, c]."""
        return self.vectors @ coordinates + self._fixed

    def decay_offset(self) -> Tensor:
        weights = self.linearization.weight_outputs
        if weights is None:
            remedy = "make it with linearize(problem), or use weight_decay=0"
            raise ValueError(complaint("weight_decay", "0 where J theta_0 is unknown", "no weight_outputs", remedy))
        return self.vectors.mT @ weights - self.start

    def noise(self, covariance: Tensor, mean: Tensor, factor: float) -> Tensor | None:
        """Covariance of one step's gradient, summed over outputs, [r, r]; None when the batch is the whole set."""
        if factor == 0:
            return None
        own = self.residual(mean).square().sum(1)
        own = own + ((self.vectors @ covariance) * self.vectors).sum(1)
        noise = self._scaled.mT @ (own[:, None] * self._scaled)
        moment = torch.addmm(covariance, mean, mean.mT)
        noise -= moment * self.values[:, None] * self.values / self.n_train
        return noise * (factor * self.loss_curvature**2 / self.n_train)

    def add_labels(self, noise: Tensor | None, variance: float) -> Tensor:
        noise = torch.zeros_like(self._gram) if noise is None else noise
        noise.diagonal().add_(self.values.square(), alpha=self._c * self.loss_curvature**2 * variance / self.n_train)
        return noise

    def law(self, step: int, time: float, mean: Tensor, covariance: Tensor, weight_factor: float) -> OutputLaw:
        one, shift = self.linearization, mean - self.start
        train = TracedCovariance(self.vectors, covariance, self._gram, self._c)
        train_mean = one.outputs + self.vectors @ shift
        if self._test is None or one.test_outputs is None:
            return OutputLaw(step, time, train_mean, train)
        test_mean, (factor, gram) = one.test_outputs, self._test
        if weight_factor != 1.0:
            assert one.weight_outputs is not None
            assert one.test_weight_outputs is not None
            shift = shift - (weight_factor - 1) * (self.vectors.mT @ one.weight_outputs)
            test_mean = test_mean + (weight_factor - 1) * one.test_weight_outputs
        test = TracedCovariance(factor, covariance, gram, self._c)
        return OutputLaw(step, time, train_mean, train, test_mean=test_mean + factor @ shift, test_covariance=test)
