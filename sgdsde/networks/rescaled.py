"""A network centered at its start and scaled: lazy training by choice."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from sgdsde._checks import complaint, positive_number


class Rescaled(nn.Module):
    """scale (f(x) - f_0(x)), f_0 the model as it was given, frozen.

    A large scale trains in the kernel regime, where weights hardly move, with learning rates of order scale^-2. On
    smooth networks the linearized model's error in the loss falls as 1/scale; at a kink (ReLU) it has no slope.

    Args:
        model: an ``nn.Module``; copied twice. scale: positive.
    Source: Chizat, Oyallon, Bach, arXiv:1812.07956.
    """

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(complaint("model", "an nn.Module", type(model).__name__))
        self.scale = positive_number("scale", scale)
        self.model, self.start = copy.deepcopy(model), copy.deepcopy(model)
        for parameter in self.start.parameters():
            parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (self.model(x) - self.start(x))

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
