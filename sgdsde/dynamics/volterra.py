"""Expected losses from products with the kernel alone: homogenized SGD by Lanczos, no eigendecomposition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgdsde._checks import whole_number
from sgdsde._streams import torch_stream
from sgdsde._types import Progress
from sgdsde.dynamics.dynamics import Dynamics, NoiseSource
from sgdsde.dynamics.modal_moments import warn_beyond_range
from sgdsde.dynamics.moments.modes import squared_error_of
from sgdsde.dynamics.moments.state import MomentState, laws
from sgdsde.dynamics.output_law import Covariance, OutputLaw
from sgdsde.kernel import KernelOperator, KroneckerKernel, leading_eigenpairs
from sgdsde.kernel.krylov import random_signs, spectral_nodes
from sgdsde.linearization import Linearization
from sgdsde.sgd import SGD, StepPlan


@dataclass(frozen=True)
class Volterra(Dynamics):
    """The expected training loss of plain SGD with delocalized eigenvectors (Paquette et al.): every mode takes the
    same share of the noise, whatever example it comes from,

        Psi_k = F_k + sum_{j<k} kappa_{k-1-j} Psi_j,    kappa_t = (q/c) sum_i x_i^2 p_i^t,    x = lr s l / n,
        p_i = (1 - x_i)^2 - q x_i^2,    F_k = (s/2n) sum_i p_i^k (u_i^T e_0)^2,    q = phi/B,

    with F from Lanczos started at e_0, and kappa from the leading eigenpairs exactly and Lanczos started at random
    signs on the rest. Without the leading pairs single draws were up to 87 % off.

    Args:
        rank: leading eigenpairs. n_lanczos: products from e_0 and from each of ``n_probes`` random vectors.
        seed: of the random vectors.
    Exactness: on digits 3 to 5 % at half of the mean-square limit (48 images: 6 % at a quarter). Training loss only.
    Cost: 4 rank + n_lanczos (1 + n_probes) products with K; then a few hundred numbers a step.
    Warns:
        ClosureRangeWarning: a learning rate above 0.6 of the limit of the equation.
    Source: derived in docs/derivations.md.
    """

    rank: int = 20
    n_lanczos: int = 40
    n_probes: int = 2
    seed: int = 0

    squared_error_only: ClassVar[bool] = True
    independent_batches_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("rank", "n_lanczos", "n_probes"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), minimum=1))

    @property
    def needs_spectrum(self) -> bool:
        return False

    @property
    def noise_source(self) -> NoiseSource | None:
        return None

    def noise_assumption(self, sgd: SGD) -> str:
        return "every mode of the kernel takes the same share of the noise of every example"

    def evolve(
        self, linearization: Linearization, sgd: SGD, record: Sequence[int], *, progress: Progress = None
    ) -> Iterator[OutputLaw]:
        self.check(linearization, sgd)
        for name in ("momentum", "weight_decay", "label_noise_std"):
            if getattr(sgd, name):
                raise self.refuse(name.removesuffix("_std").replace("_", " "), "dynamics.ModalMoments()")
        plan = sgd.plan(linearization.problem.n_train, record[-1])
        state = VolterraState(linearization, plan, self)
        warn_beyond_range("Volterra", sgd, plan, state.limit)
        return laws(state, plan, record, "Volterra", progress)


class VolterraState(MomentState):
    """Squared means and variances at the nodes of quadratures of the spectrum.

    Mean nodes: Ritz values of K from e_0, with the squared overlap that is left of each. Variance nodes: eigenvalues
    with multiplicities. The variance of a single mode is also followed at the mean nodes, for the spread of the loss.
    """

    def __init__(self, linearization: Linearization, plan: StepPlan, options: Volterra) -> None:
        problem = linearization.problem
        self._linearization, self._plan = linearization, plan
        self._n, self._c = problem.n_train, problem.n_outputs
        curvature, kernel = squared_error_of(linearization).curvature, linearization.operator
        start = linearization.residual.flatten()
        theta, turned, basis, length = lanczos(kernel, start, options.n_lanczos)
        self._ritz, self._overlaps = basis @ turned, length * turned[0]
        values, counts = spectral_measure(kernel, options, like=start)
        scale = curvature / self._n
        self._mean_drift, self._drift, self._counts = scale * theta.clamp_min(0), scale * values.clamp_min(0), counts
        self._mean = self._overlaps.clone()
        self._centered = self._overlaps.square()
        self._variance, self._at_mean = torch.zeros_like(values), torch.zeros_like(theta)

    def law(self, step: int, time: float) -> OutputLaw:
        shift = self._ritz @ (self._mean - self._overlaps)
        outputs = self._linearization.outputs
        total = self._total() - self._mean.square().sum()
        squares = (self._counts * self._variance.square()).sum()
        along = (self._mean.square() * self._at_mean).sum()
        spread = TracedSpread(total.clamp_min(0), squares, along)
        return OutputLaw(step, time, outputs + shift.view_as(outputs), spread)

    def _total(self) -> Tensor:
        """E |e|^2."""
        return self._centered.sum() + (self._counts * self._variance).sum()

    def advance(self, k: int) -> None:
        lr, q, total = float(self._plan.lr[k]), self._plan.noise_factor(k), self._total()
        x, y = lr * self._drift, lr * self._mean_drift
        self._variance = ((1 - x).square() - q * x.square()) * self._variance + q / self._c * x.square() * total
        kept = (1 - y).square() - q * y.square()
        self._at_mean = kept * self._at_mean + q / self._c * y.square() * total
        self._centered, self._mean = kept * self._centered, (1 - y) * self._mean

    def limit(self, noise: float) -> float:
        """Where the sum of kappa reaches 1: (q/c) sum_i x_i / (2 - (1 - q) x_i) = 1, by bisection."""
        top = 2 / float(self._drift.max()) / max(1 - noise, 1e-12)
        low, high = 0.0, min(top, 2 / float(self._drift.max()) * 2)
        for _ in range(60):
            lr = (low + high) / 2
            x = lr * self._drift
            denominator = 2 - (1 - noise) * x
            is_stable = (
                bool((denominator > 0).all()) and float(noise / self._c * (self._counts * x / denominator).sum()) < 1
            )
            low, high = (lr, high) if is_stable else (low, lr)
        return max(low, 1e-300)


class TracedSpread(Covariance):
    """A covariance of which only numbers are known: tr S, tr S^2, and e^T S e for the mean residual e."""

    def __init__(self, trace: Tensor, squared_norm: Tensor, along: Tensor) -> None:
        for name, value in {"_trace": trace, "_squared_norm": squared_norm, "_along": along}.items():
            object.__setattr__(self, name, value)

    _trace: Tensor
    _squared_norm: Tensor
    _along: Tensor

    @property
    def trace(self) -> Tensor:
        return self._trace

    @property
    def squared_norm(self) -> Tensor:
        return self._squared_norm

    def quadratic(self, vector: Tensor) -> Tensor:
        return self._along

    def diagonal(self) -> Tensor:
        raise _unknown()

    def blocks(self, n_outputs: int) -> Tensor:
        raise _unknown()

    def to_dense(self) -> Tensor:
        raise _unknown()

    @property
    def core(self) -> Tensor:
        raise _unknown()


def _unknown() -> ValueError:
    return ValueError('Volterra cannot represent the law of single outputs; use MomentRecursion or observe "loss"')


def lanczos(kernel: KernelOperator, start: Tensor, n_steps: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Ritz values [m], eigenvectors of the tridiagonal matrix [m, m], Lanczos basis [d, m] and the length of the start.

    Full reorthogonalization, twice. Ends early where the start lies in an invariant subspace.
    """
    length = float(start.norm())
    basis, diagonal, off = [start / length], [], []
    for _ in range(min(n_steps, len(start))):
        vector = (kernel @ basis[-1][:, None])[:, 0].to(start.dtype)
        diagonal.append(float(vector @ basis[-1]))
        stacked = torch.stack(basis, 1)
        for _ in range(2):
            vector = vector - stacked @ (stacked.mT @ vector)
        off.append(float(vector.norm()))
        if off[-1] <= 1e-12 * max(abs(value) for value in diagonal):
            break
        basis.append(vector / off[-1])
    m = len(diagonal)
    matrix = torch.diag(start.new_tensor(diagonal))
    if m > 1:
        matrix += torch.diag(start.new_tensor(off[: m - 1]), 1) + torch.diag(start.new_tensor(off[: m - 1]), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors, torch.stack(basis[:m], 1), length


def spectral_measure(kernel: KernelOperator, options: Volterra, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of K with multiplicities: the leading ones, and a quadrature of the rest."""
    if isinstance(kernel, KroneckerKernel):  # every eigenvalue of the shared kernel occurs once for every output
        values, counts = spectral_measure(kernel.base, options, like=like[: len(kernel.base)])
        return kernel.scale * values, kernel.n_outputs * counts
    d = len(like)
    rank = min(options.rank, d)
    leading = leading_eigenpairs(kernel, rank)
    values, vectors = leading.values.to(like), leading.vectors.to(like)
    if rank == d:
        return values, torch.ones_like(values)
    generator = torch_stream(options.seed, "spectral measure", 0, like.device)
    signs = random_signs(d, options.n_probes, generator).to(like)
    nodes, weights = spectral_nodes(kernel, signs, options.n_lanczos, outside=torch.linalg.qr(vectors).Q)
    counts = torch.cat([torch.ones_like(values), weights.flatten() / options.n_probes])
    return torch.cat([values, nodes.flatten()]), counts
