"""Limits on the learning rate of a large training set, from a few dozen of its examples."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, fraction_below_one, whole_number
from sgdsde._types import Sampling
from sgdsde.cleaning import Lawley, UncleanedWarning, clean
from sgdsde.cleaning.subsample import AUXILIARY, own_curvatures, subsample_kernel
from sgdsde.kernel.eigenbasis import Eigenbasis
from sgdsde.problem import Problem
from sgdsde.sgd import SGD
from sgdsde.stability.limits import limit_of_map, noise_among
from sgdsde.stability.second_moments import SecondMomentMap

GROUPS = 20
"""Parts of the subsample that the jackknife leaves out in turn; half as many where a limit is slow to find."""

SLOW = 256
"""Outputs of the subsample from which it is."""

PRECISION = 1e-6
"""Relative, of a limit whose standard error is percents."""


@dataclass(frozen=True)
class SubsampledLimit:
    """Largest stable learning rate of SGD on a whole training set, from m of its n examples.

    Attributes:
        value: the limit. standard_error: its standard deviation over subsamples, estimated.
        n_used, n_auxiliary, n_train: m; examples whose K_ii was used; n.
    """

    value: float
    standard_error: float
    n_used: int
    n_auxiliary: int
    n_train: int

    def __str__(self) -> str:
        return (
            f"stable up to lr {self.value:.4g} +- {self.standard_error:.2g} in mean square, from {self.n_used} of "
            f"{self.n_train} examples"
        )


def max_lr_from_subsample(
    problem: Problem,
    batch_size: int,
    m: int,
    *,
    seed: int = 0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    sampling: Sampling = "with_replacement",
    n_auxiliary: int | None = None,
    memory: int | None = None,
) -> SubsampledLimit:
    """``max_lr`` of a training set whose kernel is too large, from the kernel of m random examples.

    1 / limit of the subsample, its top eigenvalue cleaned (``cleaning.Lawley``), is scaled by the examples' own
    curvature s tr K_ii as in ``cleaning.sharpness_from_subsample``.

    Args:
        m: examples, 3 ... n. seed: of the draw, without replacement.
        batch_size and the rest: as in ``max_lr``, dampening below 1; phi is that of the whole set.
        n_auxiliary: examples with a known K_ii, default min(n, 20 m).
    Returns:
        A ``SubsampledLimit`` with a standard error by the jackknife over 20 groups, 10 above 256 outputs.
    Warns:
        UncleanedWarning: the top eigenvalue is not separated and stays raw; the limit is then too low.
    Exactness: nearly unbiased where full batches or even curvatures decide: digits within 0.5 % at m = 50. Where a few
        large examples decide, small batches on MNIST, 11 % too low at m = 100, the safe side, with rms errors of 1.2
        to 1.4 standard errors (docs/cleaning.md). At m = n it is ``max_lr`` with standard error 0.
    Cost: the kernel of m examples and 21 (11) limits of m c outputs: half a second at 100, ten at 500.
    """
    if not isinstance(problem, Problem):
        raise TypeError(complaint("problem", "a Problem", type(problem).__name__, "use sgdsde.Problem(model, ...)"))
    n, c = problem.n_train, problem.n_outputs
    m = whole_number("m", m, 3)
    if m > n:
        raise ValueError(complaint("m", f"at most n_train = {n}", m))
    fraction_below_one("dampening", dampening)
    sgd = SGD(1.0, 1, momentum=momentum, dampening=dampening, nesterov=nesterov, weight_decay=weight_decay)
    noise = noise_among(n, batch_size, sampling)
    drawn, kernel, s = subsample_kernel(problem, m, seed=seed, memory=memory)
    inverse = _inverse_limit(kernel, c, s, noise, sgd, is_all=m == n)
    if m == n:
        return SubsampledLimit(1 / inverse, 0.0, n, n, n)
    wanted = AUXILIARY * m if n_auxiliary is None else whole_number("n_auxiliary", n_auxiliary, m)
    own = s * kernel.diagonal().view(m, c).sum(1).cpu().numpy()
    rest = own_curvatures(problem, drawn[m : min(wanted, n)], memory=memory)
    level, more = np.concatenate([own, rest]).mean(), m + len(rest)
    left = []
    for group in np.array_split(np.arange(m), min(GROUPS if m * c <= SLOW else GROUPS // 2, m)):
        kept = np.setdiff1d(np.arange(m), group)
        rows = torch.from_numpy((kept[:, None] * c + np.arange(c)).ravel()).to(kernel.device)
        with warnings.catch_warnings():  # said once, of the whole subsample
            warnings.simplefilter("ignore", UncleanedWarning)
            left.append((_inverse_limit(kernel[rows][:, rows], c, s, noise, sgd), own[kept].mean()))
    plain, scale = np.array(left).T
    along = _jackknife(plain / scale * level) * m * (1 / m - 1 / more) + _jackknife(plain) * m * (1 / more - 1 / n)
    value = own.mean() / (inverse * level)
    return SubsampledLimit(float(value), float(value**2 * math.sqrt(along)), m, more, n)


def _jackknife(left_out: np.ndarray) -> float:
    """Variance of an estimate from its values without one group each."""
    groups = len(left_out)
    return float((groups - 1) / groups * ((left_out - left_out.mean()) ** 2).sum())


def _inverse_limit(kernel: Tensor, c: int, s: float, noise: float, sgd: SGD, *, is_all: bool = False) -> float:
    basis = Eigenbasis.of(kernel)
    values = basis.values
    if not is_all:
        lawley = Lawley(k=min(c, len(values)), copies=c)  # the largest of every output
        values = clean(values, len(kernel) // c, lawley).eigenvalues.to(values)
    moments = SecondMomentMap(values, basis.vectors, n_outputs=c, curvature=s)
    return 1 / limit_of_map(moments, noise, sgd=sgd, precision=PRECISION)
