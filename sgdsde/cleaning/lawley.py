"""The bias of separated eigenvalues, removed to first order."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np

from sgdsde._checks import complaint, whole_number
from sgdsde.cleaning.spectrum import Cleaner, Target

TRUSTED = 0.3
"""Largest relative correction that is made: a first-order formula, and beyond it the eigenvalue is not separated."""


class UncleanedWarning(UserWarning):
    """An eigenvalue is not separated enough from the others to be corrected, and was left as it is."""


@dataclass(frozen=True)
class Lawley(Cleaner):
    """The k largest eigenvalues without the bias that the others give them; the rest stays raw.

        l_i (1 - (1/m) sum_{j != i} l_j / (l_i - l_j))

    Needs no prior and no p/m; p > m is allowed, a sample's zeros add nothing. Where the correction is above 0.3 of the
    eigenvalue it is not made and an ``UncleanedWarning`` names the eigenvalue: the sample's own value is then too
    large, and a limit on the learning rate made from it errs on the safe side.

    Args:
        k: how many. Later ones are corrected only where they too are separated.
        copies: of every sample vector, as c outputs that share one kernel give; eigenvalues then come in groups of
            this size, whose members do not repel each other, and the others count 1/copies each.
    Exactness: bias O(1/m^2) for separated eigenvalues of Gaussian samples.
    Source: Lawley, Biometrika 43 (1956).
    """

    k: int = 1
    copies: int = 1
    target: Target = field(default="true", init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", whole_number("k", self.k, 1))
        object.__setattr__(self, "copies", whole_number("copies", self.copies, 1))

    def estimate(self, eigenvalues: np.ndarray, n_samples: int) -> np.ndarray:
        p = len(eigenvalues)
        if self.k > p:
            raise ValueError(complaint("k", f"at most the {p} eigenvalues", self.k))
        cleaned = eigenvalues.copy()
        for i in range(p - 1, p - 1 - self.k, -1):
            correction = relative_bias(eigenvalues, i, n_samples, self.copies)
            if abs(correction) < TRUSTED:
                cleaned[i] *= 1 - correction
            else:
                warnings.warn(
                    f"eigenvalue {p - i} of {p} is left raw: its bias from {n_samples} samples would be "
                    f"{100 * correction:.3g} % of it, more than {100 * TRUSTED:.0f} %; it is not separated enough, "
                    "take more samples",
                    UncleanedWarning,
                    stacklevel=4,
                )
        return cleaned


def relative_bias(eigenvalues: np.ndarray, i: int, n_samples: int, copies: int = 1) -> float:
    """(1/m) sum of l_j / (l_i - l_j), j outside the group of i, over the copies; infinite for an equal outside it.

    Eigenvalues ascend; groups of ``copies`` are counted from the largest.
    """
    p = len(eigenvalues)
    last = p - (p - 1 - i) // copies * copies
    others = np.delete(eigenvalues, np.s_[max(0, last - copies) : last])
    others = others[others > 0]
    gaps = eigenvalues[i] - others
    return float("inf") if (gaps == 0).any() else float((others / gaps).sum() / (n_samples * copies))
