"""Comparisons of a prediction with a sample, at a stated chance of a false alarm over all numbers compared.

Each of N comparisons of a claim gets the share error_rate / N (Bonferroni), two-sided, from the normal law of a sample
mean: sample sizes are fixed beforehand, and nothing is ever drawn again.
"""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor

ERROR_RATE = 1e-4
"""Chance that a true claim fails, over everything that one assertion compares."""

EXACT = 1e-10
"""Relative error where the sample has no spread (step 0, or no noise at all)."""


def threshold(n_comparisons: int, error_rate: float = ERROR_RATE) -> float:
    """|z| that N independent or dependent normal numbers exceed with a chance of at most ``error_rate``."""
    return float(stats.norm.isf(error_rate / (2 * max(n_comparisons, 1))))


def z_scores(predicted: Tensor, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z = (estimate - predicted) / standard error, with estimate and standard error, of samples [R, ...].

    Where all samples agree z is 0 or infinite, as the prediction is equal to 1e-10 or not.
    """
    estimate, error = samples.mean(0), samples.std(0, correction=1) / len(samples) ** 0.5
    scale = torch.maximum(predicted.abs(), estimate.abs()).clamp_min(1e-300)
    certain = error <= EXACT * scale
    equal = (estimate - predicted).abs() <= EXACT * scale
    z = (estimate - predicted) / torch.where(certain, 1.0, error)
    return torch.where(certain, torch.where(equal, 0.0, torch.inf), z), estimate, error


def assert_mean_is(
    predicted: Tensor, samples: Tensor, *, what: str = "", error_rate: float = ERROR_RATE, n_claims: int = 1
) -> None:
    """The mean of i.i.d. samples [R, ...] is ``predicted`` [...] in every entry.

    ``n_claims``: how many such assertions share the error rate. A failure prints z, estimate, standard error of the
    worst entry.
    """
    z, estimate, error = z_scores(predicted, samples)
    limit = threshold(z.numel() * n_claims, error_rate)
    worst = int(z.abs().nan_to_num(nan=torch.inf).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), z.shape))
    assert bool((z.abs() <= limit).all()), (
        f"{what or 'mean'} at {where}: z = {z.flatten()[worst]:.2f} beyond +-{limit:.2f} (family-wise error rate "
        f"{error_rate:g} over {z.numel()} comparisons, {len(samples)} samples): estimate "
        f"{estimate.flatten()[worst]:.8g}, standard error {error.flatten()[worst]:.3g}, "
        f"predicted {predicted.flatten()[worst]:.8g}"
    )
