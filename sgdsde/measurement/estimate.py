"""Mean losses of a sample of runs with their standard errors: plain, or with a control of known mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor

NORMAL = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, eq=False)
class MeanLoss:
    """A mean loss at T steps.

    Attributes:
        mean, standard_error: [T]. freedom: degrees of freedom of the standard error.
    """

    mean: Tensor
    standard_error: Tensor
    freedom: int

    @property
    def widened(self) -> Tensor:
        """The standard error times t / 1.96, [T]: 1.96 of these on both sides are Student's 95 % interval."""
        return self.standard_error * widening(self.freedom)

    @property
    def relative(self) -> Tensor:
        """The widened standard error relative to the mean, [T]; 0 without spread, NaN where a run has diverged."""
        return torch.where(self.standard_error > 0, self.widened / self.mean.abs(), self.standard_error * 0)


def widening(freedom: int) -> float:
    """t / 1.96 for a two-sided 95 % interval; infinite without a degree of freedom."""
    return float(stats.t.ppf(0.975, freedom)) / NORMAL if freedom > 0 else float("inf")


def plain_mean(losses: Tensor) -> MeanLoss:
    """The sample mean of losses [R, T]."""
    runs = len(losses)
    error = (losses - losses[0]).std(0, correction=1) / runs**0.5 if runs > 1 else torch.full_like(losses[0], torch.inf)
    return MeanLoss(losses.mean(0), error, runs - 1)


def controlled_mean(losses: Tensor, control: Tensor, known: Tensor, known_error: Tensor) -> MeanLoss:
    """The mean of losses, less what a correlated quantity of known mean says was chance.

    With covariances over R runs, mu the known mean of the control c and v the variance of what is known of it:

        b = Cov(y, c) / (Var c + R v),    mean = mean(y) - b (mean(c) - mu)
        Var = s^2 [1/R + (mean(c) - mu)^2 / sum (c - mean c)^2] + b^2 v,    s^2 = sum (y - b c - ...)^2 / (R - 2)

    Args:
        losses, control: [R, T], of the same runs. known, known_error: [T], mean of the control and its standard error.
    Returns:
        The estimate; the plain mean at steps where the control does not vary or is not finite.
    Exactness: unbiased up to a term of order 1/R, which vanishes where y is linear in c; s^2 is that of a regression.
    Source: derivations.md, section 12; unit/measurement/test_estimate.py.
    """
    plain, runs = plain_mean(losses), len(losses)
    y, c = losses - losses.mean(0), control - control.mean(0)
    own = c.square().sum(0)
    variance = known_error.square()
    slope = (y * c).sum(0) / (own + (runs - 1) * runs * variance)
    shift = control.mean(0) - known
    left = (y - slope * c).square().sum(0) / max(runs - 2, 1)
    error = (left * (1 / runs + shift.square() / own) + slope.square() * variance).sqrt()
    mean = plain.mean - slope * shift
    usable = torch.isfinite(mean) & torch.isfinite(error) & (own > 0) & torch.isfinite(control).all(0)
    widened = torch.where(usable, error, plain.standard_error)
    return MeanLoss(torch.where(usable, mean, plain.mean), widened, runs - 2)


def dominated(losses: Tensor) -> tuple[float, int, int]:
    """The largest share of one run in the variance of a step: share, run, column; of losses [R, T]."""
    spread = (losses - losses.mean(0)).square()
    total = spread.sum(0)
    share = torch.where(torch.isfinite(total) & (total > 0), spread / total, 0.0)
    place = int(share.argmax())
    run, column = divmod(place, losses.shape[1])
    return float(share.flatten()[place]), run, column


def chance_of_share(share: float, runs: int) -> float:
    """A bound on the chance that one of R normal numbers makes that share of their sum of squares or more.

    Grubbs: with g^2 = (R - 1) share, t^2 = R (R - 2) g^2 / ((R - 1)^2 - R g^2) has Student's law with R - 2 degrees.
    """
    if runs < 3:
        return 1.0
    rest = (runs - 1) - runs * share
    if rest <= 0:
        return 0.0
    t = (runs * (runs - 2) * share / rest) ** 0.5
    return min(1.0, 2 * runs * float(stats.t.sf(t, runs - 2)))
