"""The largest curvature of a training set from a few dozen of its examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, whole_number
from sgdsde._streams import numpy_stream
from sgdsde.cleaning.lawley import Lawley
from sgdsde.cleaning.spectrum import Cleaner, clean
from sgdsde.curvature import curved_kernel
from sgdsde.kernel import KernelPlan, gram
from sgdsde.linearization import initial_outputs
from sgdsde.problem import Problem

BLOCK = 32
"""Examples whose kernels with themselves are cut out of one small kernel: fewer cost calls, more cost products."""

AUXILIARY = 20
"""Examples with a known K_ii for each one of the subsample, unless told otherwise."""

LARGEST_SPECTRUM = 4096
"""Parameters up to which a method that needs the zeros of a sample spectrum is given them."""


@dataclass(frozen=True)
class SubsampledSharpness:
    """Largest eigenvalue of the Gauss-Newton matrix H of a whole training set, from m of its n examples.

    Attributes:
        value: l_1(H); of squared error s l_1(K)/n. standard_error: its standard deviation over subsamples, estimated.
        raw: the subsample's own largest eigenvalue, too large on average.
        n_used, n_auxiliary, n_train: m; examples whose K_ii was used; n. sentence: all of it in words.
    """

    value: float
    standard_error: float
    raw: float
    n_used: int
    n_auxiliary: int
    n_train: int
    method: str

    @property
    def max_lr_full_batch(self) -> float:
        """2 / l_1(H): the largest stable learning rate of full-batch gradient descent."""
        return 2 / self.value

    @property
    def max_lr_standard_error(self) -> float:
        """Standard error of ``max_lr_full_batch``, to first order."""
        return 2 * self.standard_error / self.value**2

    @property
    def sentence(self) -> str:
        """The estimate in words, with its numbers."""
        return (
            f"sharpness {self.value:.4g} +- {self.standard_error:.2g} from {self.n_used} of {self.n_train} examples "
            f"({self.method}; {self.raw:.4g} raw): full-batch descent is stable up to lr "
            f"{self.max_lr_full_batch:.4g} +- {self.max_lr_standard_error:.2g}"
        )

    def __str__(self) -> str:
        return self.sentence


def sharpness_from_subsample(
    problem: Problem,
    m: int,
    *,
    seed: int = 0,
    method: Cleaner | None = None,
    n_auxiliary: int | None = None,
    memory: int | None = None,
) -> SubsampledSharpness:
    """Largest eigenvalue of the Gauss-Newton matrix at initialization, from the kernel of m random examples.

    The sample's top eigenvalue is cleaned of its bias, and scaled by the examples' own curvature d_i = s tr K_ii, which
    is cheap and therefore known of more examples than the kernel (ratio estimator of two-phase sampling):

        value = cleaned(l_1) (mean of d over n_auxiliary) / (mean of d over m)

    The curvature of example i along the top eigenvector a of the subsample's kernel, m l_1 |a_i|^2, has mean l_1 and
    largely follows d_i: what the subsample has too many large examples of is seen, and taken out.

    Args:
        m: examples, 2 ... n. seed: of the draw, without replacement.
        method: default ``Lawley(copies=c)``, which leaves the top raw, too large and therefore safe, where it is not
            separated. Shrinkage errs on the unsafe side unless the spectrum is flat.
        n_auxiliary: examples with a known d_i, default min(n, 20 m); m for none beyond the subsample.
        memory: bytes for the kernel; default a quarter of what is free.
    Returns:
        A ``SubsampledSharpness`` with a standard error by the infinitesimal jackknife, sampling without replacement.
    Raises:
        ValueError: m outside its range; a loss of no positive curvature.
    Warns:
        UncleanedWarning: the top eigenvalue of the subsample is not separated; take more examples.
    Exactness: bias O(1/m^2) for one output, and for several that share a kernel; under cross-entropy, which couples
        them, part of the bias stays (9 % too large at m = 100 where raw is 12 %). At m = n exact, standard error 0.
    Cost: the kernel of m examples and its eigenvectors, (m c)^3, and 2 n_auxiliary BLOCK rows of a kernel.
    Source: Lawley (1956); docs/cleaning.md.
    """
    if not isinstance(problem, Problem):
        raise TypeError(complaint("problem", "a Problem", type(problem).__name__, "use sgdsde.Problem(model, ...)"))
    n = problem.n_train
    m = whole_number("m", m, 2)
    if m > n:
        raise ValueError(complaint("m", f"at most n_train = {n}", m))
    method = Lawley() if method is None else method
    if isinstance(method, Lawley) and method.copies == 1:
        method = replace(method, copies=problem.n_outputs)
    drawn, kernel, s = subsample_kernel(problem, m, seed=seed, memory=memory)
    values, vectors = torch.linalg.eigh(kernel * (s / m))
    raw = float(values[-1])
    own = m * raw * vectors[:, -1].view(m, -1).square().sum(1).cpu().numpy()
    value, spread = raw, own
    if m < n:
        value = _cleaned_top(problem, values, m, method)
        spread = own * (value / raw)
    wanted = AUXILIARY * m if n_auxiliary is None else whole_number("n_auxiliary", n_auxiliary, m)
    rest = own_curvatures(problem, drawn[m : min(wanted, n)], memory=memory)
    first = s * kernel.diagonal().view(m, -1).sum(1).cpu().numpy()
    factor, error = two_phase(spread, first, np.concatenate([first, rest]), n)
    described = repr(method) if m < n else "exact"
    return SubsampledSharpness(value * factor, error, raw, m, m + len(rest), n, described)


def subsample_kernel(
    problem: Problem, m: int, *, seed: int, memory: int | None = None
) -> tuple[np.ndarray, Tensor, float]:
    """A random order of all examples, the curved kernel [m c, m c] of its first m, and s (``curved_kernel``)."""
    drawn = numpy_stream(seed, "examples of a subsample", 0).permutation(problem.n_train)
    return drawn, *_kernel_of(problem, drawn[:m], memory)


def _kernel_of(problem: Problem, rows: np.ndarray, memory: int | None) -> tuple[Tensor, float]:
    index = torch.from_numpy(rows).to(problem.device)
    x, y, functional = problem.x_train[index], problem.y_train[index], problem.functional
    plan = KernelPlan.make(functional, functional.params, x, None, problem.n_outputs, memory=memory)
    kernel = gram(functional, x, None, plan=plan)
    outputs = initial_outputs(problem, x, plan.rows).to(kernel.dtype)
    targets = y.to(outputs.dtype) if y.is_floating_point() else y
    return curved_kernel(kernel, problem.criterion, outputs, targets)


def own_curvatures(problem: Problem, rows: np.ndarray, *, memory: int | None = None) -> np.ndarray:
    """s tr K_ii of the curved kernel for these examples, float64."""
    found = [np.zeros(0)]
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        kernel, s = _kernel_of(problem, block, memory)
        found.append(s * kernel.diagonal().view(len(block), -1).sum(1).cpu().numpy())
    return np.concatenate(found)


def two_phase(values: np.ndarray, own: np.ndarray, auxiliary: np.ndarray, n: int) -> tuple[float, float]:
    """The ratio of an auxiliary variable's means, and the standard error of a sample mean that is scaled by it.

    Args:
        values: [m], whose mean is estimated. own: [m], the auxiliary variable of the same examples. auxiliary: [M >= m]
            of these and further ones, all drawn without replacement from n.
    Returns:
        mean(auxiliary) / mean(own), and the root of S_e^2 (1/m - 1/M) + S^2 (1/M - 1/n), with S^2 the variance of the
        values and S_e^2 that of e_i = v_i - (mean(v) / mean(own)) own_i.
    Exactness: to first order in 1/m.
    Source: Cochran, Sampling Techniques (1977), section 12.8.
    """
    m, more = len(values), len(auxiliary)
    variance = values.var(ddof=1)
    if more == m or not own.mean() > 0:
        return 1.0, math.sqrt(max(0.0, variance * (1 / m - 1 / n)))
    around = (values - values.mean() / own.mean() * own).var(ddof=1)
    factor = float(auxiliary.mean() / own.mean())
    squared = around * (1 / m - 1 / more) + variance * (1 / more - 1 / n)
    return factor, factor * math.sqrt(max(0.0, squared))


def _cleaned_top(problem: Problem, values: Tensor, m: int, method: Cleaner) -> float:
    if isinstance(method, Lawley):  # zeros of the sample change nothing
        return float(clean(values.clamp_min(0), m, method).eigenvalues[-1])
    p = problem.functional.n_params
    if p > LARGEST_SPECTRUM:
        expected = f"Lawley() for a model of more than {LARGEST_SPECTRUM} parameters"
        raise ValueError(complaint("method", expected, f"{method!r} of {p}", "omit it"))
    spectrum = values.new_zeros(p)
    kept = min(p, len(values))
    spectrum[p - kept :] = values[len(values) - kept :].clamp_min(0)
    return float(clean(spectrum, m, method).eigenvalues[-1])
