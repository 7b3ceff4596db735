"""Gradient confusion: how far the loss gradients of different examples oppose each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sgdsde._checks import complaint, fraction, nonnegative_number, whole_number
from sgdsde._types import Params
from sgdsde.linearization import Linearization
from sgdsde.problem import Problem
from sgdsde.regimes.gradient_products import GramTile, gram_tiles

QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
WHOLE = 2048
"""Examples up to which all cosines are held and quantiles are exact; beyond, they are counted in bins."""

BINS = 20_000
"""Of cosines in [-1, 1]: quantiles of many examples are right to 1e-4."""


@dataclass(frozen=True)
class GradientConfusion:
    """Inner products of the per-example gradients of a training set, and what follows from them.

    Attributes:
        n_examples: n.
        bound: max(0, -min over pairs i != j of g_i . g_j), the gradient confusion. pair: where it is attained.
        mean_square: m, the mean of |g_i|^2. mean_product: cbar, the mean of g_i . g_j over pairs i != j.
        cosine_min, cosine_mean, cosine_std, quantiles: of the cosines of pairs without a zero gradient; NaN where there
            is none. A few near-duplicates of opposite labels rule the minimum: look at the others too.
    """

    n_examples: int
    bound: float
    pair: tuple[int, int]
    mean_square: float
    mean_product: float
    cosine_min: float
    cosine_mean: float
    cosine_std: float
    quantiles: dict[float, float] = field(default_factory=dict)

    @property
    def squared_gradient(self) -> float:
        """|grad L|^2 = m/n + (1 - 1/n) cbar."""
        n = self.n_examples
        return self.mean_square / n + (1 - 1 / n) * self.mean_product

    @property
    def noise_trace(self) -> float:
        """tr Sigma = (1 - 1/n)(m - cbar), divisor n."""
        return (1 - 1 / self.n_examples) * (self.mean_square - self.mean_product)

    @property
    def noise_scale(self) -> float:
        """tr Sigma / |grad L|^2, that of ``stability.gradient_noise_scale``; infinite at a stationary point."""
        gradient = self.squared_gradient
        return self.noise_trace / gradient if gradient > 1e-15 * self.mean_square else math.inf

    @property
    def floor(self) -> float:
        """The least confusion possible at this gradient: (m - n |grad L|^2)/(n - 1), or 0 (``confusion_floor``)."""
        return max(0.0, -self.mean_product)

    @property
    def sentence(self) -> str:
        """The finding in words."""
        if self.mean_square == 0:
            return f"all {self.n_examples} gradients are zero: the model interpolates"
        relative = self.bound / self.mean_square
        said = f"the most opposed of {self.n_examples} gradients have product -{relative:.2g} of their mean square"
        if self.bound == 0:
            said = f"no two of {self.n_examples} gradients oppose each other"
        spread = f"cosines {self.cosine_mean:.2g} +- {self.cosine_std:.2g}, lowest {self.cosine_min:.2g}"
        scale = f"{self.noise_scale:.3g}" if math.isfinite(self.noise_scale) else "infinite"
        return f"{said}; {spread}; noise scale {scale}"

    def __str__(self) -> str:
        return self.sentence


def gradient_confusion(
    problem_or_linearization: Problem | Linearization,
    *,
    output_gradient: Tensor | None = None,
    params: Params | None = None,
    quantiles: Sequence[float] = QUANTILES,
    memory: int | None = None,
) -> GradientConfusion:
    """Gradient confusion of a training set, with cosines, noise scale and floor.

        confusion = max(0, -min_{i != j} g_i . g_j),   g_i . g_j = r_i^T K_ij r_j

    Args:
        output_gradient, params, memory: as in ``gradient_gram``. quantiles: of the cosines.
    Raises:
        ValueError: fewer than two examples.
    Exactness: that of the kernel; quantiles of more than 2048 examples to 1e-4.
    Cost: the kernel tile by tile, at most 2048^2 numbers of the Gram matrix at once.
    Source: Sankararaman et al., arXiv:1904.06963; docs/regimes.md.
    """
    wanted = [fraction("quantiles", q) for q in quantiles]
    tiles = partial(gram_tiles, problem_or_linearization, output_gradient, params=params, memory=memory)
    squares = torch.cat([part.values.diagonal() for part in tiles(diagonal_only=True)])
    n = whole_number("n_train", len(squares), 2, "confusion is between examples")
    scan = _Scan(squares, n <= WHOLE)
    for part in tiles():
        scan.add(part)
    mean, std, levels = scan.cosines(wanted)
    return GradientConfusion(
        n_examples=n,
        bound=max(0.0, -scan.lowest),
        pair=scan.pair,
        mean_square=float(squares.mean()),
        mean_product=scan.total / (n * (n - 1) / 2),
        cosine_min=scan.lowest_cosine,
        cosine_mean=mean,
        cosine_std=std,
        quantiles=dict(zip(wanted, levels)),
    )


class _Scan:
    """Sums, extremes and counts over the pairs i > j, tile by tile."""

    def __init__(self, squares: Tensor, whole: bool) -> None:
        root = squares.clamp_min(0).sqrt()
        self._inverse = torch.where(root > 0, 1 / root, torch.nan)
        self._held: list[np.ndarray] = []
        self._counts = None if whole else np.zeros(BINS, dtype=np.int64)
        self.lowest, self.pair, self.total = math.inf, (0, 1), 0.0
        self.lowest_cosine, self._sums = math.inf, np.zeros(3)

    def add(self, part: GramTile) -> None:
        values = part.values
        below = torch.ones_like(values, dtype=torch.bool)
        if part.rows == part.columns:
            below = below.tril(-1)
            if len(values) == 1:
                return
        masked = torch.where(below, values, torch.inf)
        self.total += float(torch.where(below, values, 0.0).sum())
        at = int(masked.argmin())
        if float(masked.flatten()[at]) < self.lowest:
            self.lowest = float(masked.flatten()[at])
            i, j = divmod(at, values.shape[1])
            self.pair = (part.columns.start + j, part.rows.start + i)
        cosines = (values * self._inverse[part.rows, None] * self._inverse[part.columns])[below]
        cosines = cosines[~cosines.isnan()].clamp(-1, 1)
        if not len(cosines):
            return
        self.lowest_cosine = min(self.lowest_cosine, float(cosines.min()))
        self._sums += [len(cosines), float(cosines.sum()), float(cosines.square().sum())]
        if self._counts is None:
            self._held.append(cosines.cpu().numpy())
        else:
            self._counts += np.histogram(cosines.cpu().numpy(), BINS, (-1, 1))[0]

    def cosines(self, wanted: list[float]) -> tuple[float, float, list[float]]:
        """Mean, standard deviation and quantiles."""
        count, total, square = self._sums
        if count == 0:
            self.lowest_cosine = math.nan
            return math.nan, math.nan, [math.nan] * len(wanted)
        mean = total / count
        std = math.sqrt(max(0.0, square / count - mean**2))
        if self._counts is None:
            return mean, std, np.quantile(np.concatenate(self._held), wanted).tolist()
        edges = np.linspace(-1, 1, BINS + 1)
        share = np.concatenate([[0], np.cumsum(self._counts)]) / count
        return mean, std, np.interp(wanted, share, edges).tolist()


def confusion_floor(squared_norms: Tensor, squared_gradient: float = 0.0) -> float:
    """What gradient confusion cannot be below: (m - n |grad L|^2)/(n - 1) with m = mean |g_i|^2, or 0.

    The mean over pairs of g_i . g_j is (n |grad L|^2 - m)/(n - 1), and the least is no more. At a stationary point the
    floor is m/(n - 1): confusion vanishes there only where every gradient does, at interpolation.

    Args:
        squared_norms: |g_i|^2, [n], the diagonal of ``gradient_gram``. squared_gradient: |grad L|^2 = sum(gram) / n^2.
    """
    n = len(squared_norms)
    if n < 2:
        raise ValueError(complaint("squared_norms", "of at least two examples", n))
    if not (squared_norms >= 0).all():
        raise ValueError(complaint("squared_norms", "zero or positive", float(squared_norms.min())))
    gradient = nonnegative_number("squared_gradient", squared_gradient)
    return max(0.0, (float(squared_norms.double().mean()) - n * gradient) / (n - 1))
