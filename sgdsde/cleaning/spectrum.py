"""A sample spectrum, what cleans it, and the cleaned spectrum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, finite_entries, real_floating, whole_number

Target: TypeAlias = Literal["true", "oracle"]
"""``"true"``: the eigenvalues of C. ``"oracle"``: u_i^T C u_i in the eigenvectors of the sample covariance."""

ROUNDING = 1e-12
"""Largest relative size of an eigenvalue that is zero but for rounding, per dimension."""


class Cleaner(ABC):
    """An estimator of eigenvalues of C from those of a sample covariance; abstract.

    Attributes:
        target: what it estimates. fewest_samples: below which it is refused.
    """

    target: Target
    fewest_samples: ClassVar[int] = 2

    @abstractmethod
    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        """Cleaned eigenvalues [p] of sample eigenvalues [p], float64, ascending, none negative."""


@dataclass(frozen=True, eq=False)
class CleanedSpectrum:
    """Cleaned eigenvalues of a covariance, and how they were made.

    Attributes:
        eigenvalues: float64 [p], in the order of the sample eigenvalues that they replace.
        target: what they estimate, the ``"true"`` eigenvalues or the ``"oracle"`` ones. sentence: how they were made.
    """

    eigenvalues: Tensor
    target: Target
    sentence: str


def clean(eigenvalues: Any, n_samples: int, method: Cleaner) -> CleanedSpectrum:
    """Eigenvalues of a covariance, estimated from those of a sample covariance.

    Args:
        eigenvalues: all p of them, zeros included, in any order: a tensor or array [p].
        n_samples: m, the degrees of freedom: S = X^T X / m. Of centered samples pass m - 1, and S with that divisor.
        method: an estimator, e.g. ``Lawley()``.
    Raises:
        ValueError: negative eigenvalues beyond rounding, NaN, all zero, or too few samples for the method.
    Cost: p^2 operations, except for linear shrinkage, p.
    Source: docs/cleaning.md.
    """
    if not isinstance(method, Cleaner):
        remedy = "use e.g. cleaning.Lawley()"
        raise TypeError(complaint("method", "a Cleaner", type(method).__name__, remedy))
    sample = checked_eigenvalues(eigenvalues)
    floor = method.fewest_samples
    remedy = f"{type(method).__name__} needs that many" if floor > 2 else "one sample has no covariance"
    m = whole_number("n_samples", n_samples, floor, remedy)
    order = np.argsort(sample, kind="stable")
    cleaned = np.empty_like(sample)
    cleaned[order] = method.estimate(sample[order], m)
    what = {"true": "the true eigenvalues", "oracle": "u^T C u in the sample's eigenvectors"}[method.target]
    sentence = f"{method!r} of {len(sample)} eigenvalues from {m} samples; estimates {what}"
    return CleanedSpectrum(finite_entries("cleaned eigenvalues", torch.from_numpy(cleaned)), method.target, sentence)


def checked_eigenvalues(eigenvalues: Any) -> np.ndarray:
    """Float64 [p], rounding errors below zero set to zero."""
    is_array = isinstance(eigenvalues, (Tensor, np.ndarray))
    tensor = torch.as_tensor(eigenvalues) if is_array else torch.tensor(eigenvalues, dtype=torch.float64)
    real_floating("eigenvalues", tensor)
    if tensor.ndim != 1:
        raise ValueError(complaint("eigenvalues", "[p]", f"shape {list(tensor.shape)}", "pass one spectrum at a time"))
    values = tensor.detach().double().cpu().numpy().copy()
    largest = np.abs(values).max()
    eps = max(float(torch.finfo(tensor.dtype).eps), ROUNDING)
    if values.min() < -len(values) * eps * largest:
        remedy = "a covariance has none; symmetrize the matrix and use eigvalsh"
        raise ValueError(complaint("eigenvalues", "none negative beyond rounding", float(values.min()), remedy))
    if largest == 0:
        raise ValueError(complaint("eigenvalues", "not all zero", f"{len(values)} zeros"))
    return np.maximum(values, 0.0)


def sample_spectrum(samples: Tensor, *, centered: bool = True, correlation: bool = False) -> tuple[Tensor, int]:
    """Eigenvalues of the sample covariance and its degrees of freedom, as ``clean`` takes them.

    Args:
        samples: [m, p]. centered: the mean is unknown and subtracted; the divisor is then m - 1 and so are the degrees
            of freedom. correlation: every column is scaled to unit variance first.
    Returns:
        Eigenvalues [p], ascending, zeros included, and m or m - 1.
    Cost: the smaller of the two Gram matrices, min(m, p)^2 max(m, p), and its eigenvalues.
    """
    real_floating("samples", samples)
    if samples.ndim != 2:
        raise ValueError(complaint("samples", "[m, p]", f"shape {list(samples.shape)}"))
    x = samples.double()
    m = whole_number("samples", len(x) - int(centered), 1, "one centered sample has no covariance")
    x = x - x.mean(0) if centered else x
    if correlation:
        scale = x.square().mean(0).sqrt()
        if (scale == 0).any():
            column = int((scale == 0).nonzero()[0])
            raise ValueError(complaint("samples", "of varying columns", f"column {column} constant", "leave it out"))
        x = x / (scale * (len(x) / m) ** 0.5)
    p = x.shape[1]
    gram = x.mT @ x if p <= len(x) else x @ x.mT
    found = torch.linalg.eigvalsh(gram / m).clamp_min(0)
    values = torch.zeros(p, dtype=torch.float64, device=x.device)
    kept = min(p, m)
    values[p - kept :] = found[len(found) - kept :]
    return values, m


def nonzero_part(eigenvalues: np.ndarray, n_samples: int, method: str) -> np.ndarray:
    """The min(p, m) eigenvalues that m samples in general position leave above zero, ascending.

    Raises:
        ValueError: one of them is zero: C is singular, or the degrees of freedom are fewer than was said.
    """
    kept = eigenvalues[max(0, len(eigenvalues) - n_samples) :]
    if kept[0] <= 1e-14 * kept[-1]:
        received = f"only {int((kept > 1e-14 * kept[-1]).sum())} of {len(eigenvalues)} from {n_samples} samples"
        remedy = "of centered samples pass m - 1; leave out directions that never vary"
        raise ValueError(complaint("eigenvalues", f"above zero in min(p, m) places for {method}", received, remedy))
    return kept
