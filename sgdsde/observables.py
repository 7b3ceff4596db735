"""Loss and accuracy under a law of the outputs: mean, standard deviation, and the samples where there are some."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde._streams import torch_stream
from sgdsde.dynamics import Covariance, OutputLaw
from sgdsde.losses import Loss, SquaredError, is_right
from sgdsde.losses.expectations import gaussian_loss

GAUSSIAN_DRAWS = 1024
"""Draws of a Gaussian law for an accuracy without a closed form."""

SPREAD_DRAWS, SPREAD_NUMBERS = 256, 2**19
"""Draws for the standard deviation of a loss without a closed form: 256 (4 % error), more where outputs are few."""

NUMBERS_AT_ONCE = 2**23
"""Drawn outputs in memory at a time."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """One quantity at one step: mean, standard deviation, standard error of the mean, and samples if there are any."""

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    samples: Tensor | None = None

    @classmethod
    def certain(cls, value: Tensor) -> Estimate:
        """A value without spread."""
        zero = torch.zeros((), dtype=torch.float64)
        return cls(value.double().cpu(), zero, zero)

    @classmethod
    def from_samples(cls, samples: Tensor) -> Estimate:
        """The estimate from samples [R]."""
        samples = samples.double().cpu()
        std = samples.std(correction=1)
        return cls(samples.mean(), std, std / len(samples) ** 0.5, samples)


def loss_of_law(
    criterion: Loss,
    mean: Tensor,
    targets: Tensor,
    *,
    covariance: Covariance | None,
    samples: Tensor | None,
    draws: Tensor | None = None,
) -> Estimate:
    """Mean and standard deviation of the loss under a law of the outputs, and the loss of each sample.

    Gaussian under squared error, e the mean residual and S the covariance, N examples:

        E L = (s / 2N) (|e|^2 + tr S)               exact for any law with these moments
        Var L = (s / 2N)^2 (2 tr S^2 + 4 e^T S e)   Gaussian closure

    Gaussian under another loss: the mean by ``noise.gaussian_loss``; the standard deviation from ``draws``, [P, r]
    draws of the covariance's core, or without them NaN.
    """
    if samples is not None:
        return Estimate.from_samples(criterion.mean(samples, targets))
    if covariance is None:
        return Estimate.certain(criterion.mean(mean, targets))
    zero = torch.zeros((), dtype=torch.float64)
    if not isinstance(criterion, SquaredError):
        blocks = covariance.blocks(mean.shape[1])
        expected_loss = gaussian_loss(criterion, mean, blocks, targets).mean()
        std = torch.tensor(torch.nan, dtype=torch.float64)
        if draws is not None:
            enough = draws[: max(SPREAD_DRAWS, SPREAD_NUMBERS // mean.numel())]
            drawn = [criterion.mean(outputs, targets) for outputs in _drawn_outputs(mean, covariance, enough)]
            std = _finite_or_infinite(torch.cat(drawn).std(correction=1))
        return Estimate(_finite_or_infinite(expected_loss), std, zero)
    scale = criterion.curvature / (2 * len(mean))
    residual = (mean - targets).flatten()
    expected_loss = scale * (residual.square().sum() + covariance.trace)
    variance = 2 * covariance.squared_norm + 4 * covariance.quadratic(residual)
    std = scale * variance.clamp_min(0).sqrt()
    return Estimate(_finite_or_infinite(expected_loss), _finite_or_infinite(std), zero)


def accuracy_of_law(
    mean: Tensor,
    labels: Tensor,
    *,
    covariance: Covariance | None = None,
    samples: Tensor | None = None,
    draws: Tensor | None = None,
) -> Estimate:
    """Mean and standard deviation of the fraction of examples that are right (``Loss.labels``), under a law of outputs.

    One output of mean m and variance v: P(right) = Phi(sign m / sqrt(v)), in closed form. Several: from ``draws`` of
    the law, [P, r] standard normal numbers times a root of the covariance's core; the standard deviation always is.
    """
    if samples is not None:
        return Estimate.from_samples(is_right(samples, labels).double().mean(-1))
    if covariance is None or draws is None:
        return Estimate.certain(is_right(mean, labels).double().mean(-1))
    right = [is_right(outputs, labels).double().mean(-1) for outputs in _drawn_outputs(mean, covariance, draws)]
    sampled = Estimate.from_samples(torch.cat(right))
    if not labels.is_floating_point():
        return Estimate(sampled.mean, sampled.std, sampled.standard_error)
    std = covariance.diagonal().clamp_min(0).sqrt()
    certain = is_right(mean, labels).double()
    chance = torch.special.ndtr(labels * mean[:, 0] / std.clamp_min(torch.finfo(std.dtype).tiny)).double()
    exact = torch.where(std > 0, chance, certain).mean()
    return Estimate(exact.cpu(), sampled.std, torch.zeros((), dtype=torch.float64))


def _drawn_outputs(mean: Tensor, covariance: Covariance, draws: Tensor) -> Iterator[Tensor]:
    """Outputs [p, n, c] of the draws, some at a time."""
    for some in draws.split(max(1, NUMBERS_AT_ONCE // mean.numel())):
        yield mean + (some @ covariance.factor.mT).view(-1, *mean.shape)


def gaussian_draws(law: OutputLaw) -> Tensor | None:
    """Draws of the modal coordinates that train and test outputs share, [P, r]; the same at every call."""
    if law.covariance is None:
        return None
    core = law.covariance.core
    # What is added is far below the accuracy of a draw, and lets a core of lower rank pass.
    root, failed = torch.linalg.cholesky_ex(core + 1e-12 * core.diagonal().abs().max() * torch.eye(len(core)).to(core))
    if failed or not torch.isfinite(root).all():
        values, vectors = torch.linalg.eigh(core)
        root = vectors * values.clamp_min(0).sqrt()
    stream = torch_stream(0, "accuracy", 0, core.device)
    normal = torch.randn(GAUSSIAN_DRAWS, len(core), generator=stream, dtype=core.dtype, device=core.device)
    return normal @ root.mT


def _finite_or_infinite(value: Tensor) -> Tensor:
    value = value.double().cpu()
    return value if math.isfinite(value) else torch.tensor(torch.inf, dtype=torch.float64)
