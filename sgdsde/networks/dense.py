"""Fully connected networks: plain and residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, whole_number, word
from sgdsde._types import Parametrization
from sgdsde.networks.layers import Dense, WeightLaw
from sgdsde.networks.network import Network

Scaling: TypeAlias = Literal["none", "decreasing", "stable"]
"""Scaling of residual block l in a network of the given depth: 1, l^-1/2 or depth^-1/2."""


def block_scales(scaling: Scaling, depth: int) -> list[float]:
    """The factors s_l in front of the blocks that make y^l from y^{l-1}, for l = 2 ... depth.

    s_l = 1 ("none"), l^-1/2 ("decreasing"), depth^-1/2 ("stable").

    Source: Hayou et al., arXiv:1905.13654 (decreasing scaling); Hayou et al., arXiv:2010.12859 (stable ResNet).
    """
    word("scaling", scaling, ("none", "decreasing", "stable"))
    if scaling == "decreasing":
        return [1 / math.sqrt(layer) for layer in range(2, depth + 1)]
    return [1.0 if scaling == "none" else 1 / math.sqrt(depth)] * (depth - 1)


def flatten_examples(x: Tensor, in_features: int) -> Tensor:
    """The examples as rows, [n, in_features]."""
    if x.ndim < 2 or math.prod(x.shape[1:]) != in_features:
        expected = f"[n, {in_features}], or [n, ...] with {in_features} entries per example"
        remedy = "add a batch dimension with x[None]" if x.ndim == 1 and len(x) == in_features else ""
        raise ValueError(complaint("x", expected, f"shape {list(x.shape)}", remedy))
    return x.flatten(1)


class MLP(Network):
    """A fully connected network [n, in_features] -> [n, out_features]; images [n, ...] are flattened.

        y^1 = A_1 x,   y^l = A_l phi(y^{l-1})  for l = 2 ... depth,   f = A phi(y^depth)

    where every A is the affine map of ``WeightLaw`` with its own weights, the read-out included.

    Args:
        in_features: entries of one example.
        width: neurons in every hidden layer.
        out_features: outputs.
        depth: hidden layers, so there are depth + 1 affine maps.
        activation: a name in ``ACTIVATIONS``, or an elementwise callable or nn.Module.
        parametrization: ``"ntk"`` or ``"standard"``, see ``WeightLaw``.
        sigma_w, sigma_b: standard deviations, not variances. sigma_b = 0: the layers have no bias parameters.
        dtype, device: of the parameters; torch's defaults if None.
        generator: draws the initial weights; torch's default generator if None.
    Raises:
        ValueError, TypeError: an argument outside its range; in ``forward``, an input of another size.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        depth: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        parametrization: Parametrization = "ntk",
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        law = WeightLaw(parametrization, sigma_w, sigma_b, dtype, device, generator)
        super().__init__(width, out_features, depth=depth, activation=activation, law=law)
        self.in_features = whole_number("in_features", in_features, 1)
        sizes = [self.in_features] + [self.width] * self.depth
        self.hidden = nn.ModuleList([Dense(*pair, law) for pair in pairwise(sizes)])
        self.read_out = Dense(self.width, self.out_features, law)

    def forward(self, x: Tensor) -> Tensor:
        y = flatten_examples(x, self.in_features)
        for layer in self.hidden:
            y = self.activate(layer(y))
        return self.read_out(y)


class ResNet(Network):
    """A fully connected residual network [n, in_features] -> [n, out_features]; images [n, ...] are flattened.

        y^1 = A_1 x,   y^l = y^{l-1} + s_l A_l phi(y^{l-1})  for l = 2 ... depth,   f = A phi(y^depth)

    with the affine maps A of ``WeightLaw`` and s_l of ``block_scales``, which scales the block's bias too.

    Args:
        depth: affine maps before the read-out: one, then depth - 1 blocks.
        scaling: ``"none"``, ``"decreasing"`` or ``"stable"``.
        The other arguments are those of ``MLP``.
    Raises:
        ValueError, TypeError: an argument outside its range; in ``forward``, an input of another size.
    Source: Hayou et al., arXiv:1905.13654; the stable scaling: Hayou et al., arXiv:2010.12859.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        depth: int,
        scaling: Scaling = "none",
        activation: str | Callable[[Tensor], Tensor] = "relu",
        parametrization: Parametrization = "ntk",
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        law = WeightLaw(parametrization, sigma_w, sigma_b, dtype, device, generator)
        super().__init__(width, out_features, depth=depth, activation=activation, law=law)
        self.in_features = whole_number("in_features", in_features, 1)
        self.scaling = scaling
        self.block_scales = block_scales(scaling, self.depth)
        self.first = Dense(self.in_features, self.width, law)
        self.blocks = nn.ModuleList([Dense(self.width, self.width, law) for _ in self.block_scales])
        self.read_out = Dense(self.width, self.out_features, law)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(flatten_examples(x, self.in_features))
        for scale, block in zip(self.block_scales, self.blocks):
            y = y + scale * block(self.activate(y))
        return self.read_out(self.activate(y))
