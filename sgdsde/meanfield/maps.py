"""Correlation maps from one layer to the next at infinite width, and the growth of perturbations.

    c' = f(c) = (sigma_b^2 + sigma_w^2 E phi(u) phi(v)) / F(q)    for u, v of variance q and correlation c
    chi = sigma_w^2 E phi'(sqrt(q) Z)^2

F is the variance map of :mod:`sgdsde.meanfield.variance`.
sigma_w and sigma_b are standard deviations everywhere. Every function takes numbers or tensors of any shape for q and c
and returns a float64 tensor of that shape, on that device (the quadrature itself runs on the CPU).

Source: Hayou, Doucet, Rousseau, arXiv:1805.08266 and 1902.06853; Poole et al., arXiv:1606.05340.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sgdsde._checks import complaint
from sgdsde.meanfield import quadrature
from sgdsde.meanfield.activation import Activation, ActivationLike, as_activation
from sgdsde.meanfield.closed_forms import Homogeneous, closed_form
from sgdsde.meanfield.variance import as_variance, check_sigmas, positive_limit, second_moments, variance_map

ROUNDING = 1e-6  # a correlation this far outside [-1, 1] comes from float32 arithmetic; farther is an error


def as_correlation(c: Tensor | float) -> Tensor:
    """Correlations as a float64 tensor in [-1, 1]: clamped within 1e-6 of it, refused beyond."""
    values = torch.as_tensor(c, dtype=torch.float64)
    if values.numel() and not bool((values.abs() <= 1 + ROUNDING).all()):
        bad = values[~(values.abs() <= 1 + ROUNDING)][0]
        raise ValueError(complaint("c", "a correlation in [-1, 1]", float(bad), "divide covariances by variances"))
    return values.clamp(-1, 1)


def chi(activation: ActivationLike, sigma_w: float, sigma_b: float, q: Tensor | float) -> Tensor:
    """chi = sigma_w^2 E phi'(sqrt(q) Z)^2, the factor by which a layer stretches squared gradients and nearby inputs.

    It is the slope of the correlation map at c = 1 where q is a fixed point of the variance map.
    """
    sigma_w, sigma_b = check_sigmas(sigma_w, sigma_b)
    return sigma_w**2 * second_moments(as_activation(activation), as_variance(q))[1]


def correlation_map(
    activation: ActivationLike, sigma_w: float, sigma_b: float, c: Tensor | float, *, q: Tensor | float | None = None
) -> Tensor:
    """f(c), the correlation of the next layer's preactivations.

        f(c) = (sigma_b^2 + sigma_w^2 E phi(u) phi(v)) / F(q)

    Args:
        c: correlations, clamped to [-1, 1] within 1e-6 and refused beyond.
        q: the variance of both inputs; None: the fixed point that the variance map reaches from q = 1.
    Raises:
        ValueError: no finite fixed point and no q given; sigma, c or q out of range.
    Exactness: 1e-9, in fact about 1e-12. Near c = 1 ``correlation_gap_map`` keeps the digits that 1 - f(c) loses.
    """
    c = as_correlation(c)
    gap = 1 - c.abs()
    upper = 1 - _gap(activation, (sigma_w, sigma_b), torch.where(c < 0, 1.0, gap), q)
    if not bool((c < 0).any()):
        return upper
    return torch.where(c < 0, _covariance(activation, (sigma_w, sigma_b), c, q), upper)


def correlation_gap_map(
    activation: ActivationLike, sigma_w: float, sigma_b: float, gap: Tensor | float, *, q: Tensor | float | None = None
) -> Tensor:
    """1 - f(1 - gap) to full relative precision, for gaps in [0, 1].

        1 - f = sigma_w^2 E (phi(u) - phi(v))^2 / (2 F(q))

    Iterating c itself fails beyond depth 10^4: 1 - c falls like depth^-2 for ReLU and drowns in rounding.
    """
    gap = torch.as_tensor(gap, dtype=torch.float64)
    if gap.numel() and not bool(((gap >= 0) & (gap <= 1)).all()):
        raise ValueError(complaint("gap", "1 - c in [0, 1]", [float(gap.min()), float(gap.max())]))
    return _gap(activation, (sigma_w, sigma_b), gap, q)


def correlation_slope(
    activation: ActivationLike, sigma_w: float, sigma_b: float, c: Tensor | float, *, q: Tensor | float | None = None
) -> Tensor:
    """f'(c) = sigma_w^2 (q / F(q)) E phi'(u) phi'(v)."""
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(sigma_w, sigma_b)
    c = as_correlation(c)
    q = _variance(activation, sigma_w, sigma_b, q).to(c.device)
    scale = sigma_w**2 * q / variance_map(activation, sigma_w, sigma_b, q)
    return scale * pair(activation, c, q)[1]


def pair(activation: Activation, c: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """E phi(u) phi(v) and E phi'(u) phi'(v) at common variance q and correlation c, of their broadcast shape."""
    c, q = torch.broadcast_tensors(c, q)
    exact = closed_form(activation)
    if exact is None:
        found = quadrature.pair_moments(activation, q.sqrt(), q.sqrt(), c)
        return found.product, found.slope_product
    s = q.sqrt().flatten()[:, None]
    product, slopes = exact.pair_((c * q).flatten()[:, None, None].clone(), s, s)
    return product.reshape(c.shape), slopes.reshape(c.shape)


def _variance(activation: Activation, sigma_w: float, sigma_b: float, q: Tensor | float | None) -> Tensor:
    if q is not None:
        return as_variance(q)
    return torch.tensor(positive_limit(activation, sigma_w, sigma_b), dtype=torch.float64)


def _gap(activation: ActivationLike, sigmas: tuple[float, float], gap: Tensor, q: Tensor | float | None) -> Tensor:
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(*sigmas)
    q = _variance(activation, sigma_w, sigma_b, q).to(gap.device)
    exact = closed_form(activation)
    if isinstance(exact, Homogeneous):
        signal = sigma_w**2 * exact.gain * q
        return exact.gap(gap) * (signal / (sigma_b**2 + signal))
    s = q.sqrt()
    found = quadrature.pair_moments(activation, s, s, torch.ones_like(gap), gap=gap)
    return sigma_w**2 * found.squared_difference / (2 * variance_map(activation, sigma_w, sigma_b, q))


def _covariance(activation: ActivationLike, sigmas: tuple[float, float], c: Tensor, q: Tensor | float | None) -> Tensor:
    activation, (sigma_w, sigma_b) = as_activation(activation), check_sigmas(*sigmas)
    q = _variance(activation, sigma_w, sigma_b, q).to(c.device)
    product, _ = pair(activation, c, q)
    return (sigma_b**2 + sigma_w**2 * product) / variance_map(activation, sigma_w, sigma_b, q)
