"""One step of ``torch.optim.SGD`` as a linear map of residual and momentum buffer, mode by mode.

With g the minibatch gradient seen in the outputs, the torch update is

    u' = beta u + kappa g                    kappa = 1 - dampening, but 1 at the first step
    e' = e - lr u'            momentum       e' = e - lr (g + beta u')   Nesterov      e' = e - lr g   plain

and g = (H + wd) e + wd b + noise, b = J theta_0 - e_0. In the eigenbasis of K every matrix here is diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdsde.sgd import SGD


@dataclass(frozen=True, eq=False)
class Update:
    """z' = G z + nu (wd b + noise) for z = (e, u).

    Attributes:
        ee, eu, ue, uu: the entries of G; ee and ue are [r], eu and uu numbers.
        e_gain, u_gain: nu, the response to a unit of gradient.
    """

    ee: Tensor
    eu: float
    ue: Tensor
    uu: float
    e_gain: float
    u_gain: float


def update(sgd: SGD, drift: Tensor, *, lr: float, first: bool) -> Update:
    """The step with learning rate ``lr`` for modes with drift eigenvalues h [r] (0 follows the weights themselves)."""
    if sgd.momentum == 0:
        return Update(1 - lr * (drift + sgd.weight_decay), 0.0, torch.zeros_like(drift), 0.0, -lr, 0.0)
    kappa = 1.0 if first else 1.0 - sgd.dampening
    direct, through_buffer = (1.0, sgd.momentum) if sgd.nesterov else (0.0, 1.0)
    e_gain = -lr * (direct + through_buffer * kappa)
    curvature = drift + sgd.weight_decay
    return Update(
        ee=1 + e_gain * curvature,
        eu=-lr * through_buffer * sgd.momentum,
        ue=kappa * curvature,
        uu=sgd.momentum,
        e_gain=e_gain,
        u_gain=kappa,
    )


@dataclass
class Mean:
    """Expected residual and buffer of each mode, and of the factor g in theta = g theta_0 + J^T w."""

    e: Tensor
    u: Tensor
    weight_factor: Tensor
    weight_buffer: Tensor

    @classmethod
    def at(cls, start: Tensor) -> Mean:
        one = torch.ones(1, dtype=start.dtype, device=start.device)
        return cls(start.clone(), torch.zeros_like(start), one, torch.zeros_like(one))

    def advance(self, sgd: SGD, step: Update, offset: Tensor | None, *, lr: float, first: bool) -> None:
        """One step; ``offset`` is wd b, or None without decay."""
        e = step.ee * self.e + step.eu * self.u
        u = step.ue * self.e + step.uu * self.u
        if offset is not None:
            e, u = e + step.e_gain * offset, u + step.u_gain * offset
            self.advance_factor(sgd, lr=lr, first=first)
        self.e, self.u = e, u

    def advance_factor(self, sgd: SGD, *, lr: float, first: bool) -> None:
        """One step of g alone, which only decay moves."""
        weights = update(sgd, torch.zeros_like(self.weight_factor), lr=lr, first=first)
        factor = weights.ee * self.weight_factor + weights.eu * self.weight_buffer
        self.weight_buffer = weights.ue * self.weight_factor + weights.uu * self.weight_buffer
        self.weight_factor = factor


def torch_step(sgd: SGD, gradient: Tensor, buffer: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
    """New momentum buffer and direction of ``torch.optim.SGD`` (decay already in the gradient)."""
    if sgd.momentum == 0:
        return buffer, gradient
    buffer = gradient.clone() if first else sgd.momentum * buffer + (1 - sgd.dampening) * gradient
    return buffer, gradient + sgd.momentum * buffer if sgd.nesterov else buffer
