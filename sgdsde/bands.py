"""Loss, accuracy and outputs at recorded steps: mean and spread over runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from sgdsde._checks import finite_number, fraction
from sgdsde._types import Origin
from sgdsde.plots import COLORS, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOW, HIGH = 0.1, 0.9
"""Quantiles over runs between which bands are shaded."""


@dataclass(frozen=True, eq=False)
class LossBand:
    """A loss at T recorded steps: mean and spread over runs.

    Attributes:
        mean: [T]; +inf once a run has diverged.
        std: [T], over runs, ddof 1 where measured; 0 for deterministic dynamics.
        standard_error: [T], of ``mean``; 0 where the mean is no sample mean.
        samples: [n_runs, T], or None for moments in closed form.
    """

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> LossBand:
        """The band of measured losses [n_runs, T]; NaN counts as diverged, +inf."""
        samples = torch.where(torch.isfinite(samples), samples, torch.inf).double().cpu()
        runs = samples.shape[0]
        std = _spread(samples)
        std = torch.where(torch.isfinite(samples).all(0), std, torch.inf)
        return cls(samples.mean(0), std, std / runs**0.5, samples)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile over runs at each step, [T].

        Of samples: exact, finite as long as enough runs are. Of moments in closed form: APPROXIMATE, the Gamma law with
        the band's mean and standard deviation (a sum of squares is never negative and skewed to the right); see
        ``has_samples``.
        """
        q = fraction("q", q)
        if self.samples is not None:
            return _sample_quantile(self.samples, q)
        mean, std = self.mean.numpy(), self.std.numpy()
        spread = np.isfinite(mean) & np.isfinite(std) & (std > 0) & (mean > 0)
        shape = np.where(spread, mean, 1.0) ** 2 / np.where(spread, std, 1.0) ** 2
        gamma = stats.gamma.ppf(q, shape, scale=np.where(spread, mean, 1.0) / shape)
        return torch.from_numpy(np.where(spread, gamma, mean))

    def share_below(self, loss: float) -> Tensor:
        """The share of runs whose loss is below a number, at each step, [T].

        Of samples: exact. Of moments in closed form: APPROXIMATE, by the Gamma law of ``quantile``.
        """
        loss = finite_number("loss", loss)
        if self.samples is not None:
            return (self.samples < loss).double().mean(0)
        mean, std = self.mean.numpy(), self.std.numpy()
        spread = np.isfinite(mean) & np.isfinite(std) & (std > 0) & (mean > 0)
        shape = np.where(spread, mean, 1.0) ** 2 / np.where(spread, std, 1.0) ** 2
        gamma = stats.gamma.cdf(loss, shape, scale=np.where(spread, mean, 1.0) / shape)
        return torch.from_numpy(np.where(spread, gamma, mean < loss))

    @property
    def has_samples(self) -> bool:
        """Whether quantiles are those of samples rather than of a matched Gamma law."""
        return self.samples is not None


@dataclass(frozen=True, eq=False)
class AccuracyBand:
    """The fraction of examples on the right side (sign or argmax) at T recorded steps: mean and spread over runs.

    Attributes:
        mean, std, standard_error: [T], as in ``LossBand``. samples: [n_runs, T], or None for moments in closed form.
    """

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> AccuracyBand:
        """The band of measured accuracies [n_runs, T]."""
        samples = samples.double().cpu()
        std = _spread(samples)
        return cls(samples.mean(0), std, std / len(samples) ** 0.5, samples)

    def quantile(self, q: float) -> Tensor:
        """The q-quantile over runs, [T]; of closed forms APPROXIMATE, by a Beta law with the same two moments."""
        q = fraction("q", q)
        if self.samples is not None:
            return _sample_quantile(self.samples, q)
        mean, std = self.mean.numpy(), self.std.numpy()
        spread = (std > 0) & (mean > 0) & (mean < 1) & (std**2 < mean * (1 - mean))
        safe_mean, safe_std = np.where(spread, mean, 0.5), np.where(spread, std, 0.1)
        weight = safe_mean * (1 - safe_mean) / safe_std**2 - 1
        beta = stats.beta.ppf(q, safe_mean * weight, (1 - safe_mean) * weight)
        return torch.from_numpy(np.where(spread, beta, mean))


@dataclass(frozen=True, eq=False)
class OutputBand:
    """Outputs at T recorded steps: mean and std [T, n, c] over runs, samples [n_runs, T, n, c] or None."""

    mean: Tensor
    std: Tensor
    samples: Tensor | None = None

    @classmethod
    def from_samples(cls, samples: Tensor) -> OutputBand:
        """The band of measured outputs [n_runs, T, n, c]."""
        samples = samples.double().cpu()
        return cls(samples.mean(0), _spread(samples), samples)


def _sample_quantile(samples: Tensor, q: float) -> Tensor:
    return torch.from_numpy(np.quantile(samples.numpy(), q, axis=0, method="inverted_cdf"))


def _spread(samples: Tensor) -> Tensor:
    """Standard deviation over the first dimension, ddof 1; exactly 0 where all samples are equal."""
    if len(samples) < 2:
        return torch.full_like(samples[0], torch.nan)
    return (samples - samples[0]).std(0, correction=1)


def draw_loss(axes: Axes, steps: Tensor, band: LossBand, origin: Origin, side: str, *, name: str = "") -> None:
    """Draw a mean loss (solid, dashed or dash-dotted by its origin) with the shaded 10 to 90 % band of its runs.

    Args:
        name: in the legend; default the origin.
    """
    color, at = COLORS[origin, side], steps.numpy()
    style, layer = {"measured": ("-", 3), "predicted": ("--", 4), "interpolated": ("-.", 4)}[origin]
    axes.plot(at, finite(band.mean), style, color=color, label=f"{name or origin}, {side}", zorder=layer)
    if bool((band.std > 0).any()):
        axes.fill_between(
            at, finite(band.quantile(LOW)), finite(band.quantile(HIGH)), color=color, alpha=0.2, linewidth=0
        )


def label_bands(axes: Axes, band: LossBand, origin: Origin) -> None:
    """Add the legend, with the quantiles of the bands and where those without samples come from."""
    title = f"bands: {100 * LOW:.0f} to {100 * HIGH:.0f} %"
    if not band.has_samples and bool((band.std > 0).any()):
        title += f"\n({origin}: of a matched Gamma law)"
    axes.legend(title=title, title_fontsize=8, alignment="left")
