"""Convolutional networks: plain and residual."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from sgdsde._checks import complaint, whole_number, word
from sgdsde._types import Parametrization
from sgdsde.networks.dense import Scaling, block_scales
from sgdsde.networks.layers import Convolution, Dense, WeightLaw
from sgdsde.networks.network import Network

Readout: TypeAlias = Literal["flatten", "pool"]
"""Input of the read-out: every channel at every position, or the channels averaged over positions."""


class ConvolutionalNetwork(Network):
    """Images of one size, a kernel, and a read-out; abstract. The two below define how convolutions follow each other.

    Attributes, besides those of ``Network``: in_channels, image_size, kernel_size, readout.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        width: int,
        out_features: int,
        *,
        depth: int,
        kernel_size: int,
        readout: Readout,
        activation: str | Callable[[Tensor], Tensor],
        law: WeightLaw,
    ) -> None:
        super().__init__(width, out_features, depth=depth, activation=activation, law=law)
        self.in_channels = whole_number("in_channels", in_channels, 1)
        self.image_size = whole_number("image_size", image_size, 1)
        self.kernel_size = whole_number("kernel_size", kernel_size, 1)
        if self.kernel_size % 2 == 0:
            remedy = "an even kernel has no center, so the padded output cannot have the size of the input"
            raise ValueError(complaint("kernel_size", "odd", kernel_size, remedy))
        self.readout = word("readout", readout, ("flatten", "pool"))

    def make_read_out(self, law: WeightLaw) -> Dense:
        """The last affine map, drawn after all convolutions."""
        positions = self.image_size**2 if self.readout == "flatten" else 1
        return Dense(self.width * positions, self.out_features, law)

    def read(self, y: Tensor) -> Tensor:
        """The part of the hidden images [n, width, image_size, image_size] that the read-out sees, as rows."""
        return y.flatten(1) if self.readout == "flatten" else y.mean((-2, -1))

    def check_images(self, x: Tensor) -> Tensor:
        """x itself, if its shape is [n, in_channels, image_size, image_size]."""
        shape = (self.in_channels, self.image_size, self.image_size)
        if x.ndim != 4 or tuple(x.shape[1:]) != shape:
            expected = "[n, " + ", ".join(map(str, shape)) + "]"
            fits = x.ndim >= 2 and x.shape[1:].numel() == self.in_channels * self.image_size**2
            remedy = f"if each row is such an image, use x.reshape(-1, {', '.join(map(str, shape))})" if fits else ""
            raise ValueError(complaint("x", expected, f"shape {list(x.shape)}", remedy))
        return x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}, readout={self.readout!r}"


class CNN(ConvolutionalNetwork):
    """A convolutional network [n, in_channels, image_size, image_size] -> [n, out_features].

        y^1 = A_1 x,   y^l = A_l phi(y^{l-1})  for l = 2 ... depth,   f = A read(phi(y^depth))

    with the convolutions A_l of ``WeightLaw``: fan_in = channels * kernel_size^2, stride 1, zero padding to the same
    size. ``read`` flattens (fan_in = width * image_size^2) or averages over positions (fan_in = width). Zero padding
    lowers the variance near the border, so statements about the edge of chaos hold only away from it.

    Args:
        in_channels: channels of one image.
        image_size: its height and width.
        width: channels in every hidden layer.
        out_features: outputs.
        depth: hidden convolutions.
        kernel_size: height and width of every kernel, odd.
        readout: ``"flatten"`` or ``"pool"``.
        The other arguments are those of ``MLP``.
    Raises:
        ValueError, TypeError: an argument outside its range; in ``forward``, an input of another shape.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        width: int,
        out_features: int,
        *,
        depth: int = 1,
        kernel_size: int = 3,
        readout: Readout = "flatten",
        activation: str | Callable[[Tensor], Tensor] = "relu",
        parametrization: Parametrization = "ntk",
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        law = WeightLaw(parametrization, sigma_w, sigma_b, dtype, device, generator)
        super().__init__(
            in_channels,
            image_size,
            width,
            out_features,
            depth=depth,
            kernel_size=kernel_size,
            readout=readout,
            activation=activation,
            law=law,
        )
        channels = [self.in_channels] + [self.width] * self.depth
        self.hidden = nn.ModuleList([Convolution(*pair, self.kernel_size, law) for pair in pairwise(channels)])
        self.read_out = self.make_read_out(law)

    def forward(self, x: Tensor) -> Tensor:
        y = self.check_images(x)
        for layer in self.hidden:
            y = self.activate(layer(y))
        return self.read_out(self.read(y))


class ConvResNet(ConvolutionalNetwork):
    """A convolutional residual network [n, in_channels, image_size, image_size] -> [n, out_features].

        y^1 = A_1 x,   y^l = y^{l-1} + s_l A_l phi(y^{l-1})  for l = 2 ... depth,   f = A read(phi(y^depth))

    with the convolutions and ``read`` of ``CNN``, and s_l of ``block_scales``, which scales the block's bias too.

    Args:
        depth: convolutions before the read-out: one, then depth - 1 blocks.
        scaling: ``"none"``, ``"decreasing"`` or ``"stable"``.
        The other arguments are those of ``CNN``.
    Raises:
        ValueError, TypeError: an argument outside its range; in ``forward``, an input of another shape.
    Source: Hayou et al., arXiv:1905.13654; the stable scaling: Hayou et al., arXiv:2010.12859.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        width: int,
        out_features: int,
        *,
        depth: int,
        kernel_size: int = 3,
        readout: Readout = "flatten",
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
        super().__init__(
            in_channels,
            image_size,
            width,
            out_features,
            depth=depth,
            kernel_size=kernel_size,
            readout=readout,
            activation=activation,
            law=law,
        )
        self.scaling = scaling
        self.block_scales = block_scales(scaling, self.depth)
        self.first = Convolution(self.in_channels, self.width, self.kernel_size, law)
        blocks = [Convolution(self.width, self.width, self.kernel_size, law) for _ in self.block_scales]
        self.blocks = nn.ModuleList(blocks)
        self.read_out = self.make_read_out(law)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scaling={self.scaling!r}"

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.check_images(x))
        for scale, block in zip(self.block_scales, self.blocks):
            y = y + scale * block(self.activate(y))
        return self.read_out(self.read(self.activate(y)))
