"""Exact Gaussian expectations: piecewise linear activations through the origin (ReLU, leaky ReLU, |x|, x), and erf.

A positively homogeneous phi with slope l on the left and r on the right is phi(x) = alpha x + beta |x| with
alpha = (r + l)/2, beta = (r - l)/2. With correlation c = cos(theta), in which all cross terms vanish by symmetry,

    E phi(u) phi(v)   = s1 s2 (alpha^2 c + beta^2 (2/pi) (sqrt(1 - c^2) + c arcsin c))
    E phi'(u) phi'(v) = alpha^2 + beta^2 (2/pi) arcsin c

Source: Cho and Saul, Kernel methods for deep learning (2009), degrees 0 and 1; Williams, Computing with infinite
    networks (1997), for erf. Checked against quadrature in tests/unit/meanfield/test_quadrature.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.meanfield.activation import Activation


@dataclass(frozen=True)
class Homogeneous:
    """phi(x) = right x for x > 0, left x for x < 0."""

    left: float
    right: float

    @property
    def odd(self) -> float:
        """alpha, the weight of x."""
        return (self.right + self.left) / 2

    @property
    def even(self) -> float:
        """beta, the weight of |x|."""
        return (self.right - self.left) / 2

    @property
    def gain(self) -> float:
        """E phi'^2 = E phi^2 / q = (left^2 + right^2) / 2."""
        return (self.left**2 + self.right**2) / 2

    def single(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E phi^2, E phi'^2 and E x phi phi' / q at variances q."""
        gain = torch.full_like(q, self.gain)
        return gain * q, gain, gain

    def pair_(self, covariance: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """E phi phi and E phi' phi' for covariances [..., n1, n2] (overwritten) and s [..., n1], [..., n2]."""
        scale_1, scale_2 = s1[..., :, None], s2[..., None, :]
        # A row of zero variance has covariance 0: any divisor will do.
        c = covariance.div_(scale_1.clamp_min(1e-300)).div_(scale_2.clamp_min(1e-300))
        slopes = clamp_correlation_(c).arcsin()
        product = torch.addcmul(torch.ones_like(c), c, c, value=-1).clamp_min_(0).sqrt_().addcmul_(c, slopes)
        weight = self.even**2 * 2 / math.pi
        product.mul_(weight).add_(c, alpha=self.odd**2).mul_(scale_1).mul_(scale_2)
        return product, slopes.mul_(weight).add_(self.odd**2)

    def gap(self, gap: Tensor) -> Tensor:
        """1 - c' from 1 - c after one normalized layer without bias, to full relative precision.

        c' = 1 - gap + (beta^2 / gain) (2/pi) (sin theta - theta cos theta), the bracket by its series for small theta.
        """
        theta = 2 * (gap / 2).sqrt().arcsin()
        square = theta * theta
        series = (
            theta * square * (1 / 3 - square * (1 / 30 - square * (1 / 840 - square * (1 / 45360 - square / 3991680))))
        )
        bracket = torch.where(theta < 0.3, series, theta.sin() - theta * theta.cos())
        return gap - self.even**2 / self.gain * 2 / math.pi * bracket


@dataclass(frozen=True)
class Erf:
    """phi = erf."""

    def single(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E phi^2, E phi'^2 and E x phi phi' / q at variances q."""
        root = (1 + 4 * q).sqrt()
        return 2 / math.pi * (2 * q / (1 + 2 * q)).arcsin(), 4 / math.pi / root, 4 / math.pi / ((1 + 2 * q) * root)

    def pair_(self, covariance: Tensor, s1: Tensor, s2: Tensor) -> tuple[Tensor, Tensor]:
        """E phi phi and E phi' phi' for covariances [..., n1, n2] (overwritten) and s [..., n1], [..., n2]."""
        root_1, root_2 = (1 + 2 * s1 * s1).sqrt()[..., :, None], (1 + 2 * s2 * s2).sqrt()[..., None, :]
        # 2 cov / (root root) stays below 2 q / (1 + 2 q) < 1 in absolute value, so nothing needs clamping.
        sine = covariance.mul_(2).div_(root_1).div_(root_2)
        slopes = torch.addcmul(torch.ones_like(sine), sine, sine, value=-1).rsqrt_()
        slopes.mul_(4 / math.pi).div_(root_1).div_(root_2)
        return sine.arcsin_().mul_(2 / math.pi), slopes


ClosedForm = Homogeneous | Erf


def closed_form(activation: Activation) -> ClosedForm | None:
    """The exact expectations of this activation, or None where only quadrature has them."""
    if activation.function in (torch.erf, torch.special.erf):
        return Erf()
    return Homogeneous(*activation.slope_at_zero()) if activation.is_homogeneous() else None


def clamp_correlation_(c: Tensor) -> Tensor:
    """c clamped to [-1, 1] in place; within 4 ulp of 1 exactly 1, since arccos would turn one ulp into 1e-8."""
    c.clamp_(-1, 1)
    return c.masked_fill_(c > 1 - 1e-15, 1.0)
