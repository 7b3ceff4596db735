"""One step of ``torch.optim.SGD`` as a linear map of the weights, the momentum buffer and the gradient.

With g the gradient of the loss, torch's update is

    g <- g + wd w
    u' = beta u + kappa g                kappa = 1 - dampening, but 1 at the first step
    w' = w - lr u'          momentum     w' = w - lr (g + beta u')   Nesterov     w' = w - lr g   plain

``Step.move`` is that, for tensors of any shape. Everything else here is read off it: it is linear, so that
z' = (G_0 (x) I) z + nu (x) g for z = (w, u), and in the eigenbasis of the curvature z' = G z + nu (x) noise with a
2 x 2 matrix G for every mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from sgdsde.sgd import SGD

Value = TypeVar("Value", Tensor, float)


@dataclass(frozen=True)
class Step:
    """The update k -> k + 1 with its learning rate; ``dampening`` is 0 at the first step."""

    lr: float
    momentum: float
    dampening: float
    nesterov: bool
    weight_decay: float

    @classmethod
    def of(cls, sgd: SGD, lr: float, *, first: bool) -> Step:
        """The step of this optimizer with learning rate ``lr``."""
        return cls(lr, sgd.momentum, 0.0 if first else sgd.dampening, sgd.nesterov, sgd.weight_decay)

    def decayed(self, gradient: Value, weights: Value) -> Value:
        """The gradient with the term of weight decay."""
        return gradient + self.weight_decay * weights if self.weight_decay else gradient

    def direction(self, gradient: Value, buffer: Value) -> tuple[Value, Value]:
        """Direction of the step and new buffer, for a gradient that has its decay already."""
        if self.momentum == 0:
            return gradient, buffer
        buffer = self.momentum * buffer + (1 - self.dampening) * gradient
        return (gradient + self.momentum * buffer if self.nesterov else buffer), buffer

    def move(self, weights: Value, buffer: Value, gradient: Value) -> tuple[Value, Value]:
        """Weights and buffer after the step."""
        direction, buffer = self.direction(self.decayed(gradient, weights), buffer)
        return weights - self.lr * direction, buffer

    @property
    def parts(self) -> int:
        """Number of moving parts: 1, the weights, or 2, weights and buffer."""
        return 2 if self.momentum else 1

    @cached_property
    def transition(self) -> list[list[float]]:
        """G_0, [q, q] with q = ``parts``."""
        columns = [self.move(1.0, 0.0, 0.0), self.move(0.0, 1.0, 0.0)][: self.parts]
        return [[column[row] for column in columns] for row in range(self.parts)]

    @cached_property
    def gain(self) -> list[float]:
        """nu, the response of (w, u) to a unit of gradient, [q]."""
        return list(self.move(0.0, 0.0, 1.0)[: self.parts])

    def modal(self, curvature: Tensor) -> ModalStep:
        """The step of modes whose gradient is h e + noise, h [r]; 0 follows the weights themselves."""
        if self.parts == 1:
            ((ww,),), (w_gain,) = self.transition, self.gain
            return ModalStep(ww + w_gain * curvature, 0.0, torch.zeros_like(curvature), 0.0, w_gain, 0.0)
        ((ww, wu), (uw, uu)), (w_gain, u_gain) = self.transition, self.gain
        return ModalStep(ww + w_gain * curvature, wu, uw + u_gain * curvature, uu, w_gain, u_gain)


@dataclass(frozen=True, eq=False)
class ModalStep:
    """z' = G z + nu (wd b + noise) for z = (e, u), residual and buffer of each mode.

    Attributes:
        ee, eu, ue, uu: the entries of G; ee and ue are [r], eu and uu numbers. Without momentum only ee is not zero.
        e_gain, u_gain: nu, the response to a unit of gradient.
    """

    ee: Tensor
    eu: float
    ue: Tensor
    uu: float
    e_gain: float
    u_gain: float

    def move(self, e: Tensor, u: Tensor, gradient: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Residual and buffer [r, k] after the step; ``gradient`` is what enters besides H e."""
        moved = self.ee[:, None] * e + self.eu * u, self.ue[:, None] * e + self.uu * u
        if gradient is None:
            return moved
        return moved[0] + self.e_gain * gradient, moved[1] + self.u_gain * gradient

    @property
    def matrices(self) -> Tensor:
        """G of every mode, [r, 2, 2]."""
        eu, uu = torch.full_like(self.ee, self.eu), torch.full_like(self.ee, self.uu)
        return torch.stack([torch.stack([self.ee, eu], -1), torch.stack([self.ue, uu], -1)], -2)

    @property
    def gains(self) -> Tensor:
        """nu, [2]."""
        return self.ee.new_tensor([self.e_gain, self.u_gain])
